/**
 * Holding writes back for the instant of a switch.
 *
 * Closing: set the word, then wait until no worker is inside a write of this volume, for a bounded time. Only memory is
 * changed while writes are held: an I/O could wait, through another volume, for a worker that waits at this gate.
 */
import { CowbirdError } from '../sys/errors.js';
import { Gate, MAX_WORKERS, type VolumeMemory, Word } from './layout.js';
import type { Steps } from './steps.js';

/** Looks at busy workers, a millisecond apart in the engine, before the gate opens again. */
const LOOKS_MAX = 5_000;

/**
 * Closes the gate, runs `change` (memory only), opens the gate. Returns what it returned.
 *
 * @throws {CowbirdError} ETIMEDOUT when the writes in hand did not end, or the gate was opened by a watchdog; then `change`
 * was not run.
 */
export function* whileGateClosed<T>(memory: VolumeMemory, wake: (word: number) => void, change: () => T): Steps<T> {
  memory.set(Word.GATE, Gate.CLOSED);
  try {
    yield* untilNobodyWrites(memory);
    if (Atomics.compareExchange(memory.words, Word.GATE, Gate.CLOSED, Gate.SWITCHING) !== Gate.CLOSED) {
      throw gateError('The pause of writes took too long, and was ended from outside');
    }
    return change();
  } finally {
    memory.set(Word.GATE, Gate.OPEN);
    wake(Word.GATE);
  }
}

function* untilNobodyWrites(memory: VolumeMemory): Steps {
  let looks = 0;
  for (let worker = 0; worker < MAX_WORKERS; worker++) {
    const word = Word.BUSY + worker;
    for (let busy = memory.get(word); busy !== 0; busy = memory.get(word)) {
      if (++looks > LOOKS_MAX) throw gateError('Writes in hand did not end: the origin may hang');
      yield { kind: 'wait', word, value: busy };
    }
  }
}

function gateError(message: string): CowbirdError {
  return new CowbirdError('ETIMEDOUT', message, { outcome: 'failed' });
}
