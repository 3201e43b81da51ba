/**
 * Telling the service manager that a daemon is ready: sd_notify(3), which is one datagram to the socket of `NOTIFY_SOCKET`.
 * Node has no datagram sockets in the file system, and another process may not send it: `NotifyAccess=main`.
 */
import koffi from 'koffi';
import { SystemError } from './errors.js';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_NOSIGNAL = 0x4000;
const PATH_BYTES_MAX = 108;

const c = koffi.load('libc.so.6');
const socket = c.func('int socket(int domain, int type, int protocol)');
const close = c.func('int close(int fd)');
const sendto = c.func('sendto', 'int64_t', [
  'int',
  koffi.pointer('uint8_t'),
  'size_t',
  'int',
  koffi.pointer('uint8_t'),
  'uint32_t',
]);

/** `struct sockaddr_un`; a leading `@` stands for the abstract namespace. */
export function unixAddress(path: string): Buffer {
  const bytes = Buffer.from(path.startsWith('@') ? `\0${path.slice(1)}` : path);
  if (bytes.byteLength === 0 || bytes.byteLength >= PATH_BYTES_MAX) {
    throw new SystemError('sockaddr_un', 36, path);
  }
  const family = Buffer.alloc(2);
  family.writeUInt16LE(AF_UNIX);
  return Buffer.concat([family, bytes, bytes[0] === 0 ? Buffer.alloc(0) : Buffer.alloc(1)]);
}

/** Sends `state` (`READY=1`) to the service manager. Returns false where there is none. */
export function notify(state: string, env: NodeJS.ProcessEnv = process.env): boolean {
  const path = env['NOTIFY_SOCKET'];
  if (path === undefined || path === '') return false;
  const address = unixAddress(path);
  const message = Buffer.from(state);
  const fd = socket(AF_UNIX, SOCK_DGRAM + SOCK_CLOEXEC, 0);
  if (fd < 0) throw new SystemError('socket', koffi.errno());
  try {
    const sent = sendto(fd, message, message.byteLength, MSG_NOSIGNAL, address, address.byteLength);
    if (sent < 0) throw new SystemError('sendto', koffi.errno(), path);
    return true;
  } finally {
    close(fd);
  }
}
