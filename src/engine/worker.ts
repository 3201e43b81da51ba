/**
 * A worker thread of the pool: waits on all sessions and serves their requests, one at a time, in this thread from start to
 * end; or, while there are many, with their transfers side by side (`batch.ts`).
 *
 * It waits in `epoll_wait()` for the FUSE descriptors and an eventfd, never in a `read()`: a thread inside a blocking read cannot
 * be ended. Messages are taken synchronously, after the eventfd has woken it or when a generation word says that a
 * configuration is new; the thread never returns to the event loop while it lives.
 */
import { writeSync } from 'node:fs';
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { type BlockDevice, FdDevice, type IoBuffer } from '../block/device.js';
import { ASYNC_BYTES_MAX, type OnError, type SessionTarget, serveOne } from '../frontend/fuse/session.js';
import { DATA_OFFSET, MAX_TRANSFER_BYTES, type WireBuffer } from '../frontend/fuse/wire.js';
import { Epoll } from '../sys/epoll.js';
import { assert, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { VolumeMemory, Word } from '../tracer/layout.js';
import { readSnapshot } from '../tracer/snapshot-view.js';
import { runSteps, type Stepper, type Steps } from '../tracer/steps.js';
import { type RequestContext, Tracer } from '../tracer/tracer.js';
import { Batch, DEPTH } from './batch.js';
import { arm, FAIL_POINTS_ENABLED, withFailPoints } from './fail-points.js';
import { OriginRead, OriginWrite } from './origin-transfers.js';
import { SideBySide } from './side-by-side.js';
import { contextOf, type StepExecutor, SteppedRequests } from './stepped.js';
import type { FromWorker, ToWorker, WorkerSession, WorkerStart, WorkerStore, WorkerVolume } from './worker-messages.js';

/** A sleeper looks again at the latest after this time, so that a lost wake-up costs time, never a hang. */
const WAIT_MS_MAX = 100;
const STDERR = 2;
const POLL_MS = 5_000;
/** What is answered, or has an effect, only when no request is in hand. */
const END_OF_REQUESTS: ReadonlySet<ToWorker['type']> = new Set(['removeVolume', 'removeSession', 'sync', 'stop']);
/** Requests served from one session before the others are looked at again. */
const BURST = 16;
/** Requests in a row after which a worker expects more of them. */
const DEEP_AFTER = 2;
/**
 * Looks in a row that found one request at most, after which it no longer does. Fewer: of sixteen requests in hand the other worker often
 * has all but one for a moment, and one that is served from start to end holds up those that come meanwhile.
 */
const SHALLOW_AFTER = 8;
/** Requests with none behind them after which a worker looks for another one only now and then: looking costs a system call. */
const ALONE_AFTER = 8;
const LOOK_EVERY = 16;

interface Volume {
  config: WorkerVolume;
  tracer: Tracer;
  generation: number;
}

interface Session {
  config: WorkerSession;
  fd: number;
  target: SessionTarget;
  onError: OnError;
  /** Requests in a row that had none behind them. */
  aloneCount: number;
}

export class PoolWorker {
  readonly #start: WorkerStart;
  readonly #port: MessagePort;
  readonly #volumes = new Map<string, Volume>();
  /** By descriptor. */
  readonly #sessions = new Map<number, Session>();
  /** For a request that is served from start to end. */
  readonly #context: RequestContext;
  /** Those in hand that go on by steps. */
  readonly #stepped: SteppedRequests;
  readonly #epoll = new Epoll();
  readonly #wakeBuffer: IoBuffer;
  /** Requests whose transfers the kernel does side by side, as long as there are several. */
  readonly #batch = new Batch<Session>(
    (session) => session.onError,
    (session) => this.#sessionEnded(session),
  );
  readonly #sideBySide = new SideBySide();
  /** Messages that were taken in the middle of a request. */
  readonly #later: ToWorker[] = [];
  #isDeep = false;
  /** Looks in a row that found one request at most. */
  #shallowCount = 0;
  #stopping = false;

  constructor(start: WorkerStart, port: MessagePort) {
    this.#start = start;
    this.#port = port;
    this.#context = contextOf(start.number, libc.mapLocked(MAX_TRANSFER_BYTES), 0, MAX_TRANSFER_BYTES);
    this.#stepped = new SteppedRequests(start.number, DEPTH, ASYNC_BYTES_MAX);
    const wake = libc.mapLocked(8);
    this.#wakeBuffer = { bytes: new Uint8Array(wake.bytes), address: wake.address };
    this.#epoll.add(start.wakeFd, false);
  }

  /** Serves until it is told to stop. */
  run(): void {
    this.#post({ type: 'ready', ioFlusher: libc.trySetIoFlusher() });
    while (!this.#stopping) {
      const ready = this.#epoll.wait(this.#batch.count === 0 ? POLL_MS : 0);
      if (ready.includes(this.#start.wakeFd)) this.#takeMessages();
      else if (ready.length > 0) this.#serveReady(ready);
      else this.#batch.advance();
    }
    this.#post({ type: 'stopped' });
  }

  #serveReady(fds: readonly number[]): void {
    const ready = fds.map((fd) => this.#sessions.get(fd)).filter((session) => session !== undefined);
    if (this.#isDeep) this.#serveTogether(ready);
    else for (const session of ready) this.#serveSession(session);
  }

  /** Many requests at a time, until there are no longer many. */
  #serveTogether(sessions: readonly Session[]): void {
    for (let round = 0; round < BURST; round++) {
      let taken = 0;
      for (const session of sessions) taken += this.#batch.gather(session);
      if (this.#batch.count > 1 || taken > 1) this.#shallowCount = 0;
      else if (++this.#shallowCount > SHALLOW_AFTER) {
        this.#shallowCount = 0;
        this.#isDeep = false;
        this.#batch.drain();
        return;
      }
      if (this.#batch.count === 0) return;
      this.#batch.advance();
    }
  }

  /** One request at a time. Several without a pause between them are the beginning of many. */
  #serveSession(session: Session): void {
    for (let burst = 0; burst < BURST; burst++) {
      if (burst === 1 && !looksFurther(session)) return;
      const served = serveOne(session.fd, session.target, this.#batch.buffer, session.onError);
      if (served === 'empty') return;
      if (burst > 0) session.aloneCount = 0;
      if (served === 'ended') {
        this.#sessionEnded(session);
        return;
      }
      if (burst < DEEP_AFTER || !this.#batch.isPossible) continue;
      this.#isDeep = true;
      return;
    }
  }

  #sessionEnded(session: Session): void {
    if (!this.#sessions.delete(session.fd)) return;
    this.#epoll.remove(session.fd);
    this.#post({ type: 'ended', sessionId: session.config.id });
  }

  #takeMessages(): void {
    libc.fast.read(this.#start.wakeFd, this.#wakeBuffer.address, 8);
    // A message may take away what a request in hand needs.
    this.#batch.drain();
    for (const message of this.#later.splice(0)) this.#take(message);
    this.#drain(false);
  }

  /**
   * Takes messages. `inRequest`: in the middle of one, which wants the store that it is told of. An answer that says that nothing
   * is in hand any more has to wait then; its wake-up is still to come.
   */
  #drain(inRequest: boolean): void {
    for (let taken = receiveMessageOnPort(this.#port); taken !== undefined; taken = receiveMessageOnPort(this.#port)) {
      const message: ToWorker = taken.message;
      if (inRequest && END_OF_REQUESTS.has(message.type)) this.#later.push(message);
      else this.#take(message);
    }
  }

  #take(message: ToWorker): void {
    switch (message.type) {
      case 'addVolume':
        this.#addVolume(message.volume);
        break;
      case 'setStore':
        this.#setStore(message.volumeId, message.generation, message.store);
        break;
      case 'removeVolume':
        this.#volumes.delete(message.volumeId);
        break;
      case 'addSession':
        this.#addSession(message.session);
        break;
      case 'removeSession':
        this.#removeSession(message.sessionId);
        break;
      case 'sync':
        this.#post({ type: 'synced', worker: this.#start.number, token: message.token });
        break;
      case 'failPoint':
        arm(message.point);
        break;
      case 'stop':
        this.#stopping = true;
        break;
    }
  }

  #addVolume(config: WorkerVolume): void {
    const memory = new VolumeMemory(
      {
        map: (offset, lengthBytes) => {
          const part = config.memory.find((each) => each.offset === offset && each.lengthBytes === lengthBytes);
          assert(part !== undefined, () => `memory at ${offset} of volume ${config.id} is mapped`);
          return libc.viewOf(part.address, lengthBytes);
        },
      },
      config.blockCount,
    );
    const origin = new FdDevice(config.originFd, config.sizeBytes, config.originIsFile);
    const wordAddress = (word: number): number => memory.wordsAddress + word * 4;
    const volume: Volume = {
      config,
      generation: 0,
      tracer: new Tracer(memory, origin, {
        wake: (word) => libc.futexWake(wordAddress(word), 0x7fff_ffff),
        attention: (cause) => this.#post({ type: 'attention', volumeId: config.id, cause }),
        refresh: () => {
          if (memory.get(Word.GENERATION) !== volume.generation) orEnd(() => this.#drain(true));
        },
      }),
    };
    this.#volumes.set(config.id, volume);
  }

  #setStore(volumeId: string, generation: number, store: WorkerStore | undefined): void {
    const volume = this.#volume(volumeId);
    const device: BlockDevice =
      store?.device === undefined ? volume.tracer.origin : new FdDevice(store.device.fd, store.device.sizeBytes, false);
    volume.tracer.setStore(store, device);
    volume.generation = generation;
  }

  #addSession(config: WorkerSession): void {
    // With fewer workers allowed than there are, the higher ones leave the session to the lower ones.
    if (this.#start.number >= config.concurrency) return;
    const { tracer, config: volume } = this.#volume(config.volumeId);
    const target = config.kind === 'volume' ? this.#volumeTarget(tracer, volume) : this.#snapshotTarget(tracer, volume);
    const onError: OnError = (operation, error) =>
      this.#post({
        type: 'ioError',
        sessionId: config.id,
        operation,
        errno: errnoOfError(error),
        message: messageOf(error),
      });
    this.#sessions.set(config.fd, { config, fd: config.fd, target, onError, aloneCount: 0 });
    this.#epoll.add(config.fd, true);
  }

  #removeSession(id: string): void {
    for (const { config, fd } of this.#sessions.values()) {
      if (config.id !== id) continue;
      this.#sessions.delete(fd);
      this.#epoll.remove(fd);
    }
  }

  #volume(id: string): Volume {
    const volume = this.#volumes.get(id);
    assert(volume !== undefined, `worker knows volume ${id}`);
    return volume;
  }

  #volumeTarget(tracer: Tracer, volume: WorkerVolume): SessionTarget {
    const { origin } = tracer;
    const executor = this.#executor(tracer);
    const run = (steps: Stepper): void => this.#run(steps, executor);
    const write = (context: RequestContext, buffer: WireBuffer, lengthBytes: number, offset: number): Stepper =>
      withFailPoints(tracer.write(context, buffer, DATA_OFFSET, lengthBytes, offset), context.scratch);
    // Most writes need no steps: nothing is saved before them. Named points lie between steps.
    const isReady = (lengthBytes: number, offset: number): boolean =>
      !FAIL_POINTS_ENABLED && tracer.begin(this.#context, lengthBytes, offset);
    return {
      sizeBytes: volume.sizeBytes,
      readOnly: volume.readOnly,
      read: (buffer, lengthBytes, offset) => {
        this.#settle();
        origin.read(buffer, DATA_OFFSET, lengthBytes, offset);
      },
      beginRead: (buffer, lengthBytes, offset) => new OriginRead(origin, volume.originFd, buffer, lengthBytes, offset),
      write: (buffer, lengthBytes, offset) => {
        this.#settle();
        if (!isReady(lengthBytes, offset)) {
          run(write(this.#context, buffer, lengthBytes, offset));
          return;
        }
        try {
          origin.write(buffer, DATA_OFFSET, lengthBytes, offset);
        } finally {
          tracer.end(this.#context);
        }
      },
      beginWrite: (buffer, lengthBytes, offset) => {
        if (isReady(lengthBytes, offset))
          return new OriginWrite(tracer, this.#context, volume.originFd, buffer, lengthBytes, offset);
        return this.#stepped.begin((context) => write(context, buffer, lengthBytes, offset), executor);
      },
      zero: (offset, lengthBytes, unmap) =>
        run(withFailPoints(tracer.zero(this.#context, offset, lengthBytes, unmap), this.#context.scratch)),
      flush: () => run(tracer.flush()),
    };
  }

  #snapshotTarget(tracer: Tracer, volume: WorkerVolume): SessionTarget {
    const executor = this.#executor(tracer);
    const read = (scratch: IoBuffer, buffer: WireBuffer, lengthBytes: number, offset: number): Steps =>
      readSnapshot(tracer, { buffer, at: DATA_OFFSET, scratch }, lengthBytes, offset);
    const readOnly = (): never => {
      throw new Error('A snapshot is read-only');
    };
    return {
      sizeBytes: volume.sizeBytes,
      readOnly: true,
      read: (buffer, lengthBytes, offset) =>
        this.#run(read(this.#context.scratch, buffer, lengthBytes, offset), executor),
      beginRead: (buffer, lengthBytes, offset) =>
        this.#stepped.begin(({ scratch }) => read(scratch, buffer, lengthBytes, offset), executor),
      write: readOnly,
      zero: readOnly,
      flush: () => undefined,
    };
  }

  /** Runs a request from start to end. Others that are in hand get on while it waits: it may wait for one of them. */
  #run(steps: Stepper, executor: StepExecutor): void {
    const wait = (word: number, value: number): void => {
      if (this.#batch.count === 0) executor.sleep(word, value, WAIT_MS_MAX);
      else orEnd(() => this.#batch.advance((timeoutMs) => executor.sleep(word, value, timeoutMs)));
    };
    runSteps(steps, wait, (step) => {
      this.#settle();
      executor.perform(step);
    });
  }

  /** Before this thread does one thing: what others have in hand is answered first, and holds up nobody meanwhile. */
  #settle(): void {
    if (this.#batch.count > 0) orEnd(() => this.#batch.settle());
  }

  #executor({ memory }: Tracer): StepExecutor {
    return {
      isStill: (word, value) => memory.get(word) === value,
      sleep: (word, value, timeoutMs) => void libc.futexWait(memory.wordsAddress + word * 4, value, timeoutMs),
      perform: (step) => this.#sideBySide.perform(step),
    };
  }

  #post(message: FromWorker): void {
    this.#port.postMessage(message);
  }
}

/**
 * For what is no part of the request in whose middle it is done: an error there is none of the request, and what it leaves
 * behind is not known. The process ends, the keeper starts another one, and the requests are asked for again.
 */
function orEnd(action: () => void): void {
  try {
    action();
  } catch (error) {
    writeSync(STDERR, `A worker cannot go on: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.kill(process.pid, 'SIGKILL');
    throw error;
  }
}

/** Whether to look for a request behind the first one. */
function looksFurther(session: Session): boolean {
  session.aloneCount++;
  return session.aloneCount <= ALONE_AFTER || session.aloneCount % LOOK_EVERY === 0;
}

if (parentPort !== null) {
  const { start, port }: { start: WorkerStart; port: MessagePort } = workerData;
  new PoolWorker(start, port).run();
  process.exit(0);
}
