/**
 * The daemon's log: lines to a descriptor, never waited for.
 *
 * Whoever reads the log may be slow, stopped, or waiting for a volume that this daemon serves. A line that cannot be written
 * at once is dropped, and the next that can be says how many were.
 *
 * A log file of our own lies in memory (`/run`), and a daemon runs for months: it is cut when it is long, and what it had until
 * then is kept beside it until the next time.
 */
import { closeSync, constants, copyFileSync, fstatSync, ftruncateSync, openSync, statSync, writeSync } from 'node:fs';
import * as libc from '../sys/libc.js';

type Writer = (bytes: Uint8Array) => number;

/** Of the log file; as much again is kept beside it. */
export const LOG_BYTES_MAX = 4_194_304;

export class LogStream {
  readonly #write: Writer;
  /** What is still to be written: at most one line, or the rest of one. */
  #rest: Uint8Array = new Uint8Array();
  #dropped = 0;

  /** `path`: of the log file; it is cut where the descriptor is that file's. */
  constructor(fd: number, path?: string) {
    const write = writerFor(fd);
    this.#write = path !== undefined && isFile(fd, path) ? bounded(write, fd, path) : write;
  }

  write(line: string): void {
    if (!this.#flush()) {
      this.#dropped++;
      return;
    }
    const note = this.#dropped === 0 ? '' : `{"level":40,"msg":"${this.#dropped} lines of the log were dropped"}\n`;
    this.#rest = Buffer.from(note + line);
    this.#dropped = 0;
    this.#flush();
  }

  #flush(): boolean {
    if (this.#rest.byteLength === 0) return true;
    this.#rest = this.#rest.subarray(Math.max(0, this.#write(this.#rest)));
    return this.#rest.byteLength === 0;
  }
}

/** Bytes written; less than 1 where none could be. */
function writerFor(fd: number): Writer {
  const stat = fstatSync(fd);
  if (stat.isSocket()) return (bytes) => libc.sendNow(fd, bytes);
  const own = stat.isFIFO() || stat.isCharacterDevice() ? reopened(fd) : fd;
  return (bytes) => {
    try {
      return writeSync(own, bytes);
    } catch {
      // Full, or nobody is there any more: there is no place to say so.
      return 0;
    }
  };
}

/** The same pipe or terminal, opened for ourselves: the mode of the given descriptor belongs to others as well. */
function reopened(fd: number): number {
  try {
    const own = openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY + constants.O_NONBLOCK);
    if (fstatSync(own).rdev === fstatSync(fd).rdev) return own;
    closeSync(own);
  } catch {
    // A pipe without a reader.
  }
  return fd;
}

function isFile(fd: number, path: string): boolean {
  const stat = fstatSync(fd);
  if (!stat.isFile()) return false;
  const named = statSync(path, { throwIfNoEntry: false });
  return named?.ino === stat.ino && named.dev === stat.dev;
}

function bounded(write: Writer, fd: number, path: string): Writer {
  // Counted, not looked up: where cutting fails it is tried again after as much again.
  let length = fstatSync(fd).size;
  return (bytes) => {
    if (length >= LOG_BYTES_MAX) {
      length = 0;
      cut(fd, path);
    }
    const written = write(bytes);
    length += Math.max(0, written);
    return written;
  };
}

function cut(fd: number, path: string): void {
  for (const step of [() => copyFileSync(path, `${path}.old`), () => ftruncateSync(fd)]) {
    try {
      step();
    } catch {
      // No room for the copy: room for the lines to come is worth more. And there is no place to say so.
    }
  }
}
