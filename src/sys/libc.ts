/**
 * The C library through koffi: the one place where functions of the kernel get their types.
 *
 * Pointers are declared as `int64` and passed as plain numbers: user addresses are below 2^47, so a number holds them
 * exactly, and a call costs about 250 ns with no object made. Every thread that imports this file loads its own copy, which
 * is what koffi wants. Errors come back as `-errno` from {@link check}-less callers or as {@link SystemError}.
 */
import koffi from 'koffi';
import { SystemError } from './errors.js';

const c = koffi.load('libc.so.6');

const raw = {
  open: c.func('int open(const char *path, int flags, uint mode)'),
  close: c.func('int close(int fd)'),
  read: c.func('int64_t read(int fd, int64_t address, size_t length)'),
  write: c.func('int64_t write(int fd, int64_t address, size_t length)'),
  pread: c.func('int64_t pread(int fd, int64_t address, size_t length, int64_t offset)'),
  pwrite: c.func('int64_t pwrite(int fd, int64_t address, size_t length, int64_t offset)'),
  fdatasync: c.func('int fdatasync(int fd)'),
  fsync: c.func('int fsync(int fd)'),
  syncfs: c.func('int syncfs(int fd)'),
  fallocate: c.func('int fallocate(int fd, int mode, int64_t offset, int64_t length)'),
  ftruncate: c.func('int ftruncate(int fd, int64_t length)'),
  lseek: c.func('int64_t lseek(int fd, int64_t offset, int whence)'),
  posixFadvise: c.func('int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)'),
  ioctlAddress: c.func('ioctl', 'int', ['int', 'uint64_t', 'int64_t']),
  ioctlBuffer: c.func('ioctl', 'int', ['int', 'uint64_t', koffi.pointer('uint8_t')]),
  fcntlBuffer: c.func('fcntl', 'int', ['int', 'int', koffi.pointer('uint8_t')]),
  epollCreate1: c.func('int epoll_create1(int flags)'),
  epollCtl: c.func('int epoll_ctl(int fd, int operation, int subject, int64_t address)'),
  epollWait: c.func('int epoll_wait(int fd, int64_t address, int count, int timeoutMs)'),
  eventfd: c.func('int eventfd(uint initial, int flags)'),
  memfdCreate: c.func('int memfd_create(const char *name, uint flags)'),
  mmap: c.func('int64_t mmap(int64_t address, size_t length, int prot, int flags, int fd, int64_t offset)'),
  munmap: c.func('int munmap(int64_t address, size_t length)'),
  mlock: c.func('int mlock(int64_t address, size_t length)'),
  mlock2: c.func('int mlock2(int64_t address, size_t length, uint flags)'),
  mprotect: c.func('int mprotect(int64_t address, size_t length, int prot)'),
  send: c.func('send', 'int64_t', ['int', koffi.pointer('uint8_t'), 'size_t', 'int']),
  mount: c.func(
    'int mount(const char *source, const char *target, const char *type, uint64_t flags, const char *data)',
  ),
  umount2: c.func('int umount2(const char *target, int flags)'),
  unshare: c.func('int unshare(int flags)'),
  prctl: c.func('prctl', 'int', ['int', 'uint64_t', 'uint64_t', 'uint64_t', 'uint64_t']),
  flock: c.func('int flock(int fd, int operation)'),
  linkat: c.func('int linkat(int fromFd, const char *from, int toFd, const char *to, int flags)'),
  syscall: c.func('syscall', 'int64_t', ['int64_t', 'int64_t', 'int64_t', 'int64_t', 'int64_t', 'int64_t', 'int64_t']),
} as const;

/** A system call without a wrapper here: its result, negative where it failed ({@link lastErrno}). */
export function syscall(number: number, a: number, b = 0, c = 0, d = 0, e = 0, f = 0): number {
  return raw.syscall(number, a, b, c, d, e, f);
}

/** The calling thread's errno after a call of this module that returned -1. */
export function lastErrno(): number {
  return koffi.errno();
}

function check(result: number, syscall: string, subject?: string): number {
  if (result < 0) throw new SystemError(syscall, koffi.errno(), subject);
  return result;
}

