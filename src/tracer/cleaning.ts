/**
 * Going CLEAN: what a COW file needs on disk so that tracking can go on after the daemon has ended.
 *
 * Order: under the gate say CLEANING (no write is in hand then, so the index written next misses none); index, flush of
 * store and origin; fingerprint of the origin; under the header's lock, if still CLEANING, the clean header, flush, CLEAN. A
 * write that comes meanwhile turns CLEANING back to DIRTY before it marks anything, and one that comes later first makes
 * the header dirty on the disk. A foreign write into the store ends it, and waits for the index write in hand. So a header that says CLEAN has everything before it, and nothing after it.
 */
import type { IoBuffer } from '../block/device.js';
import { whileGateClosed } from './gate.js';
import { type StoreOnDevice, writeHeader, writeIndex } from './index-io.js';
import { HeaderState, Mode, Word } from './layout.js';
import type { Steps } from './steps.js';
import type { Tracer } from './tracer.js';

export interface CleaningParts {
  store: StoreOnDevice;
  buffer: IoBuffer;
  /** Of the origin as it is on disk. */
  fingerprint(): Uint8Array;
  /** The clean header page. Called once, just before it is written: what must be durable before it is made so there. */
  header(changedBlocks: number, fingerprint: Uint8Array): Uint8Array;
}

/** Makes the COW file clean. False when writes came in between, or the snapshot has failed: nothing is promised then. */
export function* goClean(tracer: Tracer, parts: CleaningParts): Steps<boolean> {
  const { memory, origin, hooks } = tracer;
  const { store, buffer } = parts;
  if (memory.get(Word.FAILED) !== 0) return false;
  if (memory.get(Word.HEADER_STATE) === HeaderState.CLEAN) return true;
  yield* whileGateClosed(
    memory,
    (word) => hooks.wake(word),
    () => memory.set(Word.HEADER_STATE, HeaderState.CLEANING),
  );
  const indexOnly = memory.get(Word.MODE) === Mode.INCREMENTAL;
  if (!(yield* tracer.whileTrusted(writeIndex(memory, store, buffer, indexOnly)))) return false;
  yield { kind: 'flush', device: store.device };
  yield { kind: 'flush', device: origin };
  const fingerprint = parts.fingerprint();
  yield* tracer.lockHeader();
  try {
    if (memory.get(Word.HEADER_STATE) !== HeaderState.CLEANING || memory.get(Word.FAILED) !== 0) return false;
    const header = parts.header(memory.get(Word.CHANGED) >>> 0, fingerprint);
    try {
      yield* writeHeader(store, buffer, header);
    } finally {
      // After an error too: it may have reached the disk, so the next write has to make it dirty.
      memory.set(Word.HEADER_STATE, HeaderState.CLEAN);
    }
    return true;
  } finally {
    tracer.unlockHeader();
  }
}
