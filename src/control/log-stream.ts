/**
 * The daemon's log: lines to a descriptor, never waited for.
 *
 * Whoever reads the log may be slow, stopped, or waiting for a volume that this daemon serves. A line that cannot be written
 * at once is dropped, and the next that can be says how many were.
 */
import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs';
import * as libc from '../sys/libc.js';

type Writer = (bytes: Uint8Array) => number;

export class LogStream {
  readonly #write: Writer;
  /** What is still to be written: at most one line, or the rest of one. */
  #rest: Uint8Array = new Uint8Array();
  #dropped = 0;

  constructor(fd: number) {
    this.#write = writerFor(fd);
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
