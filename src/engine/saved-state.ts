/**
 * What outlives the daemon in its state directory, believed only as far as it can be checked.
 *
 * - `attached.json`: what is attached again at the next start. A person may edit it. Where anything in it is damaged nothing
 *   is attached, the file is kept aside as `attached.json.damaged`, and the daemon starts all the same: it must be there for
 *   the person who repairs it.
 * - `series/<uuid>.json`: where the store of a series lies. It is written by address, on the origin itself: a wrong
 *   address destroys the user's data, a wrong position destroys what was saved. So it has a checksum, its numbers must fit
 *   each other (what one version wrote wrongly has a right checksum), and later the store's header must agree with it.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { TextDecoder } from 'node:util';
import * as v from 'valibot';
import { blockCount, dataOffsetBytes } from '../cow/geometry.js';
import type { CowHeader } from '../cow/header.js';
import { AbsolutePath, describeIssue, VOLUME_NAME, WholeNumber } from '../sys/checks.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, MAX_BLOCKS, MAX_WORKERS } from '../tracer/layout.js';
import type { StoreConfig } from '../tracer/store-map.js';
import type { EventInput } from './events.js';
import type { SavedSeries, SavedVolume } from './records.js';

type Emit = (event: EventInput) => void;

const SECTOR_BYTES = 512;
/** Longest state file that is read: a store of more than a million extents is nothing that we write. */
const STATE_BYTES_MAX = 67_108_864;
const ENOENT = 2;

const Count = v.pipe(WholeNumber, v.minValue(1));
/** Index entries, and with them places and slots, are 32-bit. */
const PlaceCount = v.pipe(Count, v.maxValue(0xffff_ffff));
/** Inode and device numbers may be beyond 2^53, where JSON keeps their first digits only. */
const KernelNumber = v.pipe(v.number(), v.integer(), v.minValue(0));

const Series = v.object({
  format: v.literal(1),
  origin: AbsolutePath,
  sizeBytes: v.pipe(Count, v.multipleOf(SECTOR_BYTES), v.maxValue(MAX_BLOCKS * BLOCK_BYTES)),
  uuid: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  sequenceId: Count,
  mode: v.picklist(['incremental', 'snapshot']),
  cowFile: AbsolutePath,
  file: v.object({ path: AbsolutePath, dev: KernelNumber, ino: KernelNumber }),
  store: v.object({
    kind: v.picklist(['origin', 'device']),
    extents: v.array(v.object({ place: WholeNumber, block: WholeNumber, count: PlaceCount })),
    slots: v.array(v.object({ place: WholeNumber, count: PlaceCount })),
    placeCount: PlaceCount,
    zeroPlace: v.optional(PlaceCount),
  }),
  storeBytes: Count,
  startBytes: WholeNumber,
  fsType: v.string(),
  nextSlot: v.pipe(WholeNumber, v.maxValue(0xffff_ffff)),
  cacheBytes: WholeNumber,
  /** Empty while the COW file was never clean. */
  fingerprint: v.pipe(v.string(), v.regex(/^([0-9a-f]{64})?$/)),
  // Without a default: what an older version has saved must come out as it was, for its checksum.
  free: v.optional(v.object({ blocks: WholeNumber, sha256: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)) })),
  /** Where file systems begin; absent: at 0 alone. */
  starts: v.optional(v.array(WholeNumber)),
});

const SeriesFile = v.object({ checksum: v.string(), series: Series });

const Attached = v.array(
  v.object({
    name: v.pipe(v.string(), v.regex(VOLUME_NAME)),
    origin: AbsolutePath,
    workers: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(MAX_WORKERS)),
    readOnly: v.boolean(),
    raw: v.optional(v.boolean(), false),
  }),
);

/** SHA-256 in hex of a series as JSON, its fields in the order of {@link SavedSeries}. */
export function checksumOf(series: unknown): string {
  return createHash('sha256').update(JSON.stringify(series)).digest('hex');
}

/** A series as its file in the state directory. */
export function encodeSeries(saved: SavedSeries): string {
  // In the schema's order, as it is checked.
  const series = v.parse(Series, saved);
  return JSON.stringify({ checksum: checksumOf(series), series });
}

