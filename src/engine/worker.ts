/**
 * A worker thread of the pool: waits on all sessions, serves one request at a time, in this thread from start to end.
 *
 * It waits in `poll()` over the FUSE descriptors and an eventfd, never in a `read()`: a thread inside a blocking read cannot
 * be ended. Messages are taken synchronously, after the eventfd has woken it or when a generation word says that a
 * configuration is new; the thread never returns to the event loop while it lives.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { type BlockDevice, FdDevice, type IoBuffer } from '../block/device.js';
import { type SessionTarget, serveOne } from '../frontend/fuse/session.js';
import { BUFFER_BYTES, DATA_OFFSET, MAX_TRANSFER_BYTES, WireBuffer } from '../frontend/fuse/wire.js';
import { assert, errnoOfError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { VolumeMemory, Word } from '../tracer/layout.js';
import { readSnapshot } from '../tracer/snapshot-view.js';
import { runSteps } from '../tracer/steps.js';
import { type RequestContext, Tracer } from '../tracer/tracer.js';
import { arm, withFailPoints } from './fail-points.js';
import type { FromWorker, ToWorker, WorkerSession, WorkerStart, WorkerStore, WorkerVolume } from './worker-messages.js';

/** A sleeper looks again at the latest after this time, so that a lost wake-up costs time, never a hang. */
const WAIT_MS_MAX = 100;
const POLL_MS = 5_000;
const POLLIN = 1;
const POLLFD_BYTES = 8;
const SESSIONS_MAX = 1024;
/** Requests served from one session before the others are looked at again. */
const BURST = 16;

interface Volume {
  config: WorkerVolume;
  tracer: Tracer;
  generation: number;
}

interface Session {
  config: WorkerSession;
  target: SessionTarget;
}

export class PoolWorker {
  readonly #start: WorkerStart;
  readonly #port: MessagePort;
  readonly #volumes = new Map<string, Volume>();
  #sessions: Session[] = [];
  readonly #buffer: WireBuffer;
  readonly #context: RequestContext;
  readonly #pollSet: { view: DataView; address: number };
  readonly #wakeBuffer: IoBuffer;
  #stopping = false;

  constructor(start: WorkerStart, port: MessagePort) {
    this.#start = start;
    this.#port = port;
    const wire = libc.mapLocked(BUFFER_BYTES);
    this.#buffer = new WireBuffer(wire.bytes, wire.address);
    const scratch = libc.mapLocked(MAX_TRANSFER_BYTES);
    this.#context = {
      worker: start.number,
      scratch: { bytes: new Uint8Array(scratch.bytes), address: scratch.address },
    };
    const poll = libc.mapLocked(SESSIONS_MAX * POLLFD_BYTES + 4096);
    this.#pollSet = { view: new DataView(poll.bytes), address: poll.address };
    const wakeOffset = SESSIONS_MAX * POLLFD_BYTES;
    this.#wakeBuffer = { bytes: new Uint8Array(poll.bytes, wakeOffset, 8), address: poll.address + wakeOffset };
  }

  /** Serves until it is told to stop. */
  run(): void {
    this.#post({ type: 'ready', ioFlusher: libc.trySetIoFlusher() });
    while (!this.#stopping) {
      const count = this.#fillPollSet();
      libc.fast.poll(this.#pollSet.address, count, POLL_MS);
      if (this.#isReady(0)) this.#takeMessages();
      else this.#serveReady();
    }
    this.#post({ type: 'stopped' });
  }

  #fillPollSet(): number {
    const { view } = this.#pollSet;
    const put = (slot: number, fd: number): void => {
      view.setInt32(slot * POLLFD_BYTES, fd, true);
      view.setUint32(slot * POLLFD_BYTES + 4, POLLIN, true);
    };
    put(0, this.#start.wakeFd);
    assert(this.#sessions.length < SESSIONS_MAX, 'the poll set holds all sessions');
    this.#sessions.forEach((session, i) => {
      put(i + 1, session.config.fd);
    });
    return this.#sessions.length + 1;
  }

  #isReady(slot: number): boolean {
    return this.#pollSet.view.getUint16(slot * POLLFD_BYTES + 6, true) !== 0;
  }

  #serveReady(): void {
    // A copy: serving may change the list.
    const ready = this.#sessions.filter((_, i) => this.#isReady(i + 1));
    for (const session of ready) this.#serveSession(session);
  }

  #serveSession(session: Session): void {
    for (let burst = 0; burst < BURST; burst++) {
      const served = serveOne(session.config.fd, session.target, this.#buffer, (operation, error) =>
        this.#post({
          type: 'ioError',
          sessionId: session.config.id,
          operation,
          errno: errnoOfError(error),
          message: messageOf(error),
        }),
      );
      if (served === 'empty') return;
      if (served === 'ended') {
        this.#sessions = this.#sessions.filter((other) => other !== session);
        this.#post({ type: 'ended', sessionId: session.config.id });
        return;
      }
    }
  }

  #takeMessages(): void {
    libc.fast.read(this.#start.wakeFd, this.#wakeBuffer.address, 8);
    this.#drain();
  }

  #drain(): void {
    for (let taken = receiveMessageOnPort(this.#port); taken !== undefined; taken = receiveMessageOnPort(this.#port)) {
      const message: ToWorker = taken.message;
      this.#take(message);
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
        this.#sessions = this.#sessions.filter((session) => session.config.id !== message.sessionId);
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
      { map: (offset, lengthBytes) => libc.mapShared(config.memoryFd, offset, lengthBytes) },
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
          if (memory.get(Word.GENERATION) !== volume.generation) this.#drain();
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
    this.#sessions.push({ config, target });
  }

  #volume(id: string): Volume {
    const volume = this.#volumes.get(id);
    assert(volume !== undefined, `worker knows volume ${id}`);
    return volume;
  }

  #volumeTarget(tracer: Tracer, volume: WorkerVolume): SessionTarget {
    const context = this.#context;
    const wait = this.#waiter(tracer);
    return {
      sizeBytes: volume.sizeBytes,
      readOnly: volume.readOnly,
      read: (buffer, lengthBytes, offset) => tracer.origin.read(buffer, DATA_OFFSET, lengthBytes, offset),
      write: (buffer, lengthBytes, offset) =>
        runSteps(
          withFailPoints(tracer.write(context, buffer, DATA_OFFSET, lengthBytes, offset), context.scratch),
          wait,
        ),
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
        runSteps(readSnapshot(tracer, buffer, DATA_OFFSET, lengthBytes, offset), wait),
      write: readOnly,
      zero: readOnly,
      flush: () => undefined,
    };
  }

  #waiter(tracer: Tracer): (word: number, value: number) => void {
    return (word, value) => {
      libc.futexWait(tracer.memory.wordsAddress + word * 4, value, WAIT_MS_MAX);
    };
  }

  #post(message: FromWorker): void {
    this.#port.postMessage(message);
  }
}

if (parentPort !== null) {
  const { start, port }: { start: WorkerStart; port: MessagePort } = workerData;
  new PoolWorker(start, port).run();
  process.exit(0);
}
