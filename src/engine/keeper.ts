/**
 * The keeper: holds what must outlive the engine, and starts, reaps and restarts it.
 *
 * It keeps for life, by number: the origins (claimed with O_EXCL, an image by QEMU's locks), the FUSE descriptors, the
 * memory files, the stores of their own; and, as plain data, the records from which a new engine goes on. It makes no call
 * that an engine must answer: no open or stat of a FUSE file or of a volume's node, no mount, no umount.
 *
 * An engine is started only when the one before is wholly reaped: a request that the old one still had in hand could
 * otherwise land after the new one's answer to a later one.
 */
import { type ChildProcess, type ForkOptions, fork } from 'node:child_process';
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { blockDeviceSizeBytes, isReadOnlyDevice, logicalSectorBytes } from '../sys/blkdev.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { tryLockImage } from '../sys/fsfile.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, layoutFor, MAX_BLOCKS } from '../tracer/layout.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import type { OpenedOrigin, VolumeRecord } from './records.js';
import { childChannel, Rpc } from './rpc.js';
import { HELPER_FD_FIRST, type KeeperCall, type KeeperCalls } from './services.js';
import type { EventInput } from './types.js';

const EBUSY = 16;
const EINVAL = 22;
const EROFS = 30;
const SECTOR_BYTES = 512;
/** First pause before a dead engine is started again; doubled up to the longest. */
const BACKOFF_MS_MIN = 10;
const BACKOFF_MS_MAX = 500;
/** An engine of another version will not be there sooner than somebody installs it. */
const REFUSED_RETRY_MS = 3_000;
const READS: ReadonlySet<string> = new Set(['list', 'info', 'changes', 'getFreeMinor']);

export interface KeeperOptions {
  /** Program of the engine's process. */
  enginePath: string;
  /** What the engine gets with its start, beside the records. */
  engineStart: unknown;
  onEvent(event: EventInput): void;
}

/** Parameters of the engine's first call. */
export interface EngineStart {
  /** Of the keeper; an engine that cannot work with it refuses to start. */
  protocol: number;
  keeperPid: number;
  volumes: VolumeRecord[];
  options: unknown;
}

type Implementation = { [N in KeeperCall]: (params: KeeperCalls[N]['params']) => Promise<KeeperCalls[N]['result']> };

export class EngineKeeper {
  readonly #options: KeeperOptions;
  readonly #volumes = new Map<string, VolumeRecord>();
  readonly #helpers = new Map<number, { child: ChildProcess; rpc: Rpc }>();
  #nextHelper = 1;
  #engine: { child: ChildProcess; rpc: Rpc; ready: Promise<void> } | undefined;
  #stopping = false;
  #restarts = 0;
  #backoffMs = BACKOFF_MS_MIN;
  #waiting: Array<() => void> = [];
  #engineVersion: string | null = null;
  /** Why the engine on disk cannot be used, from its refusal until one starts. */
  #refusal: CowbirdError | undefined;

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  get enginePid(): number | null {
    return this.#engine?.child.pid ?? null;
  }

  get restarts(): number {
    return this.#restarts;
  }

  /** Version of the engine that started last: it may be newer or older than this process. */
  get engineVersion(): string | null {
    return this.#engineVersion;
  }

  get refusal(): string | null {
    return this.#refusal?.message ?? null;
  }

