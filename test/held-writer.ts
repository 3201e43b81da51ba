/**
 * A write that takes as long as another file cannot be read: `held-writer FROM TO`.
 *
 * Its source is a mapped page of FROM, which is not in memory. The kernel keeps the file system of TO from being frozen as long as
 * the write is under way. Says `ready` on stdout when all is open, and begins at the first byte of stdin.
 */
import { readSync, writeSync } from 'node:fs';
import * as libc from '../src/sys/libc.js';

const BYTES = 4096;
const [from = '', to = ''] = process.argv.slice(2);
const { address } = libc.mapShared(libc.open(from, libc.O_RDWR), 0, BYTES);
const target = libc.open(to, libc.O_RDWR);
writeSync(1, 'ready\n');
readSync(0, Buffer.alloc(1));
if (libc.fast.write(target, address, BYTES) !== BYTES) throw new Error(`write: errno ${libc.lastErrno()}`);
