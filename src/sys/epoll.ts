/**
 * Waiting for one of several descriptors (epoll(7)), of which some are shared with other threads that wait for them, too.
 *
 * With poll() a request that comes wakes every thread that waits for it, and all but one go to sleep again. An exclusive
 * entry (EPOLLEXCLUSIVE) wakes one of those that sleep.
 */
import { SystemError } from './errors.js';
import * as libc from './libc.js';

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
const EPOLLEXCLUSIVE = 0x1000_0000;
/** struct epoll_event is packed on x86-64 only. */
const [EVENT_BYTES, DATA_AT] = process.arch === 'x64' ? [12, 4] : [16, 8];
const EVENTS_MAX = 64;
const EINTR = 4;
const ENOENT = 2;
const EBADF = 9;

export class Epoll {
  readonly #fd = libc.epollCreate();
  readonly #events: DataView;
  readonly #address: number;

  constructor() {
    const memory = libc.mapLocked(EVENTS_MAX * EVENT_BYTES);
    this.#events = new DataView(memory.bytes);
    this.#address = memory.address;
  }

  /** Waits for a descriptor from now on. `isShared`: other threads wait for it, and one of them is enough. */
  add(fd: number, isShared: boolean): void {
    this.#events.setUint32(0, EPOLLIN + (isShared ? EPOLLEXCLUSIVE : 0), true);
    this.#events.setInt32(DATA_AT, fd, true);
    this.#events.setInt32(DATA_AT + 4, 0, true);
    if (libc.fast.epollCtl(this.#fd, EPOLL_CTL_ADD, fd, this.#address) !== 0) {
      throw new SystemError('epoll_ctl', libc.lastErrno(), `fd ${fd}`);
    }
  }

  /** No longer. One that was closed is gone by itself. */
  remove(fd: number): void {
    if (libc.fast.epollCtl(this.#fd, EPOLL_CTL_DEL, fd, this.#address) === 0) return;
    const errno = libc.lastErrno();
    if (errno !== ENOENT && errno !== EBADF) throw new SystemError('epoll_ctl', errno, `fd ${fd}`);
  }

  /** Descriptors that have something to read, or an end; none when the time is over. */
  wait(timeoutMs: number): number[] {
    const count = libc.fast.epollWait(this.#fd, this.#address, EVENTS_MAX, timeoutMs);
    if (count < 0) {
      const errno = libc.lastErrno();
      if (errno !== EINTR) throw new SystemError('epoll_wait', errno);
    }
    const ready: number[] = [];
    for (let i = 0; i < count; i++) ready.push(this.#events.getInt32(i * EVENT_BYTES + DATA_AT, true));
    return ready;
  }
}
