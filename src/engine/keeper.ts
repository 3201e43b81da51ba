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
import { type ChildProcess, fork } from 'node:child_process';
import { CowbirdError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { whenEnded } from './child-end.js';
import { reportOutput } from './child-output.js';
import type { EventInput } from './events.js';
import { Helpers } from './helpers.js';
import { openOrigin, openStore } from './origins.js';
import { sameName } from './process-name.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import type { VolumeRecord } from './records.js';
import { ChannelEnded, childChannel, Rpc } from './rpc.js';
import type { DoneOperation, KeeperCall, KeeperCalls } from './services.js';
import type { Outcome } from './settling.js';

/** First pause before a dead engine is started again; doubled up to the longest. */
const BACKOFF_MS_MIN = 10;
const BACKOFF_MS_MAX = 500;
/** An engine of another version will not be there sooner than somebody installs it. */
const REFUSED_RETRY_MS = 3_000;
const READS: ReadonlySet<string> = new Set(['list', 'info', 'changes', 'getFreeMinor']);
const PING_MS_MAX = 500;
/** How often an operation is begun again after it was cut off and undone, and a question asked again. */
const ATTEMPTS_MAX = 5;

export interface KeeperOptions {
  /** Program of the engine's process. */
  enginePath: string;
  /** What the engine gets with its start, beside the records. */
  engineStart: unknown;
  onEvent(event: EventInput): void;
  /** Called before each process is started. */
  beforeProcess?(): void;
  /** Starts the engine's process. @default fork */
  startProcess?(path: string): ChildProcess;
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
  readonly #helpers: Helpers;
  /** Descriptors opened for the engine and not closed yet. */
  readonly #owned = new Set<number>();
  /** Operations that are complete and whose answer has not been given yet. */
  readonly #done = new Map<number, DoneOperation>();
  #nextRequest = 1;
  #engine: { child: ChildProcess; rpc: Rpc; ready: Promise<void>; isReady: boolean } | undefined;
  #stopping = false;
  #restarts = 0;
  #backoffMs = BACKOFF_MS_MIN;
  #again: NodeJS.Timeout | undefined;
  #waiting: Array<() => void> = [];
  #engineVersion: string | null = null;
  /** Why the engine on disk cannot be used, from its refusal until one starts. */
  #refusal: CowbirdError | undefined;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#helpers = new Helpers(
      (event) => options.onEvent(event),
      () => this.#endHanging(),
      () => options.beforeProcess?.(),
    );
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

  /** Starts the engine; resolves when it serves what the records hold. An engine that cannot is ended, and started again. */
  async start(): Promise<void> {
    const start = this.#options.startProcess ?? startEngine;
    this.#options.beforeProcess?.();
    const child = start(this.#options.enginePath);
    reportOutput(child, 'engine', this.#options.onEvent);
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
    const engine = { child, rpc, ready, isReady: false };
    this.#engine = engine;
    child.on('error', (error) =>
      this.#options.onEvent({ event: 'engine.error', level: 'error', message: `The engine: ${messageOf(error)}` }),
    );
    whenEnded(child, (code, signal) => this.#engineEnded(code, signal));
    try {
      await ready;
      engine.isReady = true;
    } catch (error) {
      this.#noteRefusal(error);
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** An engine of another version has touched nothing. The volumes wait; callers are told why instead of waiting too. */
  #noteRefusal(error: unknown): void {
    if (!(error instanceof CowbirdError) || error.code !== 'EPROTO') return;
    this.#refusal = error;
    this.#backoffMs = REFUSED_RETRY_MS;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /**
   * One operation of the engine; waits while it is being started again. When the engine dies in the middle of it, the next
   * one says what became of it: complete, and the answer is given; undone, and it is begun again; or neither, and the
   * error says so.
   */
  async request(operation: string, params: unknown): Promise<unknown> {
    const requestId = this.#nextRequest++;
    for (let attempt = 1; ; attempt++) {
      const answer = await this.#ask('request', { requestId, operation, params });
      if (answer !== CUT_OFF) {
        this.#done.delete(requestId);
        return answer;
      }
      const outcome: Outcome = READS.has(operation) ? { kind: 'undone' } : await this.#outcomeOf(requestId);
      if (outcome.kind === 'failed') throw new CowbirdError('EPIPE', outcome.message, { outcome: 'partial' });
      if (outcome.kind === 'finished') return answerOf(outcome.finished);
      if (attempt === ATTEMPTS_MAX) {
        const undone = READS.has(operation) ? '' : ', which was undone each time';
        const message = `The engine ended ${attempt} times in the middle of ${operation}${undone}: see the daemon's log`;
        throw new CowbirdError('EPIPE', message, { outcome: 'failed' });
      }
    }
  }

  /** Whether an engine answers at once: not one that is being started, nor one that waits for a device. */
  async engineAnswers(): Promise<boolean> {
    const ping = this.#engine?.isReady === true ? this.#engine.rpc.call('ping', {}, PING_MS_MAX) : undefined;
    return ping === undefined
      ? false
      : ping.then(
          () => true,
          () => false,
        );
  }

  /** Calls the engine that serves, or the next one; {@link CUT_OFF} when it ended before it answered. */
  async #ask(call: string, params: unknown): Promise<unknown> {
    for (;;) {
      while (this.#engine === undefined) {
        if (this.#refusal !== undefined) throw this.#refusal;
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
      const engine = this.#engine;
      let isAsked = false;
      try {
        await engine.ready;
        isAsked = true;
        return await engine.rpc.call(call, params);
      } catch (error) {
        if (!(error instanceof ChannelEnded)) throw error;
        // Its exit is heard a moment later.
        await new Promise((resolve) => setTimeout(resolve, BACKOFF_MS_MIN));
        // One that ended before it served has nothing to do with the call.
        if (isAsked) return CUT_OFF;
      }
    }
  }

  async #outcomeOf(requestId: number): Promise<Outcome> {
    for (;;) {
      const early = this.#done.get(requestId);
      const answer = early === undefined ? await this.#ask('outcome', { requestId }) : CUT_OFF;
      const done = this.#done.get(requestId);
      this.#done.delete(requestId);
      if (done !== undefined) return { kind: 'finished', finished: done };
      if (answer !== CUT_OFF) return answer as Outcome;
    }
  }

  /** Ends the engine by SIGKILL and starts a new one over the same volumes; at once where none could be started. */
  async restart(): Promise<void> {
    const old = this.#engine;
    if (old === undefined) return this.#startAgain();
    const started = new Promise<void>((resolve) => this.#waiting.push(resolve));
    old.child.kill('SIGKILL');
    await started;
  }

  /** A helper holds a file system frozen for an engine that does not go on. */
  #endHanging(): void {
    const message = 'The engine hangs while a file system is frozen: it is ended, and started again';
    this.#options.onEvent({ event: 'engine.hangs', level: 'error', message });
    this.#engine?.child.kill('SIGKILL');
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
    this.#helpers.killAll();
  }

  #engineEnded(code: number | null, signal: NodeJS.Signals | null): void {
    this.#engine = undefined;
    this.#helpers.dismissAll();
    this.#closeUnnamed();
    if (this.#stopping) return;
    this.#restarts++;
    this.#options.onEvent({
      event: 'engine.ended',
      level: 'error',
      message: `The engine ended (${signal ?? `exit code ${code}`}); starting it again`,
    });
    this.#startLater();
  }

  #startLater(): void {
    if (this.#again !== undefined) return;
    // Whatever it fails with was reported, and it is tried again.
    this.#again = setTimeout(() => void this.#startAgain().catch(() => undefined), this.#backoffMs);
    this.#backoffMs = Math.min(BACKOFF_MS_MAX, this.#backoffMs * 2);
  }

  /** Starts an engine where there is none. One that could not even be spawned leaves nothing that would end: tried again too. */
  async #startAgain(): Promise<void> {
    clearTimeout(this.#again);
    this.#again = undefined;
    if (this.#stopping || this.#engine !== undefined) return;
    try {
      await this.start();
    } catch (error) {
      const message = `The engine did not start: ${messageOf(error)}`;
      this.#options.onEvent({ event: 'engine.failed', level: 'error', message });
      if (this.#engine === undefined) this.#startLater();
      throw error;
    }
  }

  /** What the dead engine had opened and no record names belongs to nobody: whoever waits for it gets an error. */
  #closeUnnamed(): void {
    const named = new Set(this.volumes.flatMap(descriptorsOf));
    for (const fd of this.#owned) if (!named.has(fd)) this.#close(fd);
  }

  #own(...fds: number[]): void {
    for (const fd of fds) this.#owned.add(fd);
  }

  /** Closing twice would close somebody else's. */
  #close(fd: number): void {
    if (this.#owned.delete(fd)) libc.close(fd);
  }

  #put(volumes: VolumeRecord[], done: DoneOperation | undefined): null {
    for (const volume of volumes) this.#volumes.set(volume.id, volume);
    if (done !== undefined) this.#done.set(done.requestId, done);
    return null;
  }

  readonly #calls: Implementation = {
    openOrigin: async ({ path, readOnly, raw }) => {
      const opened = openOrigin(path, readOnly, raw);
      this.#own(opened.originFd, opened.memoryFd);
      return opened;
    },
    openFuse: async () => {
      const fuseFd = libc.open('/dev/fuse', libc.O_RDWR + libc.O_NONBLOCK);
      this.#own(fuseFd);
      return { fuseFd };
    },
    openStore: async ({ path }) => {
      const opened = openStore(path);
      this.#own(opened.storeFd);
      return opened;
    },
    closeFds: async ({ fds }) => {
      for (const fd of fds) this.#close(fd);
      return null;
    },
    putVolume: async ({ volume, done }) => this.#put([volume], done),
    putVolumes: async ({ volumes, done }) => this.#put(volumes, done),
    dropVolume: async ({ id, done }) => {
      this.#volumes.delete(id);
      if (done !== null) this.#done.set(done.requestId, done);
      return null;
    },
    oldHelpersGone: async () => {
      await this.#helpers.gone();
      return null;
    },
    startHelper: async ({ protocol }) => ({ helper: this.#helpers.start(protocol) }),
    callHelper: ({ helper, call, params, timeoutMs }) => this.#helpers.call(helper, call, params, timeoutMs),
    endHelper: async ({ helper }) => {
      await this.#helpers.end(helper);
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
}

/** In place of an answer: the engine ended before it gave one. */
const CUT_OFF = Symbol('cut off');

function startEngine(path: string): ChildProcess {
  return fork(path, [], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], execArgv: process.execArgv, ...sameName() });
}

function answerOf({ result, problem }: Omit<DoneOperation, 'requestId'>): unknown {
  if (problem !== undefined) throw new CowbirdError(problem.code, problem.message, { outcome: 'partial' });
  return result;
}

/** Every descriptor of the keeper that a record names. */
function descriptorsOf({ opened, device, snapshot, pending }: VolumeRecord): number[] {
  const named = [opened.originFd, opened.memoryFd, device.fuseFd];
  for (const each of [snapshot, pending?.old, pending?.next]) {
    if (each?.storeFd != null) named.push(each.storeFd);
    if (each?.device != null) named.push(each.device.fuseFd);
  }
  return named;
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
