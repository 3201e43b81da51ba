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

/** A volume whose writes are to be held. */
export interface Gated {
  memory: VolumeMemory;
  wake(word: number): void;
}

/**
 * Closes the gates of all volumes, runs `change` (memory only), opens the gates. Returns what it returned.
 *
 * The order makes several volumes' switches one instant: the first word of any of them changes when every gate is closed and
 * nobody writes, and the first gate opens when every word is changed. So a write that was answered before another one was
 * begun, on whichever volumes, is never missing where the other one is. And whoever finds one volume switched, after the
 * engine's end, knows that nothing was written on the others since: he may switch them then.
 *
 * @throws {CowbirdError} ETIMEDOUT when the writes in hand did not end, or a gate was opened by a watchdog; then `change`
 * was not run.
 */
export function* whileGatesClosed<T>(volumes: readonly Gated[], change: () => T): Steps<T> {
  for (const { memory } of volumes) memory.set(Word.GATE, Gate.CLOSED);
  try {
    for (const { memory } of volumes) yield* untilNobodyWrites(memory);
    for (const { memory } of volumes) {
      if (Atomics.compareExchange(memory.words, Word.GATE, Gate.CLOSED, Gate.SWITCHING) !== Gate.CLOSED) {
        throw gateError('The pause of writes took too long, and was ended from outside');
      }
    }
    return change();
  } finally {
    for (const { memory, wake } of volumes) {
      memory.set(Word.GATE, Gate.OPEN);
      wake(Word.GATE);
    }
  }
}

/** {@link whileGatesClosed} for one volume. */
export function whileGateClosed<T>(memory: VolumeMemory, wake: (word: number) => void, change: () => T): Steps<T> {
  return whileGatesClosed([{ memory, wake }], change);
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
