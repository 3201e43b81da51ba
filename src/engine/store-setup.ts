/**
 * From a path to a store that may be written: created, located, proved.
 *
 * A store on the volume itself is written by the addresses that FIEMAP gives. A wrong address destroys the user's data, so
 * the mapping is proved before the first such write: random blocks are written through the file system at both ends of
 * every extent and read back through the origin. Only what reads back there is ours.
 */
import { createHash } from 'node:crypto';
import { join, relative } from 'node:path';
import { dataOffsetBytes, defaultStoreBytes } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { FIEMAP_EXTENT, type FileExtent } from '../sys/fsfile.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import type { StoreConfig, StoreExtent } from '../tracer/store-map.js';
import { withScratch } from './async-steps.js';
import { attachedRecords, type EngineContext, type Undo, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import type { CreatedStore, StoreFile } from './helper-calls.js';
import { mountsOn } from './lookup.js';
import { announce } from './pending.js';
import type { HelperSession } from './services.js';
import { openElsewhere } from './store-elsewhere.js';
import type { Volume } from './volume.js';

export interface PreparedStore {
  file: StoreFile;
  config: StoreConfig;
  sizeBytes: number;
  startBytes: number;
  fsType: string;
  /** As the status shows it. */
  cowFile: string;
  /** Keeper's descriptor and ours, for a store of its own. */
  storeFd: number | null;
  ownFd: number | undefined;
}

/** Time for allocating a large file; what is written of it takes more. */
const CREATE_TIMEOUT_MS = 120_000;
/** Slower than this is a disk that hangs. */
const WRITTEN_BYTES_PER_MS = 10_000;

/** How long the writing of so much may take at most, beside all the rest. */
export function writeTimeMs(lengthBytes: number): number {
  return Math.ceil(lengthBytes / WRITTEN_BYTES_PER_MS);
}

export interface StoreRequest {
  path: string;
  storeBytes: number | undefined;
  onVolumeOnly: boolean;
  /** A place for a block of zeros is set aside. */
  freeAware: boolean;
}

/** Creates a COW file and proves where it lies. On failure the caller's undo list removes it. */
export async function prepareStore(
  context: EngineContext,
  undo: Undo,
  helper: HelperSession,
  volume: Volume,
  request: StoreRequest,
): Promise<PreparedStore> {
  const { sizeBytes } = volume.record.opened;
  const wanted =
    request.storeBytes === undefined || request.storeBytes === 0 ? defaultStoreBytes(sizeBytes) : request.storeBytes;
  const indexBytes = dataOffsetBytes(volume.blockCount);
  const zeroPlaces = request.freeAware ? 1 : 0;
  if (wanted < indexBytes + (1 + zeroPlaces) * BLOCK_BYTES) {
    throw new CowbirdError(
      'EINVAL',
      `A COW file of ${wanted} bytes is too small: header and index of ${volume.record.name} alone take ${indexBytes} bytes`,
    );
  }
  const created = await helper.call(
    'createStore',
    {
      path: request.path,
      node: volume.record.device.node,
      sizeBytes: wanted,
      // The block of zeros too: what is written by address behind the file system's back must have been marked before.
      indexBytes: indexBytes + zeroPlaces * BLOCK_BYTES,
      onVolumeOnly: request.onVolumeOnly,
      volumeNodes: attachedRecords(context).map(({ device }) => device.node),
    },
    CREATE_TIMEOUT_MS + writeTimeMs(indexBytes),
  );
  const file = fileOf(created, volume);
  await announce(context, undo, volume, { kind: 'unlink', file });
  await helper.call('keepStore', { file });
  failPoint('store-created');
  // A helper of its own: the one in use may have ended, or hang, when this is needed.
  undo.add(`remove ${created.path}`, () => withHelper(context, (other) => other.call('unlinkStore', { file })));
  const placeCount = Math.floor(created.sizeBytes / BLOCK_BYTES);
  const firstPlace = indexBytes / BLOCK_BYTES;
  const slots = [{ place: firstPlace + zeroPlaces, count: placeCount - firstPlace - zeroPlaces }];
  const zero = request.freeAware ? { zeroPlace: firstPlace } : {};
  const base = { file, sizeBytes: created.sizeBytes, startBytes: created.startBytes };
  if (created.kind === 'device') {
    const config: StoreConfig = { kind: 'device', extents: [], slots, placeCount, ...zero };
    const { storeFd, ownFd, sizeBytes: openedBytes } = await openElsewhere(context, undo, file);
    if (openedBytes < placeCount * BLOCK_BYTES)
      throw new CowbirdError('EIO', `${created.path} is shorter than it was made`, { outcome: 'failed' });
    return { ...base, storeFd, ownFd, config, fsType: '', cowFile: created.path };
  }
  const extents = await locateAndProve(helper, volume, {
    file,
    sizeBytes: created.sizeBytes,
    startBytes: created.startBytes,
    indexBytes,
    fromBytes: 0,
  });
  await helper.call('setImmutable', { file, immutable: true });
  const mount = mountsOn(volume.record.device.node).find(
    (entry) => entry.pid === 0 && entry.mountPoint === created.mountPoint,
  );
  return {
    ...base,
    config: { kind: 'origin', extents, slots, placeCount, ...zero },
    fsType: mount?.fsType ?? '',
    // As its file system's root has it: what is mounted there may be a directory of it only.
    cowFile: join(created.root, relative(created.mountPoint, created.path)),
    storeFd: null,
    ownFd: undefined,
  };
}

function fileOf({ path, dev, ino, kind }: CreatedStore, volume: Volume): StoreFile {
  return kind === 'origin' ? { path, dev, ino, on: volume.record.device.node } : { path, dev, ino };
}

export interface ProofRequest {
  file: StoreFile;
  sizeBytes: number;
  startBytes: number;
  /** Header and index region: must read as zeros afterwards. */
  indexBytes: number;
  /** Where the part begins that has to be proved: 0, or the old size after growing. */
  fromBytes: number;
}

/** The extents of a file on the volume, proved by nonces. */
export async function locateAndProve(
  helper: HelperSession,
  volume: Volume,
  request: ProofRequest,
): Promise<StoreExtent[]> {
  const { file, sizeBytes, startBytes, indexBytes, fromBytes } = request;
  const { extents: found } = await helper.call('extents', { file, sizeBytes });
  const extents = toStoreExtents(found, sizeBytes, startBytes, volume.record.opened.sizeBytes);
  const fromPlace = Math.floor(fromBytes / BLOCK_BYTES);
  const places = new Set<number>();
  for (const extent of extents) {
    if (extent.place + extent.count <= fromPlace) continue;
    places.add(Math.max(extent.place, fromPlace));
    places.add(extent.place + extent.count - 1);
  }
  const ordered = [...places].sort((a, b) => a - b);
  const offsets = ordered.map((place) => place * BLOCK_BYTES);
  const { nonces } = await helper.call('writeNonces', { file, offsets });
  await withScratch((buffer) => {
    let at = 0;
    ordered.forEach((place, i) => {
      while (place >= (extents[at]?.place ?? 0) + (extents[at]?.count ?? Number.POSITIVE_INFINITY)) at++;
      const extent = extents[at];
      if (extent === undefined) throw new Error(`Place ${place} has an extent`);
      const offset = (extent.block + place - extent.place) * BLOCK_BYTES;
      volume.origin.read(buffer, 0, BLOCK_BYTES, offset);
      const digest = createHash('sha256').update(buffer.bytes.subarray(0, BLOCK_BYTES)).digest('hex');
      if (digest !== nonces[i]) {
        throw new CowbirdError(
          'EINVAL',
          `${file.path} does not lie where its file system says: what was written at ${place * BLOCK_BYTES} is not on the volume at ${offset}. Put the COW file on another file system`,
        );
      }
    });
  });
  await helper.call('eraseNonces', { file, offsets, indexBytes });
  const { extents: again } = await helper.call('extents', { file, sizeBytes });
  const after = toStoreExtents(again, sizeBytes, startBytes, volume.record.opened.sizeBytes);
  if (JSON.stringify(after) !== JSON.stringify(extents)) {
    throw new CowbirdError(
      'EINVAL',
      `${file.path} was moved by its file system while it was being set up: put the COW file on another file system`,
    );
  }
  return extents;
}

const REFUSED_FLAGS: ReadonlyArray<readonly [number, string]> = [
  [FIEMAP_EXTENT.UNKNOWN, 'unknown'],
  [FIEMAP_EXTENT.DELALLOC, 'not allocated yet'],
  [FIEMAP_EXTENT.ENCODED, 'compressed'],
  [FIEMAP_EXTENT.DATA_ENCRYPTED, 'encrypted'],
  [FIEMAP_EXTENT.NOT_ALIGNED, 'not aligned'],
  [FIEMAP_EXTENT.DATA_INLINE, 'inline'],
  [FIEMAP_EXTENT.DATA_TAIL, 'packed'],
  [FIEMAP_EXTENT.SHARED, 'shared'],
];

/** File extents as runs of whole blocks of the volume, neighbours joined; refuses what cannot be written by address. */
export function toStoreExtents(
  found: readonly FileExtent[],
  sizeBytes: number,
  startBytes: number,
  volumeBytes: number,
): StoreExtent[] {
  const extents: StoreExtent[] = [];
  const endPlace = Math.floor(sizeBytes / BLOCK_BYTES);
  let next = 0;
  for (const extent of found) {
    const refused = REFUSED_FLAGS.find(([flag]) => (extent.flags & flag) !== 0);
    if (refused !== undefined) throw unusable(`an extent at ${extent.logicalBytes} is ${refused[1]}`);
    const physical = extent.physicalBytes + startBytes;
    if (extent.logicalBytes !== next * BLOCK_BYTES) throw unusable(`there is a hole before ${extent.logicalBytes}`);
    if (physical % BLOCK_BYTES !== 0) {
      throw unusable(
        `the extent at ${extent.logicalBytes} begins at ${physical}, which is no multiple of ${BLOCK_BYTES}: its file system has smaller blocks (\`mkfs.ext4 -b ${BLOCK_BYTES}\` makes one that has not)`,
      );
    }
    const count = Math.min(Math.floor(extent.lengthBytes / BLOCK_BYTES), endPlace - next);
    const isEnd = next + count === endPlace;
    if (!isEnd && extent.lengthBytes % BLOCK_BYTES !== 0)
      throw unusable(
        `the extent at ${extent.logicalBytes} has ${extent.lengthBytes} bytes, no multiple of ${BLOCK_BYTES}`,
      );
    if (physical + count * BLOCK_BYTES > volumeBytes)
      throw unusable(`the extent at ${physical} ends beyond the volume`);
    const block = physical / BLOCK_BYTES;
    const previous = extents.at(-1);
    if (previous !== undefined && previous.block + previous.count === block) previous.count += count;
    else if (count > 0) extents.push({ place: next, block, count });
    next += count;
    if (isEnd) break;
  }
  if (next !== endPlace) throw unusable(`its extents cover ${next * BLOCK_BYTES} of ${endPlace * BLOCK_BYTES} bytes`);
  return extents;
}

function unusable(reason: string): CowbirdError {
  return new CowbirdError(
    'EINVAL',
    `The COW file cannot lie on the volume itself: ${reason}. Put it on another file system`,
  );
}
