/** Waiting, for those that cannot let others run meanwhile: a lock is held, or a file system frozen. */

const clock = new Int32Array(new SharedArrayBuffer(4));

/** Waits without a turn of the event loop. */
export function pause(timeMs: number): void {
  Atomics.wait(clock, 0, 0, timeMs);
}
