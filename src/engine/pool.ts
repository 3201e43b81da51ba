/** The pool of worker threads, seen from the control thread: sends them volumes, stores and sessions, hears what befalls. */
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { assert, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { MAX_WORKERS } from '../tracer/layout.js';
import type { ArmedPoint } from './fail-points.js';
import type { FromWorker, ToWorker, WorkerSession, WorkerStore, WorkerVolume } from './worker-messages.js';

export interface PoolEvents {
  attention(volumeId: string, cause: string | undefined): void;
  ioError(event: Extract<FromWorker, { type: 'ioError' }>): void;
}

interface Member {
  port: MessagePort;
  wakeFd: number;
}

const SYNC_TIMEOUT_MS = 10_000;

export class Pool {
  readonly #events: PoolEvents;
  readonly #members: Member[] = [];
  /** What a worker that joins later must hear, in order. */
  readonly #volumes = new Map<string, WorkerVolume>();
  readonly #stores = new Map<string, { generation: number; store: WorkerStore | undefined }>();
  readonly #sessions = new Map<string, WorkerSession>();
  readonly #syncs = new Map<number, { left: number; resolve: () => void }>();
  readonly #wakeBuffer: { address: number };
  #nextToken = 1;

  constructor(events: PoolEvents) {
    this.#events = events;
    const memory = libc.mapLocked(4096);
    new BigUint64Array(memory.bytes)[0] = 1n;
    this.#wakeBuffer = { address: memory.address };
  }

  get size(): number {
    return this.#members.length;
  }

  /** Makes the pool at least this large; resolves when the new workers serve. */
  async grow(size: number): Promise<void> {
    const joined: Array<Promise<void>> = [];
    while (this.#members.length < Math.min(size, MAX_WORKERS)) joined.push(this.#add());
    await Promise.all(joined);
  }

  #add(): Promise<void> {
    const { port1, port2 } = new MessageChannel();
    const wakeFd = libc.eventfd();
    const start = { number: this.#members.length, wakeFd };
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: { start, port: port2 },
      transferList: [port2],
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    });
    const member: Member = { port: port1, wakeFd };
    this.#members.push(member);
    return new Promise((resolve) => {
      port1.on('message', (message: FromWorker) => {
        if (message.type === 'ready') {
          this.#introduce(member);
          resolve();
        } else {
          this.#take(message);
        }
      });
      // A worker that ends in an exception has shared state in hand that nobody else may guess at: the whole engine ends,
      // and the keeper starts a new one over what memory says.
      worker.on('error', (error) => {
        process.stderr.write(`worker ${start.number} ended: ${messageOf(error)}\n${error.stack ?? ''}\n`);
        // Not process.exit(): that would wait for the other workers' system calls.
        process.kill(process.pid, 'SIGKILL');
      });
    });
  }

  #introduce(member: Member): void {
    for (const volume of this.#volumes.values())
      member.port.postMessage({ type: 'addVolume', volume } satisfies ToWorker);
    for (const [volumeId, { generation, store }] of this.#stores) {
      member.port.postMessage({ type: 'setStore', volumeId, generation, store } satisfies ToWorker);
    }
    for (const session of this.#sessions.values())
      member.port.postMessage({ type: 'addSession', session } satisfies ToWorker);
    this.#wake(member);
  }

  #take(message: FromWorker): void {
    if (message.type === 'attention') this.#events.attention(message.volumeId, message.cause);
    else if (message.type === 'ioError') this.#events.ioError(message);
    else if (message.type === 'synced') {
      const waiting = this.#syncs.get(message.token);
      if (waiting === undefined) return;
      waiting.left--;
      if (waiting.left === 0) {
        this.#syncs.delete(message.token);
        waiting.resolve();
      }
    }
  }

  addVolume(volume: WorkerVolume): void {
    this.#volumes.set(volume.id, volume);
    this.#broadcast({ type: 'addVolume', volume });
  }

  setStore(volumeId: string, generation: number, store: WorkerStore | undefined): void {
    assert(this.#volumes.has(volumeId), `the pool knows volume ${volumeId}`);
    this.#stores.set(volumeId, { generation, store });
    this.#broadcast({ type: 'setStore', volumeId, generation, store });
  }

  addSession(session: WorkerSession): void {
    this.#sessions.set(session.id, session);
    this.#broadcast({ type: 'addSession', session });
  }

  /** Tests only; see `fail-points.ts`. */
  armFailPoint(point: ArmedPoint): void {
    this.#broadcast({ type: 'failPoint', point });
  }

  /** Resolves when no worker will touch the session's descriptor again. */
  async removeSession(sessionId: string): Promise<void> {
    this.#sessions.delete(sessionId);
    this.#broadcast({ type: 'removeSession', sessionId });
    await this.#sync();
  }

  async removeVolume(volumeId: string): Promise<void> {
    this.#volumes.delete(volumeId);
    this.#stores.delete(volumeId);
    this.#broadcast({ type: 'removeVolume', volumeId });
    await this.#sync();
  }

  #sync(): Promise<void> {
    const token = this.#nextToken++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#syncs.delete(token);
        reject(new Error(`A worker did not answer within ${SYNC_TIMEOUT_MS} ms: an origin may hang`));
      }, SYNC_TIMEOUT_MS);
      this.#syncs.set(token, {
        left: this.#members.length,
        resolve: () => {
          clearTimeout(timer);
          resolve();
        },
      });
      this.#broadcast({ type: 'sync', token });
    });
  }

  #broadcast(message: ToWorker): void {
    for (const member of this.#members) {
      member.port.postMessage(message);
      this.#wake(member);
    }
  }

  #wake(member: Member): void {
    libc.fast.write(member.wakeFd, this.#wakeBuffer.address, 8);
  }
}