  get volumes(): VolumeRecord[] {
    return [...this.#volumes.values()];
  }

  /** Starts the engine; resolves when it serves what the records hold. */
  async start(): Promise<void> {
    const child = fork(this.#options.enginePath, [], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      execArgv: process.execArgv,
      ...sameName(),
    });
    const rpc = new Rpc(childChannel(child), (name, params) => this.#serve(name, params));
    const begin: EngineStart = {
      protocol: ENGINE_PROTOCOL,
      keeperPid: process.pid,
      volumes: this.volumes,
      options: this.#options.engineStart,
    };
    const ready = rpc.call('start', begin).then((answer) => {
      this.#engineVersion = versionIn(answer);
      this.#refusal = undefined;
      this.#backoffMs = BACKOFF_MS_MIN;
      for (const wake of this.#waiting.splice(0)) wake();
    });
    this.#engine = { child, rpc, ready };
    child.on('error', (error) => {
      this.#options.onEvent({ event: 'engine.error', level: 'error', message: `The engine: ${messageOf(error)}` });
      // It never ran (node itself was replaced or removed), so nothing will exit.
      if (child.pid === undefined) this.#engineEnded(null, null);
    });
    child.once('exit', (code, signal) => this.#engineEnded(code, signal));
    await ready.catch((error: unknown) => {
      this.#noteRefusal(child, error);
      throw error;
    });
  }

  /** An engine of another version has touched nothing. The volumes wait; callers are told why instead of waiting too. */
  #noteRefusal(child: ChildProcess, error: unknown): void {
    if (!(error instanceof CowbirdError) || error.code !== 'EPROTO') return;
    this.#refusal = error;
    this.#backoffMs = REFUSED_RETRY_MS;
    child.kill('SIGKILL');
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /**
   * One operation of the engine; waits while it is being started again. One that only reads is asked again when the engine
   * dies under it; any other says that it was cut off, as nobody knows how far it came.
   */
  async request(operation: string, params: unknown): Promise<unknown> {
    for (;;) {
      while (this.#engine === undefined) {
        if (this.#refusal !== undefined) throw this.#refusal;
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
      const engine = this.#engine;
      try {
        await engine.ready;
        return await engine.rpc.call('request', { operation, params });
      } catch (error) {
        if (!(error instanceof CowbirdError) || error.code !== 'EPIPE') throw error;
        if (!READS.has(operation)) {
          const message = `The engine ended in the middle of ${operation}, and was started again: \`cowbird info\` shows what became of it`;
          throw new CowbirdError('EPIPE', message, { outcome: 'failed' });
        }
        await new Promise((resolve) => setTimeout(resolve, BACKOFF_MS_MIN));
      }
    }
  }

  /** Ends the engine by SIGKILL and starts a new one over the same volumes. */
  async restart(): Promise<void> {
    const old = this.#engine;
    if (old === undefined) return;
    const started = new Promise<void>((resolve) => this.#waiting.push(resolve));
    old.child.kill('SIGKILL');
    await started;
  }

  /** Ends the engine for good. The volumes must be detached by then: it has nothing in hand that it could lose. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const engine = this.#engine;
    if (engine !== undefined) {
      const ended = new Promise<void>((resolve) => engine.child.once('exit', () => resolve()));
      engine.child.kill('SIGKILL');
      await ended;
    }
    for (const { child } of this.#helpers.values()) child.kill('SIGKILL');
  }

  #engineEnded(code: number | null, signal: NodeJS.Signals | null): void {
    this.#engine = undefined;
    // The helpers of a dead engine have nobody to tell: they thaw what they froze and end.
    for (const { child } of this.#helpers.values()) if (child.connected) child.disconnect();
    this.#helpers.clear();
    if (this.#stopping) return;
    this.#restarts++;
    this.#options.onEvent({
      event: 'engine.ended',
      level: 'error',
      message: `The engine ended (${signal ?? `exit code ${code}`}); starting it again`,
    });
    setTimeout(() => {
      this.start().catch((error: unknown) =>
        this.#options.onEvent({
          event: 'engine.failed',
          level: 'error',
          message: `The engine did not start: ${messageOf(error)}`,
        }),
      );
    }, this.#backoffMs);
    this.#backoffMs = Math.min(BACKOFF_MS_MAX, this.#backoffMs * 2);
  }

  readonly #calls: Implementation = {
    openOrigin: async ({ path, readOnly, raw }) => openOrigin(path, readOnly, raw),
    openFuse: async () => ({ fuseFd: libc.open('/dev/fuse', libc.O_RDWR + libc.O_NONBLOCK) }),
    openStore: async ({ path }) => openStore(path),
    closeFds: async ({ fds }) => {
      for (const fd of fds) libc.close(fd);
      return null;
    },
    putVolume: async ({ volume }) => {
      this.#volumes.set(volume.id, volume);
      return null;
    },
    dropVolume: async ({ id }) => {
      this.#volumes.delete(id);
      return null;
    },
    startHelper: async ({ fds, protocol }) => this.#startHelper(fds, protocol),
    callHelper: async ({ helper, call, params, timeoutMs }) => this.#callHelper(helper, call, params, timeoutMs),
    endHelper: async ({ helper }) => {
      const entry = this.#helpers.get(helper);
      this.#helpers.delete(helper);
      if (entry?.child.connected === true) entry.child.disconnect();
      return null;
    },
    event: async (event) => {
      this.#options.onEvent(event);
      return null;
    },
  };

  async #serve(name: string, params: unknown): Promise<unknown> {
    if (!isKeeperCall(this.#calls, name)) throw new CowbirdError('ENOSYS', `The keeper has no call ${name}`);
    return run(this.#calls, name, params as KeeperCalls[typeof name]['params']);
  }

  #startHelper(fds: number[], protocol: number): { helper: number } {
    const program = fileURLToPath(new URL('./helper.js', import.meta.url));
    const child = fork(program, [String(protocol)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', ...fds],
      execArgv: process.execArgv,
      cwd: '/',
      ...sameName(),
    });
    const helper = this.#nextHelper++;
    const rpc = new Rpc(childChannel(child), async (name) => {
      throw new CowbirdError('ENOSYS', `A helper asks for nothing, and not for ${name}`);
    });
    this.#helpers.set(helper, { child, rpc });
    child.on('error', (error) =>
      this.#options.onEvent({ event: 'helper.error', level: 'warning', message: `A helper: ${messageOf(error)}` }),
    );
    child.once('exit', () => this.#helpers.delete(helper));
    return { helper };
  }

  async #callHelper(helper: number, call: string, params: unknown, timeoutMs: number): Promise<unknown> {
    const entry = this.#helpers.get(helper);
    if (entry === undefined)
      throw new CowbirdError('EPIPE', `Helper ${helper} has ended before ${call}`, { outcome: 'failed' });
    try {
      return await entry.rpc.call(call, params, timeoutMs);
    } catch (error) {
      // One that hangs is left to the kernel: it dies when its call returns.
      if (error instanceof CowbirdError && error.code === 'ETIMEDOUT') entry.child.kill('SIGKILL');
      throw error;
    }
  }
}

/**
 * systemd's last killing spree at shutdown spares processes of root's whose `argv[0]` begins with `@`: storage that is still
 * mounted needs them. An engine without it would be killed under a keeper that has it.
 */
function sameName(): ForkOptions & { argv0?: string } {
  return process.argv0.startsWith('@') ? { argv0: process.argv0 } : {};
}

function versionIn(answer: unknown): string | null {
  if (typeof answer !== 'object' || answer === null || !('version' in answer)) return null;
  return typeof answer.version === 'string' ? answer.version : null;
}

function isKeeperCall(calls: Implementation, name: string): name is KeeperCall {
  return Object.hasOwn(calls, name);
}

function run<N extends KeeperCall>(
  calls: Implementation,
  name: N,
  params: KeeperCalls[N]['params'],
): Promise<KeeperCalls[N]['result']> {
  return calls[name](params);
}

/** Opens an origin for the write path and claims it, or says who has it. */
function openOrigin(path: string, readOnly: boolean, raw: boolean): OpenedOrigin {
  const probe = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  let isFile: boolean;
  let deviceReadOnly = false;
  try {
    const stats = fstatSync(probe);
    isFile = stats.isFile();
    if (!isFile && !stats.isBlockDevice()) {
      throw new CowbirdError('ENOTBLK', `${path} is neither a block device nor an image file`);
    }
    if (!raw) refuseOtherFormats(probe, path);
    deviceReadOnly = !isFile && isReadOnlyDevice(probe);
  } finally {
    closeSync(probe);
  }
  const flags = libc.O_DIRECT + (isFile ? 0 : libc.O_EXCL);
  let writable = !readOnly && !deviceReadOnly;
  let fd: number;
  try {
    fd = openClaimed(path, flags, writable);
  } catch (error) {
    if (!writable || errnoOfError(error) !== EROFS) throw error;
    writable = false;
    fd = openClaimed(path, flags, false);
  }
  try {
    return describeOrigin(path, fd, isFile, writable);
  } catch (error) {
    libc.close(fd);
    throw error;
  }
}

function openClaimed(path: string, flags: number, writable: boolean): number {
  try {
    return libc.open(path, flags + (writable ? libc.O_RDWR : libc.O_RDONLY));
  } catch (error) {
    const errno = errnoOfError(error);
    if (errno === EBUSY)
      throw new CowbirdError('EBUSY', `${path} is mounted or claimed by somebody else: unmount or release it first`);
    if (errno === EINVAL)
      throw new CowbirdError('EINVAL', `${path} lies on a file system without O_DIRECT, which the write path needs`);
    throw error;
  }
}

function describeOrigin(path: string, fd: number, isFile: boolean, writable: boolean): OpenedOrigin {
  const bytes = isFile ? fstatSync(fd).size : blockDeviceSizeBytes(fd);
  const sizeBytes = bytes - (bytes % SECTOR_BYTES);
  const blockCount = Math.ceil(sizeBytes / BLOCK_BYTES);
  if (blockCount === 0) throw new CowbirdError('EINVAL', `${path} has ${bytes} bytes, which is less than one sector`);
  if (blockCount > MAX_BLOCKS)
    throw new CowbirdError('EFBIG', `${path} has ${bytes} bytes; volumes have 16 TiB at most`);
  if (isFile && !tryLockImage(fd, writable)) {
    throw new CowbirdError(
      'EBUSY',
      `${path} is locked by another program, such as QEMU or another Cowbird: end that first`,
    );
  }
  return {
    originFd: fd,
    memoryFd: libc.memfdCreate('cowbird-volume', layoutFor(blockCount).totalBytes),
    sizeBytes,
    logicalSectorBytes: isFile ? SECTOR_BYTES : logicalSectorBytes(fd),
    isFile,
    readOnly: !writable,
  };
}

function refuseOtherFormats(fd: number, path: string): void {
  const magic = Buffer.alloc(4);
  readSync(fd, magic, 0, 4, 0);
  if (magic.toString('latin1') === 'QFI\xfb') {
    throw new CowbirdError(
      'EINVAL',
      `${path} begins like a qcow2 image, not like a disk: convert it, or attach its bytes as they are with --raw`,
    );
  }
}

/** A store of its own: a file on another file system, or a disk. */
function openStore(path: string): { storeFd: number; sizeBytes: number } {
  let fd: number;
  try {
    fd = libc.open(path, libc.O_RDWR + libc.O_DIRECT);
  } catch (error) {
    // tmpfs before Linux 6.6 has no O_DIRECT; there is no writeback on it that could wait for us.
    if (errnoOfError(error) !== EINVAL) throw error;
    fd = libc.open(path, libc.O_RDWR);
  }
  const stats = fstatSync(fd);
  return { storeFd: fd, sizeBytes: stats.isFile() ? stats.size : blockDeviceSizeBytes(fd) };
}

export { HELPER_FD_FIRST };
