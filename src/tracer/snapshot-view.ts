/**
 * The snapshot's view: the volume as it was at T0.
 *
 * For each block, in this order: it was free at T0, where that is asked for → zeros; its bit is set → the store has it; it
 * belongs to the store → zeros (I6); else the origin still has it. All that is known to lie somewhere is read at once, from origin and store side by side. Saved blocks between
 * others that are close are read over in the origin, and put in their places afterwards, from memory of their own: transfers
 * that are in hand together may land in any order.
 *
 * When the origin has been read the bits of what was taken from it are looked at again: a block that was saved meanwhile may
 * have been overwritten under the read, so the saved copy is taken instead; one that the store took in meanwhile by growing
 * was zeros, or it would be saved. What was saved at the first look stays as it is for as long as the snapshot. Last of all
 * FAILED is looked at: once it is set writes go unsaved, so everything read before is doubtful (I2).
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { assert, SystemError } from '../sys/errors.js';
import { BLOCK_BYTES, Mode, Word } from './layout.js';
import type { ReadStep, Steps } from './steps.js';
import type { StoreMap } from './store-map.js';
import type { Tracer } from './tracer.js';

const EIO = 5;
/** Saved blocks in a row up to this number are read over in the origin: that costs less than another transfer. */
const GAP_BLOCKS_MAX = 16;

/** What a read of the snapshot writes to. */
export interface SnapshotTarget {
  buffer: IoBuffer;
  /** Where in the buffer. */
  at: number;
  /** Other memory for copying, in whole blocks: the longest piece that is read at once. */
  scratch: IoBuffer;
}

/** Blocks `[first, end)`. */
interface Run {
  first: number;
  end: number;
}

/** Blocks that lie in one piece of the store, from a byte of its device on. */
interface SavedRun extends Run {
  device: BlockDevice;
  offset: number;
}

/** One piece of a read: bytes `[start, end)` of the volume. */
interface Piece {
  tracer: Tracer;
  buffer: IoBuffer;
  /** Where the volume's byte 0 would lie in the buffer. */
  shift: number;
  start: number;
  end: number;
}

/** Where the blocks of a piece are. */
interface Plan {
  saved: SavedRun[];
  unsaved: Run[];
  /** The unsaved ones, close ones joined over the saved ones between them. */
  spans: Run[];
}

/** Reads a range of the snapshot. Sector-aligned; inside the volume. */
export function* readSnapshot(
  tracer: Tracer,
  { buffer, at, scratch }: SnapshotTarget,
  lengthBytes: number,
  offset: number,
): Steps {
  tracer.hooks.refresh();
  refuseFailed(tracer, offset);
  const stop = offset + lengthBytes;
  for (let start = offset; start < stop; ) {
    const block = start - (start % BLOCK_BYTES);
    if (start > block || stop < block + BLOCK_BYTES) {
      const whole = { start: block, end: Math.min(block + BLOCK_BYTES, tracer.origin.sizeBytes) };
      const end = Math.min(stop, whole.end);
      // Whole blocks are what a store can be read in, whatever the sectors of its disk. One block leaves the memory for copying free.
      yield* readPiece({ tracer, buffer: scratch, shift: -block, ...whole }, scratch);
      buffer.bytes.set(scratch.bytes.subarray(start - block, end - block), at + start - offset);
      start = end;
      continue;
    }
    const end = Math.min(stop - (stop % BLOCK_BYTES), start + scratch.bytes.byteLength);
    yield* readPiece({ tracer, buffer, shift: at - offset, start, end }, scratch);
    start = end;
  }
  refuseFailed(tracer, offset);
}

function* readPiece(piece: Piece, scratch: IoBuffer): Steps {
  const { tracer, buffer, shift } = piece;
  const before = tracer.storeMap;
  const { saved, unsaved, spans } = yield* look(piece, before);
  const reads = spans.map((span) => readOf(piece, span, tracer.origin, span.first * BLOCK_BYTES));
  const patches: Array<{ from: number; to: number; lengthBytes: number }> = [];
  let patchedBytes = 0;
  let spansBefore = 0;
  for (const run of saved) {
    while ((spans[spansBefore]?.end ?? Number.POSITIVE_INFINITY) <= run.first) spansBefore++;
    const isReadOver = (spans[spansBefore]?.first ?? Number.POSITIVE_INFINITY) < run.first;
    if (!isReadOver) {
      reads.push(readOf(piece, run, run.device, run.offset));
      continue;
    }
    const lengthBytes = (run.end - run.first) * BLOCK_BYTES;
    const { device, offset } = run;
    reads.push({ kind: 'read', device, buffer: scratch, at: patchedBytes, lengthBytes, offset });
    patches.push({ from: patchedBytes, to: shift + run.first * BLOCK_BYTES, lengthBytes });
    patchedBytes += lengthBytes;
  }
  yield* readAll(reads);
  for (const { from, to, lengthBytes } of patches)
    buffer.bytes.set(scratch.bytes.subarray(from, from + lengthBytes), to);
  yield* lookAgain(piece, unsaved, before);
}

