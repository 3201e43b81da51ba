/** Records in an order across several files or disks, each durable before the next is begun: what shows whether copies are of one instant. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readSync } from 'node:fs';
import type { Lab } from './lab.js';

export const RECORD_BYTES = 4096;
/** Then they begin at the first place again. */
export const RECORDS = 2000;

/** Writes record 1 to the first file or disk, 2 to the second, 3 to the first …, each durable before the next is begun. */
const WRITER = `
  const fs = require('node:fs');
  const flags = fs.constants.O_WRONLY | fs.constants.O_CREAT | fs.constants.O_SYNC;
  const fds = process.argv.slice(1).map((path) => fs.openSync(path, flags));
  const record = Buffer.alloc(${RECORD_BYTES}, 0x55);
  for (let i = 1; ; i++) {
    record.writeUInt32LE(i);
    const at = (Math.ceil(i / fds.length) - 1) % ${RECORDS};
    fs.writeSync(fds[(i - 1) % fds.length], record, 0, record.length, at * ${RECORD_BYTES});
    if (i === 4) fs.writeSync(1, 'begun');
  }`;

/** Resolves when the first records are there; to what ends the writer. */
export async function orderedWriter(lab: Lab, paths: string[]): Promise<() => Promise<void>> {
  const child = spawn(process.execPath, ['-e', WRITER, ...paths], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const stop = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  lab.onEnd(stop);
  await Promise.race([once(child.stdout, 'data'), ended]);
  return stop;
}

/** The highest record in what a file begins with. */
export function lastRecordIn(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let last = 0;
  for (let at = 0; at + RECORD_BYTES <= Math.min(bytes.byteLength, RECORDS * RECORD_BYTES); at += RECORD_BYTES)
    last = Math.max(last, view.getUint32(at, true));
  return last;
}

export function lastRecord(path: string): number {
  const bytes = Buffer.alloc(RECORDS * RECORD_BYTES);
  const fd = openSync(path, 'r');
  const count = readSync(fd, bytes, 0, bytes.byteLength, 0);
  closeSync(fd);
  return lastRecordIn(bytes.subarray(0, count));
}
