/** The system calls of Linux's asynchronous I/O; `aio.ts` says why these, and uses them. */
import { SystemError } from './errors.js';
import * as libc from './libc.js';

/** io_setup, io_destroy, io_getevents, io_submit: x86-64 and the generic table (arm64). */
const SYS_AIO =
  process.arch === 'arm64'
    ? { setup: 0, destroy: 1, submit: 2, getEvents: 4 }
    : { setup: 206, destroy: 207, submit: 209, getEvents: 208 };

/** A context for so many transfers at a time (io_setup(2)); undefined where there is none to be had. */
export function aioSetup(transfers: number): number | undefined {
  const context = libc.mapLocked(8);
  try {
    if (libc.syscall(SYS_AIO.setup, transfers, context.address) < 0) return undefined;
    return Number(new DataView(context.bytes).getBigUint64(0, true));
  } finally {
    libc.unmap(context);
  }
}

/** Gives a context back, when nothing is under way in it any more (io_destroy(2)). */
export function aioDestroy(context: number): void {
  if (libc.syscall(SYS_AIO.destroy, context) < 0) throw new SystemError('io_destroy', libc.lastErrno());
}

/** io_submit(2) of `count` pointers to transfers at an address: how many were taken, or a negative number. */
export function aioSubmit(context: number, count: number, address: number): number {
  return libc.syscall(SYS_AIO.submit, context, count, address);
}

/** io_getevents(2), without a time limit: how many there are. */
export function aioGetEvents(context: number, least: number, most: number, address: number): number {
  for (;;) {
    const count = libc.syscall(SYS_AIO.getEvents, context, least, most, address);
    if (count >= 0) return count;
    const errno = libc.lastErrno();
    if (errno !== 4) throw new SystemError('io_getevents', errno);
  }
}