/** @throws {CowbirdError} EUCLEAN, with the first thing that is wrong. */
export function decodeSeries(text: string): SavedSeries {
  const { checksum, series } = parse(SeriesFile, text);
  const computed = checksumOf(series);
  if (checksum !== computed) throw damaged(`its checksum is ${computed}, and it says ${checksum.slice(0, 64)}`);
  requireStore(series);
  return series;
}

/** @throws {CowbirdError} EUCLEAN, with the first thing that is wrong. */
export function decodeAttached(text: string): SavedVolume[] {
  return parse(Attached, text);
}

function parse<T>(schema: v.GenericSchema<unknown, T>, text: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new CowbirdError('EUCLEAN', `it is not JSON (${text.length} characters)`, { outcome: 'failed', cause });
  }
  const parsed = v.safeParse(schema, value);
  if (!parsed.success) throw damaged(describeIssue(parsed.issues[0], 'all of it'));
  return parsed.output;
}

function damaged(what: string): CowbirdError {
  return new CowbirdError('EUCLEAN', what, { outcome: 'failed' });
}

/** Every block of the store lies on the volume once, and every slot in the store once. */
function requireStore(saved: SavedSeries): void {
  const { store, mode, sizeBytes, startBytes } = saved;
  const indexPlaces = dataOffsetBytes(blockCount(sizeBytes)) / BLOCK_BYTES;
  const wanted = Math.floor(saved.storeBytes / BLOCK_BYTES);
  if (store.placeCount !== wanted)
    throw damaged(`store.placeCount is ${store.placeCount}, and ${saved.storeBytes} bytes are ${wanted} blocks`);
  if (mode === 'incremental' && saved.storeBytes % BLOCK_BYTES !== 0)
    throw damaged(`storeBytes is ${saved.storeBytes} in incremental mode, no multiple of ${BLOCK_BYTES}`);
  const isLength = mode === 'snapshot' ? store.placeCount > indexPlaces : store.placeCount === indexPlaces;
  if (!isLength)
    throw damaged(
      `store.placeCount is ${store.placeCount} in ${mode} mode, with ${indexPlaces} blocks of header and index`,
    );
  if (startBytes >= sizeBytes) throw damaged(`startBytes is ${startBytes}, on a volume of ${sizeBytes} bytes`);
  requireExtents(store, sizeBytes);
  requireSlots(saved, indexPlaces);
}

function requireExtents(store: StoreConfig, sizeBytes: number): void {
  if (store.kind === 'device') {
    if (store.extents.length > 0) throw damaged(`store.extents has ${store.extents.length} of a store of its own`);
    return;
  }
  let next = 0;
  for (const { place, block, count } of store.extents) {
    if (place !== next) throw damaged(`store.extents has one at place ${place}, and the one before ends at ${next}`);
    if ((block + count) * BLOCK_BYTES > sizeBytes)
      throw damaged(`store.extents has block ${block}+${count}, beyond the volume of ${sizeBytes} bytes`);
    next += count;
  }
  if (next !== store.placeCount) throw damaged(`store.extents end at place ${next} of ${store.placeCount}`);
  const byBlock = [...store.extents].sort((a, b) => a.block - b.block);
  byBlock.forEach(({ block }, i) => {
    const before = byBlock[i - 1];
    if (before !== undefined && before.block + before.count > block)
      throw damaged(`store.extents has block ${block} twice: the extent at ${before.block} reaches beyond it`);
  });
}

function requireSlots({ store, mode, nextSlot }: SavedSeries, indexPlaces: number): void {
  if (mode === 'incremental') {
    if (store.slots.length > 0) throw damaged(`store.slots has ${store.slots.length} in incremental mode`);
    return;
  }
  const { zeroPlace } = store;
  if (zeroPlace !== undefined && zeroPlace !== indexPlaces)
    throw damaged(`store.zeroPlace is ${zeroPlace}, and it is the first one of the data, ${indexPlaces}`);
  let next = zeroPlace === undefined ? indexPlaces : zeroPlace + 1;
  let total = 0;
  for (const { place, count } of store.slots) {
    if (place < next || place + count > store.placeCount)
      throw damaged(`store.slots has place ${place}+${count}, and from ${next} to ${store.placeCount} are free`);
    next = place + count;
    total += count;
  }
  if (nextSlot > total) throw damaged(`nextSlot is ${nextSlot} of ${total} slots`);
}