/** Finds where everything is. Free blocks and the store's own are zeros, which are put there at once. */
function* look(piece: Piece, own: StoreMap | undefined): Steps<Plan> {
  const { memory } = piece.tracer;
  const plan: Plan = { saved: [], unsaved: [], spans: [] };
  const end = Math.ceil(piece.end / BLOCK_BYTES);
  let isBroken = true;
  let block = Math.floor(piece.start / BLOCK_BYTES);
  while (block < end) {
    // What was free and is overwritten has a bit, and no entry that means anything.
    const inUse = memory.nextInUse(block, end);
    if (inUse > block) {
      fillZeros(piece, { first: block, end: inUse });
      isBroken = true;
      block = inUse;
      continue;
    }
    const limit = memory.nextFree(block, end);
    const stop = memory.nextMarked(block, limit);
    if (stop === block) {
      const run = yield* savedRun(piece.tracer, block, limit);
      plan.saved.push(run);
      block = run.end;
      continue;
    }
    const firstOwn = own?.firstOwnBlock(block, stop - 1) ?? -1;
    if (firstOwn === block && own !== undefined) {
      const endOfOwn = own.endOfOwn(block, stop - 1);
      fillZeros(piece, { first: block, end: endOfOwn });
      isBroken = true;
      block = endOfOwn;
      continue;
    }
    const run = { first: block, end: firstOwn < 0 ? stop : firstOwn };
    plan.unsaved.push(run);
    const last = plan.spans.at(-1);
    if (last === undefined || isBroken || run.first - last.end > GAP_BLOCKS_MAX) plan.spans.push({ ...run });
    else last.end = run.end;
    isBroken = false;
    block = run.end;
  }
  return plan;
}

/** What has become of the blocks that were taken from the origin. */
function* lookAgain(piece: Piece, unsaved: readonly Run[], before: StoreMap | undefined): Steps {
  const { tracer } = piece;
  const { memory } = tracer;
  // A store that has grown meanwhile may have been written where we read. It has told everybody before.
  tracer.hooks.refresh();
  const late: ReadStep[] = [];
  for (const run of unsaved) {
    let block = run.first;
    while (block < run.end) {
      const stop = memory.nextMarked(block, run.end);
      if (tracer.storeMap !== before) fillOwn(piece, { first: block, end: stop });
      block = stop;
      if (block === run.end) break;
      const saved = yield* savedRun(tracer, block, run.end);
      late.push(readOf(piece, saved, saved.device, saved.offset));
      block = saved.end;
    }
  }
  yield* readAll(late);
}

function fillOwn(piece: Piece, run: Run): void {
  const map = piece.tracer.storeMap;
  for (let block = run.first; block < run.end; block++)
    if (map?.firstOwnBlock(block, block) === block) fillZeros(piece, { first: block, end: block + 1 });
}

function fillZeros({ buffer, shift, start, end }: Piece, run: Run): void {
  const from = Math.max(start, run.first * BLOCK_BYTES);
  buffer.bytes.fill(0, shift + from, shift + Math.min(end, run.end * BLOCK_BYTES));
}

/** Reads blocks into their place; `offset` is that of the first of them on the device. */
function readOf({ buffer, shift, start, end }: Piece, run: Run, device: BlockDevice, offset: number): ReadStep {
  const from = Math.max(start, run.first * BLOCK_BYTES);
  const lengthBytes = Math.min(end, run.end * BLOCK_BYTES) - from;
  return {
    kind: 'read',
    device,
    buffer,
    at: shift + from,
    lengthBytes,
    offset: offset + from - run.first * BLOCK_BYTES,
  };
}

function* readAll(reads: readonly ReadStep[]): Steps {
  const [first] = reads;
  if (first === undefined) return;
  if (reads.length === 1) yield first;
  else yield { kind: 'readTogether', reads };
}

/** A run of saved blocks, before `end`, that lie in consecutive places of one piece of the store. */
function* savedRun(tracer: Tracer, first: number, end: number): Steps<SavedRun> {
  const { memory } = tracer;
  const place = memory.entry(first);
  // Of a snapshot that has failed, blocks are marked without being saved.
  refuseFailed(tracer, first * BLOCK_BYTES);
  assert(place > 0, () => `saved block ${first} has a place`);
  const { map, device } = yield* storeWith(tracer, place);
  const { offset, run } = map.locate(place);
  const stop = memory.nextUnmarked(first, Math.min(end, first + run));
  let block = first + 1;
  while (block < stop && memory.entry(block) === place + block - first) block++;
  return { first, end: block, device, offset };
}

/** The store in use, once it has a place: growth marks what it keeps before it announces where that lies. */
function* storeWith(tracer: Tracer, place: number): Steps<{ map: StoreMap; device: BlockDevice }> {
  for (;;) {
    const generation = tracer.memory.get(Word.GENERATION);
    tracer.hooks.refresh();
    const { storeMap: map, storeDevice: device } = tracer;
    assert(map !== undefined && device !== undefined, 'a snapshot has a store');
    if (place < map.config.placeCount) return { map, device };
    yield { kind: 'wait', word: Word.GENERATION, value: generation };
  }
}

function refuseFailed(tracer: Tracer, offset: number): void {
  const failed = tracer.memory.get(Word.FAILED);
  if (failed !== 0 || tracer.memory.get(Word.MODE) !== Mode.SNAPSHOT) {
    throw new SystemError(
      'read of a snapshot',
      EIO,
      `at ${offset}: ${failed === 0 ? 'it has ended' : `failed with ${failed}`}`,
    );
  }
}
