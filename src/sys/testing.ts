/** For tests: a service manager's end of sd_notify(3). Node has no datagram sockets in the file system. */
import koffi from 'koffi';
import { unixAddress } from './notify.js';

const c = koffi.load('libc.so.6');
const socket = c.func('int socket(int domain, int type, int protocol)');
const bind = c.func('bind', 'int', ['int', koffi.pointer('uint8_t'), 'uint32_t']);
const recv = c.func('recv', 'int64_t', ['int', koffi.out(koffi.pointer('uint8_t')), 'size_t', 'int']);
const close = c.func('int close(int fd)');

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 0o2000002;
const MSG_DONTWAIT = 0x40;

/** A socket for `NOTIFY_SOCKET`; a leading `@` stands for the abstract namespace. */
export class NotifySocket {
  readonly #fd: number;

  constructor(path: string) {
    this.#fd = socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0);
    const address = unixAddress(path);
    if (this.#fd < 0 || bind(this.#fd, address, address.byteLength) !== 0) {
      throw new Error(`no socket at ${path}: errno ${koffi.errno()}`);
    }
  }

  /** The next message that has come, empty where none has. */
  receive(): string {
    const buffer = Buffer.alloc(4096);
    const count = Number(recv(this.#fd, buffer, buffer.byteLength, MSG_DONTWAIT));
    return buffer.toString('utf8', 0, Math.max(0, count));
  }

  close(): void {
    close(this.#fd);
  }
}