/** What the header on disk must say for the series to be the one that was saved with it. */
export function requireHeader(header: CowHeader, saved: SavedSeries): void {
  const { fileSizeBytes, positionBlocks } = header;
  const position = savedPosition(saved);
  if (positionBlocks !== position)
    throw damaged(`the COW file is used up to block ${positionBlocks}, and the state directory says ${position}`);
  const { storeBytes, mode } = saved;
  if (fileSizeBytes !== storeBytes)
    throw damaged(`the COW file has ${fileSizeBytes} bytes, and the state directory says ${storeBytes}`);
  if (header.indexOnly !== (mode === 'incremental'))
    throw damaged(`the state directory has the COW file in ${mode} mode`);
}

/** The header's fpos for a saved series; a store that grew may have used its places out of order. */
function savedPosition({ mode, sizeBytes, store, nextSlot }: SavedSeries): number {
  const indexPlaces = dataOffsetBytes(blockCount(sizeBytes)) / BLOCK_BYTES;
  if (mode === 'incremental') return indexPlaces;
  return store.slots.length > 1 ? store.placeCount : (store.slots[0]?.place ?? indexPlaces) + nextSlot;
}

/** File in the state directory that lets a series go on after a clean stop, or tells why it cannot. */
export function seriesPath(stateDir: string, uuid: string): string {
  return join(stateDir, 'series', `${uuid}.json`);
}

/** What the state directory knows of a COW file of an origin. A damaged entry is as good as none, and is reported. */
export function findSeries(stateDir: string, origin: string, cowFile: string, emit: Emit): SavedSeries | undefined {
  return latestSeries(stateDir, (saved) => saved.origin === origin && saved.cowFile === cowFile, emit);
}

/** The series that was saved last among those that are wanted. */
export function latestSeries(
  stateDir: string,
  isWanted: (saved: SavedSeries) => boolean,
  emit: Emit,
): SavedSeries | undefined {
  const directory = join(stateDir, 'series');
  let found: { saved: SavedSeries; savedMs: number } | undefined;
  for (const name of seriesNames(directory)) {
    const path = join(directory, name);
    try {
      const saved = decodeSeries(readStateFile(path));
      if (seriesPath(stateDir, saved.uuid) !== path) throw damaged(`it is the file of series ${saved.uuid}`);
      if (!isWanted(saved)) continue;
      // One that was never ended may have had the same COW file: the later one is the one that is there.
      const savedMs = statSync(path).mtimeMs;
      if (found === undefined || savedMs > found.savedMs) found = { saved, savedMs };
    } catch (error) {
      emit({ event: 'state.damaged', level: 'warning', message: `${path} cannot be used: ${messageOf(error)}` });
    }
  }
  return found?.saved;
}

function seriesNames(directory: string): string[] {
  try {
    return readdirSync(directory).filter((name) => name.endsWith('.json'));
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return [];
    throw error;
  }
}

export function attachedPath(stateDir: string): string {
  return join(stateDir, 'attached.json');
}

/** What was attached and not detached before the last end; nothing where the file is damaged, which is kept aside. */
export function loadAttached(stateDir: string, emit: Emit): SavedVolume[] {
  const path = attachedPath(stateDir);
  try {
    return decodeAttached(readStateFile(path));
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return [];
    const where = keepAside(path);
    emit({
      event: 'state.damaged',
      level: 'error',
      message: `No volume was attached again, as ${path} cannot be used: ${messageOf(error)}. ${where} Attach the volumes with \`cowbird attach\``,
    });
    return [];
  }
}

/** Moves a damaged file out of the way of the next one that is written; says where it is. */
function keepAside(path: string): string {
  try {
    renameSync(path, `${path}.damaged`);
    return `It is kept as ${path}.damaged.`;
  } catch (error) {
    return `It could not be kept as ${path}.damaged (${messageOf(error)}).`;
  }
}

/** A file as text. Neither what waits (a named pipe) nor what is longer than any state is read. */
function readStateFile(path: string): string {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) throw damaged('it is no regular file');
    if (stats.size > STATE_BYTES_MAX) throw damaged(`it has ${stats.size} bytes, and ${STATE_BYTES_MAX} at most`);
    return decodeText(readFileSync(fd));
  } finally {
    closeSync(fd);
  }
}

function decodeText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new CowbirdError('EUCLEAN', 'it is not UTF-8', { outcome: 'failed', cause });
  }
}
