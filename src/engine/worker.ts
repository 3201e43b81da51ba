/**
 * A worker thread of the pool: waits on all sessions and serves their requests, one at a time, in this thread from start to
 * end; or, while there are many, with their transfers side by side (`batch.ts`).
 *
 * It waits in `epoll_wait()` for the FUSE descriptors and an eventfd, never in a `read()`: a thread inside a blocking read cannot
 * be ended. Messages are taken synchronously, after the eventfd has woken it or when a generation word says that a
 * configuration is new; the thread never returns to the event loop while it lives.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { type BlockDevice, FdDevice, type IoBuffer } from '../block/device.js';
import { type OnError, type SessionTarget, serveOne, type Transfer } from '../frontend/fuse/session.js';
import { DATA_OFFSET, MAX_TRANSFER_BYTES, type WireBuffer } from '../frontend/fuse/wire.js';
import { Epoll } from '../sys/epoll.js';
import { assert, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { VolumeMemory, Word } from '../tracer/layout.js';
import { readSnapshot } from '../tracer/snapshot-view.js';
import { performIo, runSteps, runStepsUntil, type Step, type Steps } from '../tracer/steps.js';
import { type RequestContext, Tracer } from '../tracer/tracer.js';
import { Batch } from './batch.js';
import { arm, FAIL_POINTS_ENABLED, withFailPoints } from './fail-points.js';
import { SideBySide } from './side-by-side.js';
import type { FromWorker, ToWorker, WorkerSession, WorkerStart, WorkerStore, WorkerVolume } from './worker-messages.js';

/** A sleeper looks again at the latest after this time, so that a lost wake-up costs time, never a hang. */
const WAIT_MS_MAX = 100;
const POLL_MS = 5_000;
/** What is answered, or has an effect, only when no request is in hand. */
const END_OF_REQUESTS: ReadonlySet<ToWorker['type']> = new Set(['removeVolume', 'removeSession', 'sync', 'stop']);
/** Requests served from one session before the others are looked at again. */
const BURST = 16;
/** Requests in a row after which a worker expects more of them. */
const DEEP_AFTER = 2;

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
}

export class PoolWorker {
  readonly #start: WorkerStart;
  readonly #port: MessagePort;
  readonly #volumes = new Map<string, Volume>();
  /** By descriptor. */
  readonly #sessions = new Map<number, Session>();
  readonly #context: RequestContext;
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
  #stopping = false;

