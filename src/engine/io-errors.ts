/**
 * I/O errors of devices, as events: one a second and device at most, so that a disk that has gone under a busy file system fills
 * neither the log nor the memory of whoever listens.
 */
import type { EventInput } from './events.js';
import type { FromWorker } from './worker-messages.js';

type IoError = Extract<FromWorker, { type: 'ioError' }>;

const EVERY_MS = 1_000;

interface Held {
  /** Failed since the last event. */
  count: number;
  last: IoError;
}

export class IoErrors {
  readonly #emit: (event: EventInput) => void;
  readonly #everyMs: number;
  /** Devices of which an event was sent less than that ago. */
  readonly #held = new Map<string, Held>();

  constructor(emit: (event: EventInput) => void, everyMs = EVERY_MS) {
    this.#emit = emit;
    this.#everyMs = everyMs;
  }

  /** The first one is told at once; those of the time after it together, at its end, with the last of them as the example. */
  failed(error: IoError): void {
    const held = this.#held.get(error.sessionId);
    if (held !== undefined) {
      held.count++;
      held.last = error;
      return;
    }
    this.#tell(error, 1);
  }

  #tell(error: IoError, count: number): void {
    const { sessionId, operation, errno, message } = error;
    const others = count === 1 ? '' : ` (the last of ${count} that failed within a second)`;
    this.#emit({
      event: 'io.error',
      level: 'error',
      message: `${sessionId}: ${operation}: ${message}${others}`,
      device: sessionId,
      operation,
      errno,
      count,
    });
    this.#held.set(sessionId, { count: 0, last: error });
    setTimeout(() => this.#goOn(sessionId), this.#everyMs);
  }

  #goOn(sessionId: string): void {
    const held = this.#held.get(sessionId);
    this.#held.delete(sessionId);
    if (held !== undefined && held.count > 0) this.#tell(held.last, held.count);
  }
}