export const O_RDONLY = 0;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_NONBLOCK = 0o4000;
/** x86 and arm64 differ here (asm-generic against arch/arm64/include/uapi/asm/fcntl.h). */
export const O_DIRECT = process.arch === 'arm64' ? 0o200000 : 0o40000;
export const O_DIRECTORY = process.arch === 'arm64' ? 0o40000 : 0o200000;
export const O_CLOEXEC = 0o2000000;

export function open(path: string, flags: number, mode = 0): number {
  return check(raw.open(path, flags + O_CLOEXEC, mode), 'open', path);
}

export function close(fd: number): void {
  check(raw.close(fd), 'close', `fd ${fd}`);
}

/** Fast-path calls: they return the kernel's result, or -1 with {@link lastErrno}; the caller decides. */
export const fast = {
  read: raw.read as (fd: number, address: number, length: number) => number,
  write: raw.write as (fd: number, address: number, length: number) => number,
  pread: raw.pread as (fd: number, address: number, length: number, offset: number) => number,
  pwrite: raw.pwrite as (fd: number, address: number, length: number, offset: number) => number,
  epollCtl: raw.epollCtl as (fd: number, operation: number, subject: number, address: number) => number,
  epollWait: raw.epollWait as (fd: number, address: number, count: number, timeoutMs: number) => number,
  fdatasync: raw.fdatasync as (fd: number) => number,
  fallocate: raw.fallocate as (fd: number, mode: number, offset: number, length: number) => number,
  lseek: raw.lseek as (fd: number, offset: number, whence: number) => number,
};

const SEEK_DATA = 3;
const ENXIO = 6;

/** First offset in `[offset, end)` of a regular file that may hold data; `end` when the whole range is known to be a hole. */
export function nextData(fd: number, offset: number, end: number): number {
  const found = fast.lseek(fd, offset, SEEK_DATA);
  if (found >= 0) return Math.min(found, end);
  return lastErrno() === ENXIO ? end : offset;
}

const EPOLL_CLOEXEC = 0o2000000;

export function epollCreate(): number {
  return check(raw.epollCreate1(EPOLL_CLOEXEC), 'epoll_create1');
}

export function fsync(fd: number): void {
  check(raw.fsync(fd), 'fsync', `fd ${fd}`);
}

export function syncfs(fd: number): void {
  check(raw.syncfs(fd), 'syncfs', `fd ${fd}`);
}

export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const FALLOC_FL_ZERO_RANGE = 0x10;

export function fallocate(fd: number, mode: number, offset: number, lengthBytes: number): void {
  check(raw.fallocate(fd, mode, offset, lengthBytes), 'fallocate', `fd ${fd} ${offset}+${lengthBytes}`);
}

export function ftruncate(fd: number, lengthBytes: number): void {
  check(raw.ftruncate(fd, lengthBytes), 'ftruncate', `fd ${fd}`);
}

export const LOCK_SH = 1;
export const LOCK_EX = 2;
const LOCK_NB = 4;
const EWOULDBLOCK = 11;

/** flock(2) without waiting: false when somebody else has a lock that stands against it. It ends with the last close. */
export function tryFlock(fd: number, operation: typeof LOCK_SH | typeof LOCK_EX): boolean {
  if (raw.flock(fd, operation + LOCK_NB) === 0) return true;
  const errno = koffi.errno();
  if (errno === EWOULDBLOCK) return false;
  throw new SystemError('flock', errno, `fd ${fd}`);
}

const AT_FDCWD = -100;
const AT_SYMLINK_FOLLOW = 0x400;

/** Gives a file that was opened without a name a first one (linkat(2)). */
export function linkDescriptor(fd: number, path: string): void {
  check(raw.linkat(AT_FDCWD, `/proc/self/fd/${fd}`, AT_FDCWD, path, AT_SYMLINK_FOLLOW), 'linkat', path);
}

const POSIX_FADV_RANDOM = 1;
const POSIX_FADV_WILLNEED = 3;
const POSIX_FADV_DONTNEED = 4;

/** Drops a file's clean pages from the page cache. Advice only: the caller compares where it matters. */
export function dropCache(fd: number): void {
  const errno: number = raw.posixFadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  if (errno !== 0) throw new SystemError('posix_fadvise', errno, `fd ${fd}`);
}

