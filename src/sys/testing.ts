/** For tests: sockets that carry messages, which Node has none of. */
import koffi from 'koffi';
import { unixAddress } from './notify.js';

const c = koffi.load('libc.so.6');
const socket = c.func('int socket(int domain, int type, int protocol)');
const bind = c.func('bind', 'int', ['int', koffi.pointer('uint8_t'), 'uint32_t']);
const recv = c.func('recv', 'int64_t', ['int', koffi.out(koffi.pointer('uint8_t')), 'size_t', 'int']);
const send = c.func('send', 'int64_t', ['int', koffi.pointer('uint8_t'), 'size_t', 'int']);
const socketpair = c.func('socketpair', 'int', ['int', 'int', 'int', koffi.out(koffi.pointer('int32_t'))]);
const close = c.func('int close(int fd)');

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 0o2000002;
const SOCK_SEQPACKET_NONBLOCK_CLOEXEC = 0o2004005;
const MSG_DONTWAIT = 0x40;

/** A service manager's end of sd_notify(3): a socket for `NOTIFY_SOCKET`; a leading `@` stands for the abstract namespace. */
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

/** Two ends between which messages stay whole, as at the FUSE descriptor; reading `near` when there is none is EAGAIN. */
export class MessagePair {
  readonly near: number;
  readonly #far: number;
  readonly #buffer = Buffer.alloc(131_072);

  constructor() {
    const fds = new Int32Array(2);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET_NONBLOCK_CLOEXEC, 0, fds) !== 0)
      throw new Error(`no sockets: errno ${koffi.errno()}`);
    [this.near = -1, this.#far = -1] = fds;
  }

  /** A message to whoever reads `near`. */
  send(message: Uint8Array): void {
    if (send(this.#far, message, message.byteLength, 0) !== message.byteLength)
      throw new Error(`not sent: errno ${koffi.errno()}`);
  }

  /** The next message that was written to `near`. */
  receive(): Buffer | undefined {
    const count = Number(recv(this.#far, this.#buffer, this.#buffer.byteLength, MSG_DONTWAIT));
    return count < 0 ? undefined : Buffer.from(this.#buffer.subarray(0, count));
  }

  close(): void {
    close(this.near);
    close(this.#far);
  }
}
