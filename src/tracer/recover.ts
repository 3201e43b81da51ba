/**
 * What a new engine does with the shared memory that a dead one left, before it serves a volume.
 *
 * The dead one's workers were reaped: whatever they had in hand is unanswered and comes again. So claims, busy marks, locks
 * and counts of writes in flight belong to nobody. A block that was claimed and not published is still old on the origin,
 * and is saved when its write comes again; the place it had taken in the store stays unused.
 */
import { CLAIM_COUNT, countBits, HeaderState, MAX_WORKERS, type VolumeMemory, Word } from './layout.js';
import type { Steps } from './steps.js';
import type { RequestContext, Tracer } from './tracer.js';

/** Makes the memory of a volume fit to serve again. Its store must have been set. */
export function* recover(tracer: Tracer, context: RequestContext): Steps {
  const { memory } = tracer;
  forgetInFlight(memory);
  // A worker that died between setting bits and counting them left the count behind.
  memory.set(Word.CHANGED, countBits(memory.map) | 0);
  // Whether the clean header reached the disk is not known: as if it had.
  if (memory.get(Word.HEADER_STATE) === HeaderState.CLEANING) {
    memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
    yield* tracer.makeDirty(context);
  }
}

function forgetInFlight(memory: VolumeMemory): void {
  for (let worker = 0; worker < MAX_WORKERS; worker++) memory.set(Word.BUSY + worker, 0);
  memory.set(Word.STORE_WRITES, 0);
  memory.set(Word.HEADER_LOCK, 0);
  memory.set(Word.GATE, 0);
  for (let block = 0; block < CLAIM_COUNT; block++) memory.set(memory.claimWord(block), 0);
}