/** Reads of this descriptor bring no more than they ask for. Advice only: what the kernel answers does not matter. */
export function expectRandomReads(fd: number): void {
  raw.posixFadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

/** Begins to read a range into the page cache. Advice only. */
export function prefetch(fd: number, offset: number, lengthBytes: number): void {
  raw.posixFadvise(fd, offset, lengthBytes, POSIX_FADV_WILLNEED);
}

/** ioctl with a structure that the kernel reads and writes. Returns the call's result. */
export function ioctl(fd: number, request: number, argument: Uint8Array, name: string): number {
  return check(raw.ioctlBuffer(fd, request, argument), name, `fd ${fd}`);
}

/** ioctl with a number as its argument. */
export function ioctlNumber(fd: number, request: number, argument: number, name: string): number {
  return check(raw.ioctlAddress(fd, request, argument), name, `fd ${fd}`);
}

export function fcntl(fd: number, command: number, argument: Uint8Array, name: string): number {
  return check(raw.fcntlBuffer(fd, command, argument), name, `fd ${fd}`);
}

export function eventfd(): number {
  return check(raw.eventfd(0, O_CLOEXEC + O_NONBLOCK), 'eventfd');
}

const MFD_CLOEXEC = 1;

/** A new anonymous memory file, all zeros, sparse. */
export function memfdCreate(name: string, lengthBytes: number): number {
  const fd = check(raw.memfdCreate(name, MFD_CLOEXEC), 'memfd_create', name);
  ftruncate(fd, lengthBytes);
  return fd;
}

/** One mapping: its address for system calls, and its bytes for JavaScript. Never unmapped while a view may live. */
export interface Mapping {
  readonly address: number;
  readonly lengthBytes: number;
  readonly bytes: ArrayBuffer;
}

const PROT_NONE = 0;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE_ANONYMOUS = 0x22;

/** Maps part of a memory file, shared. */
export function mapShared(fd: number, offset: number, lengthBytes: number): Mapping {
  return toMapping(raw.mmap(0, lengthBytes, PROT_READ_WRITE, MAP_SHARED, fd, offset), lengthBytes);
}

/** An inaccessible page on both sides: a transfer beyond a buffer fails, and `/proc/PID/smaps` shows each buffer by itself. */
const GUARD_BYTES = 4096;

/**
 * Page-aligned memory of our own, every byte written once and locked.
 *
 * Written and locked because the kernel ends a FUSE request with EIO when the copy to or from user memory faults while the
 * process is being killed: memory that is resident and locked cannot fault.
 */
export function mapLocked(lengthBytes: number): Mapping {
  const whole = raw.mmap(0, lengthBytes + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE_ANONYMOUS, -1, 0);
  const mapping = toMapping(whole === -1 ? -1 : whole + GUARD_BYTES, lengthBytes);
  check(raw.mprotect(mapping.address, lengthBytes, PROT_READ_WRITE), 'mprotect', `${lengthBytes} bytes`);
  new Uint8Array(mapping.bytes).fill(0xff).fill(0);
  check(raw.mlock(mapping.address, lengthBytes), 'mlock', `${lengthBytes} bytes`);
  return mapping;
}

/** Page-aligned memory of our own, zeros, for as long as the process lives: for transfers with O_DIRECT. */
export function mapPages(lengthBytes: number): Mapping {
  return toMapping(raw.mmap(0, lengthBytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0), lengthBytes);
}

/** Another thread's mapping of this process. */
export function viewOf(address: number, lengthBytes: number): Mapping {
  return { address, lengthBytes, bytes: koffi.view(BigInt(address), lengthBytes) };
}

function toMapping(address: number, lengthBytes: number): Mapping {
  if (address === -1) throw new SystemError('mmap', koffi.errno(), `${lengthBytes} bytes`);
  return viewOf(address, lengthBytes);
}

/** Ends a mapping. Every view on it must be unreachable by then: touching one afterwards ends the process. */
export function unmap(mapping: Mapping): void {
  check(raw.munmap(mapping.address, mapping.lengthBytes), 'munmap');
}

/** Locks existing memory, such as file-backed program text. Returns false where the limit does not allow it. */
export function tryLock(address: number, lengthBytes: number): boolean {
  return raw.mlock(address, lengthBytes) === 0;
}

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** Sends what a socket takes at once; returns how much, or -1. */
export function sendNow(fd: number, bytes: Uint8Array): number {
  return raw.send(fd, bytes, bytes.byteLength, MSG_DONTWAIT + MSG_NOSIGNAL);
}

const MLOCK_ONFAULT = 1;

/** Locks each page of existing memory from when it is first used on (Linux 4.4). False where the limit does not allow it. */
export function tryLockOnFault(address: number, lengthBytes: number): boolean {
  return raw.mlock2(address, lengthBytes, MLOCK_ONFAULT) === 0;
}

export function mount(source: string, target: string, type: string, flags: number, data: string): void {
  check(raw.mount(source, target, type, flags, data), 'mount', target);
}

export const MNT_DETACH = 2;

export function umount(target: string, flags = 0): void {
  check(raw.umount2(target, flags), 'umount', target);
}

const CLONE_NEWNS = 0x20000;

/** Gives the calling process a mount namespace of its own. */
export function unshareMounts(): void {
  check(raw.unshare(CLONE_NEWNS), 'unshare');
}

const PR_SET_IO_FLUSHER = 57;

/** Puts the calling thread out of reach of reclaim's I/O (Linux 5.6). False where the capability is missing. */
export function trySetIoFlusher(): boolean {
  return raw.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) === 0;
}