  constructor(start: WorkerStart, port: MessagePort) {
    this.#start = start;
    this.#port = port;
    const scratch = libc.mapLocked(MAX_TRANSFER_BYTES);
    this.#context = {
      worker: start.number,
      scratch: { bytes: new Uint8Array(scratch.bytes), address: scratch.address },
    };
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
      else this.#batch.reap();
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
      if (this.#batch.count <= 1 && taken <= 1) {
        this.#isDeep = false;
        this.#batch.drain();
        return;
      }
      this.#batch.reap();
    }
  }

  /** One request at a time. Several without a pause between them are the beginning of many. */
  #serveSession(session: Session): void {
    for (let burst = 0; burst < BURST; burst++) {
      const served = serveOne(session.fd, session.target, this.#batch.buffer, session.onError);
      if (served === 'empty') return;
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
          if (memory.get(Word.GENERATION) !== volume.generation) this.#drain(true);
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
    this.#sessions.set(config.fd, { config, fd: config.fd, target, onError });
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
    const context = this.#context;
    const wait = this.#waiter(tracer);
    const write = (buffer: WireBuffer, lengthBytes: number, offset: number): Steps =>
      withFailPoints(tracer.write(context, buffer, DATA_OFFSET, lengthBytes, offset), context.scratch);
    // Most writes need no steps: nothing is saved before them. Named points lie between steps.
    const isReady = (lengthBytes: number, offset: number): boolean =>
      !FAIL_POINTS_ENABLED && tracer.begin(context, lengthBytes, offset);
    const lastTransfer = (buffer: WireBuffer, lengthBytes: number, offset: number): Transfer => ({
      isWrite: true,
      fd: volume.originFd,
      lengthBytes,
      offset,
      done: () => tracer.end(context),
      again: () => {
        try {
          tracer.origin.write(buffer, DATA_OFFSET, lengthBytes, offset);
        } finally {
          tracer.end(context);
        }
      },
    });
    return {
      sizeBytes: volume.sizeBytes,
      readOnly: volume.readOnly,
      read: (buffer, lengthBytes, offset) => tracer.origin.read(buffer, DATA_OFFSET, lengthBytes, offset),
      beginRead: (buffer, lengthBytes, offset) => ({
        isWrite: false,
        fd: volume.originFd,
        lengthBytes,
        offset,
        done: () => undefined,
        again: () => tracer.origin.read(buffer, DATA_OFFSET, lengthBytes, offset),
      }),
      write: (buffer, lengthBytes, offset) => {
        if (!isReady(lengthBytes, offset)) {
          runSteps(write(buffer, lengthBytes, offset), wait);
          return;
        }
        try {
          tracer.origin.write(buffer, DATA_OFFSET, lengthBytes, offset);
        } finally {
          tracer.end(context);
        }
      },
      beginWrite: (buffer, lengthBytes, offset) => {
        if (isReady(lengthBytes, offset)) return lastTransfer(buffer, lengthBytes, offset);
        const steps = write(buffer, lengthBytes, offset);
        return beginLastStep(steps, wait, buffer, volume.originFd);
      },
      zero: (offset, lengthBytes, unmap) =>
        runSteps(withFailPoints(tracer.zero(context, offset, lengthBytes, unmap), context.scratch), wait),
      flush: () => runSteps(tracer.flush(), wait),
    };
  }

  #snapshotTarget(tracer: Tracer, volume: WorkerVolume): SessionTarget {
    const wait = this.#waiter(tracer);
    const readOnly = (): never => {
      throw new Error('A snapshot is read-only');
    };
    return {
      sizeBytes: volume.sizeBytes,
      readOnly: true,
      read: (buffer, lengthBytes, offset) =>
        runSteps(
          readSnapshot(tracer, { buffer, at: DATA_OFFSET, scratch: this.#context.scratch }, lengthBytes, offset),
          wait,
          (step) => this.#sideBySide.perform(step),
        ),
      write: readOnly,
      zero: readOnly,
      flush: () => undefined,
    };
  }

  #waiter(tracer: Tracer): (word: number, value: number) => void {
    return (word, value) => {
      // Whoever is waited for may wait for what this worker has in hand.
      if (this.#batch.count > 0) this.#batch.drain();
      libc.futexWait(tracer.memory.wordsAddress + word * 4, value, WAIT_MS_MAX);
    };
  }

  #post(message: FromWorker): void {
    this.#port.postMessage(message);
  }
}

/** Runs a write up to its last step, the transfer from its own buffer. Undefined: there was none, and it has ended. */
function beginLastStep(
  steps: Steps,
  wait: (word: number, value: number) => void,
  buffer: WireBuffer,
  fd: number,
): Transfer | undefined {
  const isTransfer = (step: Step): boolean => step.kind === 'write' && step.buffer === buffer;
  const next = runStepsUntil(steps, wait, isTransfer);
  if (next.done === true) return undefined;
  const step = next.value;
  assert(step.kind === 'write', 'the last step of a write is one');
  return {
    isWrite: true,
    fd,
    lengthBytes: step.lengthBytes,
    offset: step.offset,
    done: () => runSteps(steps, wait),
    again: () => runSteps(steps, wait, performIo, next),
  };
}

if (parentPort !== null) {
  const { start, port }: { start: WorkerStart; port: MessagePort } = workerData;
  new PoolWorker(start, port).run();
  process.exit(0);
}
