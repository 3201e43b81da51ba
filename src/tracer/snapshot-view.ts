/**
 * The snapshot's view: the volume as it was at T0.
 *
 * For each block, in this order: it was free at T0, where that is asked for → zeros; its bit is set → the store has it; it
 * belongs to the store → zeros (I6); else the origin
 * still has it. The origin is read first and the bits are looked at again afterwards: a block that was saved meanwhile may
 * have been overwritten under the read, so the saved copy is taken instead; one that the store took in meanwhile by growing
 * was zeros, or it would be saved. Last of all FAILED is looked at: once it is set writes go unsaved, so everything read
 * before is doubtful (I2).
 */
import type { BlockDevice, IoBuffer } from '../block/device.js';
import { assert, SystemError } from '../sys/errors.js';
import { BLOCK_BYTES, Mode, Word } from './layout.js';
import type { Steps } from './steps.js';
import type { StoreMap } from './store-map.js';
import type { Tracer } from './tracer.js';

const EIO = 5;

/** Reads a range of the snapshot into `buffer` from `at`. Sector-aligned; inside the volume. */
export function* readSnapshot(
  tracer: Tracer,
  buffer: IoBuffer,
  at: number,
  lengthBytes: number,
  offset: number,
): Steps {
  const { memory } = tracer;
  tracer.hooks.refresh();
  refuseFailed(tracer, offset);
  const end = offset + lengthBytes;
  let position = offset;
  while (position < end) {
    const block = Math.floor(position / BLOCK_BYTES);
    const target = at + (position - offset);
    if (memory.isFree(block)) {
      position = readFree(tracer, buffer, target, position, end);
    } else if (memory.isMarked(block)) {
      position = yield* readSaved(tracer, buffer, target, position, end);
    } else {
      position = yield* readUnsaved(tracer, buffer, target, position, end);
    }
  }
  refuseFailed(tracer, offset);
}

/** A run of blocks that were free at T0: zeros, overwritten or not. Returns where it ended. */
function readFree({ memory }: Tracer, buffer: IoBuffer, at: number, position: number, end: number): number {
  let stop = Math.floor(position / BLOCK_BYTES) + 1;
  while (stop * BLOCK_BYTES < end && memory.isFree(stop)) stop++;
  const stopBytes = Math.min(end, stop * BLOCK_BYTES);
  buffer.bytes.fill(0, at, at + stopBytes - position);
  return stopBytes;
}

/** A run of saved blocks that lie in consecutive places of one piece of the store. Returns where it ended. */
function* readSaved(tracer: Tracer, buffer: IoBuffer, at: number, position: number, end: number): Steps<number> {
  const { memory } = tracer;
  const block = Math.floor(position / BLOCK_BYTES);
  const place = memory.entry(block);
  // Of a snapshot that has failed, blocks are marked without being saved.
  refuseFailed(tracer, position);
  assert(place > 0, () => `saved block ${block} has a place`);
  const { map, device } = yield* storeWith(tracer, place);
  const { offset, run } = map.locate(place);
  let count = 1;
  while (
    count < run &&
    (block + count) * BLOCK_BYTES < end &&
    memory.isMarked(block + count) &&
    // What was free and is overwritten has a bit, and no entry that means anything.
    !memory.isFree(block + count) &&
    memory.entry(block + count) === place + count
  ) {
    count++;
  }
  const within = position - block * BLOCK_BYTES;
  const lengthBytes = Math.min(end, (block + count) * BLOCK_BYTES) - position;
  yield { kind: 'read', device, buffer, at, lengthBytes, offset: offset + within };
  return position + lengthBytes;
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

/** A run of blocks that are not saved: the store's own, or the origin's. Returns where it ended. */
function* readUnsaved(tracer: Tracer, buffer: IoBuffer, at: number, position: number, end: number): Steps<number> {
  const { memory, origin, storeMap } = tracer;
  const first = Math.floor(position / BLOCK_BYTES);
  let last = Math.floor((end - 1) / BLOCK_BYTES);
  const own = storeMap?.firstOwnBlock(first, last) ?? -1;
  if (own === first && storeMap !== undefined) {
    let stop = first;
    const endOfOwn = storeMap.endOfOwn(first, last);
    while (stop < endOfOwn && !memory.isMarked(stop)) stop++;
    const stopBytes = Math.min(end, stop * BLOCK_BYTES);
    buffer.bytes.fill(0, at, at + stopBytes - position);
    return stopBytes;
  }
  if (own > first) last = own - 1;
  let stop = first + 1;
  while (stop <= last && memory.isToBeSaved(stop)) stop++;
  const stopBytes = Math.min(end, stop * BLOCK_BYTES);
  yield { kind: 'read', device: origin, buffer, at, lengthBytes: stopBytes - position, offset: position };
  // A store that has grown meanwhile may have been written where we read. It has told everybody before.
  tracer.hooks.refresh();
  let again = position;
  while (again < stopBytes) {
    const block = Math.floor(again / BLOCK_BYTES);
    if (memory.isMarked(block)) {
      again = yield* readSaved(tracer, buffer, at + again - position, again, stopBytes);
      continue;
    }
    const next = Math.min(stopBytes, (block + 1) * BLOCK_BYTES);
    const hasGrown = tracer.storeMap !== storeMap;
    if (hasGrown && tracer.storeMap?.firstOwnBlock(block, block) === block)
      buffer.bytes.fill(0, at + again - position, at + next - position);
    again = next;
  }
  return stopBytes;
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
