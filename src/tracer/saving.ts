/**
 * Saving old contents before they are overwritten: steps 3 and 4 of the write path (`tracer.ts`).
 *
 * Everything goes by runs: one read, one append and a few words of the map for a run of blocks, however long it is.
 */
import type { IoBuffer } from '../block/device.js';
import { assert } from '../sys/errors.js';
import { claimFree, releaseClaims, waitForClaim } from './claims.js';
import { BLOCK_BYTES, CLAIM_COUNT, type VolumeMemory, Word } from './layout.js';
import type { Steps } from './steps.js';
import { writePlaces } from './store-io.js';
import type { SlotRun } from './store-map.js';
import type { RequestContext, Tracer } from './tracer.js';

/** Store full: EFBIG, as dattobd reports it. */
export const STORE_FULL = 27;

/** Blocks `[first, end)`. */
export interface BlockRun {
  first: number;
  end: number;
}

/** Saves what is not saved yet of blocks `first` to `last`. Stops without an error once the snapshot has failed. */
export function* saveBlocks(tracer: Tracer, context: RequestContext, first: number, last: number): Steps {
  const { memory } = tracer;
  const longest = context.scratch.bytes.byteLength / BLOCK_BYTES;
  let block = memory.nextToBeSaved(first, last + 1);
  while (block <= last && memory.get(Word.FAILED) === 0) {
    // A run ends where its claims would wrap around, so that claims are taken in ascending order of their words.
    const wrap = block - (block % CLAIM_COUNT) + CLAIM_COUNT - 1;
    let end = Math.min(last, block + longest - 1, wrap);
    while (end > block && !memory.isToBeSaved(end)) end--;
    yield* saveRun(tracer, context, block, end);
    block = memory.nextToBeSaved(end + 1, last + 1);
  }
}

/** The blocks of `first` to `last` that have to be saved, where these are one run, and some. */
export function oneRun(memory: VolumeMemory, first: number, last: number): BlockRun | undefined {
  const from = memory.nextToBeSaved(first, last + 1);
  if (from > last) return undefined;
  const end = memory.nextSettled(from, last + 1);
  return memory.nextToBeSaved(end, last + 1) > last ? { first: from, end } : undefined;
}

/** Claims a run that was to be saved a moment ago. False: somebody has a claim in it, or has saved some of it; nothing is claimed. */
export function claimRun({ memory, hooks }: Tracer, worker: number, { first, end }: BlockRun): boolean {
  // Claims are taken in ascending order of their words.
  if (first % CLAIM_COUNT > (end - 1) % CLAIM_COUNT) return false;
  const claimed = claimFree(memory, worker, first, end - 1);
  if (claimed === end && memory.nextSettled(first, end) === end) return true;
  releaseClaims(memory, first, claimed, (word) => hooks.wake(word));
  return false;
}

function* saveRun(tracer: Tracer, context: RequestContext, first: number, last: number): Steps {
  const { memory } = tracer;
  let claimed = first;
  try {
    for (;;) {
      claimed = claimFree(memory, context.worker, claimed, last);
      if (claimed > last) break;
      const wait = waitForClaim(memory, claimed);
      if (wait !== undefined) yield wait;
    }
    // Claims were waited for: what was unsaved may be saved now.
    const missing = runsToBeSaved(memory, first, last);
    if (missing.length > 0 && memory.get(Word.FAILED) === 0) yield* copy(tracer, context, missing);
  } finally {
    releaseClaims(memory, first, claimed, (word) => tracer.hooks.wake(word));
  }
}

/** Copies claimed blocks to the store: one read over them all, one append, then the index and the map. */
function* copy(tracer: Tracer, context: RequestContext, missing: readonly BlockRun[]): Steps {
  const { origin } = tracer;
  const { scratch } = context;
  const first = missing[0]?.first ?? 0;
  const offset = first * BLOCK_BYTES;
  const spanBytes = (missing.at(-1)?.end ?? first) * BLOCK_BYTES - offset;
  const lengthBytes = Math.min(spanBytes, origin.sizeBytes - offset);
  yield { kind: 'read', device: origin, buffer: scratch, at: 0, lengthBytes, offset };
  if (lengthBytes < spanBytes) scratch.bytes.fill(0, lengthBytes, spanBytes);
  let at = 0;
  for (const run of missing) {
    const from = run.first * BLOCK_BYTES - offset;
    const runBytes = (run.end - run.first) * BLOCK_BYTES;
    if (from !== at) scratch.bytes.copyWithin(at, from, from + runBytes);
    at += runBytes;
  }
  const places = yield* append(tracer, scratch, at / BLOCK_BYTES);
  if (places !== undefined) publish(tracer.memory, missing, places);
}

/** The index entries first, then the bits: who sees a bit may use the entry. */
export function publish(memory: VolumeMemory, missing: readonly BlockRun[], places: readonly SlotRun[]): void {
  let at = 0;
  let used = 0;
  for (const { first, end } of missing) {
    let block = first;
    while (block < end) {
      const run = places[at];
      assert(run !== undefined, 'every copied block has a place');
      const count = Math.min(end - block, run.count - used);
      memory.setEntries(block, run.place + used, count);
      block += count;
      used += count;
      if (used < run.count) continue;
      at++;
      used = 0;
    }
    memory.mark(first, end - 1);
  }
}

/** Appends blocks from the start of `buffer`; undefined when the snapshot failed instead. */
function* append(tracer: Tracer, buffer: IoBuffer, count: number): Steps<SlotRun[] | undefined> {
  const { storeMap: map, storeDevice: device } = tracer;
  assert(map !== undefined && device !== undefined, 'snapshot mode has a store');
  const slot = tracer.allocate(count);
  if (slot < 0) {
    tracer.fail(STORE_FULL);
    return undefined;
  }
  const places = map.placesOfSlots(slot, count);
  // A foreign write fails the snapshot first and then waits for what is in hand: after it, nothing goes to the store.
  return (yield* tracer.whileTrusted(writePlaces({ map, device }, buffer, places))) ? places : undefined;
}

function runsToBeSaved(memory: VolumeMemory, first: number, last: number): BlockRun[] {
  const runs: BlockRun[] = [];
  for (let block = memory.nextToBeSaved(first, last + 1); block <= last; ) {
    const end = memory.nextSettled(block, last + 1);
    runs.push({ first: block, end });
    block = memory.nextToBeSaved(end, last + 1);
  }
  return runs;
}