/** System calls without a wrapper in the C library; the numbers are the same on x86-64 and arm64 unless said. */
const SYS_FUTEX = process.arch === 'arm64' ? 98 : 202;
const SYS_PIDFD_OPEN = 434;
const SYS_CLOSE_RANGE = 436;
const SYS_PIDFD_GETFD = 438;

const FUTEX_WAIT = 0;
const FUTEX_WAKE = 1;
const EAGAIN = 11;
const EINTR = 4;
const ETIMEDOUT = 110;

const timespec = new BigInt64Array(2);

/**
 * Sleeps while the 32-bit word at `address` is `expected`, at most `timeoutMs`. Returns false when the time ran out.
 * Works on any shared mapping, where `Atomics.wait` does not (it wants a SharedArrayBuffer).
 */
export function futexWait(address: number, expected: number, timeoutMs: number): boolean {
  timespec[0] = BigInt(Math.floor(timeoutMs / 1000));
  timespec[1] = BigInt(Math.floor((timeoutMs % 1000) * 1e6));
  const result: number = futexWithTimeout(SYS_FUTEX, address, FUTEX_WAIT, expected, timespec, 0, 0);
  if (result === 0) return true;
  const errno = koffi.errno();
  if (errno === EAGAIN || errno === EINTR) return true;
  if (errno === ETIMEDOUT) return false;
  throw new SystemError('futex', errno);
}

const futexWithTimeout = c.func('syscall', 'int64_t', [
  'int64_t',
  'int64_t',
  'int64_t',
  'int64_t',
  koffi.pointer('int64_t'),
  'int64_t',
  'int64_t',
]);

/** Wakes up to `count` sleepers on the word at `address`. */
export function futexWake(address: number, count: number): void {
  check(raw.syscall(SYS_FUTEX, address, FUTEX_WAKE, count, 0, 0, 0), 'futex');
}

/** Duplicates descriptor `fd` of process `pid` into this process (Linux 5.6; needs to be allowed to trace it). */
export function duplicateFrom(pid: number, fd: number): number {
  const pidfd = check(raw.syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0, 0, 0), 'pidfd_open', `pid ${pid}`);
  try {
    return check(raw.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0, 0, 0, 0), 'pidfd_getfd', `pid ${pid} fd ${fd}`);
  } finally {
    close(pidfd);
  }
}

const CLOSE_RANGE_CLOEXEC = 4;

/** Marks every descriptor from `first` up as close-on-exec, so that a child inherits none of them (Linux 5.11). */
export function closeOnExecFrom(first: number): void {
  check(raw.syscall(SYS_CLOSE_RANGE, first, 0x7fffffff, CLOSE_RANGE_CLOEXEC, 0, 0, 0), 'close_range');
}
