/**
 * Dropping versions. Numbers stay what they are.
 *
 * The oldest ones go with their deltas. One in the middle is needed by those before it: its delta is merged into theirs, and
 * where both have a block the older one's contents win. Each run of dropped versions is a step and a commit of its own, the
 * oldest first, which frees space for the others. Order of effects of a step:
 *
 *   1. history/N.cow.new: the merged delta of the version before the run; fsync, fsync of the folder
 *   2. manifest.new, fsync, → manifest, fsync of the folder: committed
 *   3. history/N.cow.new → history/N.cow, fsync of the folder
 *   4. the deltas of the dropped versions are removed, fsync of the folder; the manifest's copy
 *
 * A cut before 2 leaves a file that is removed; after it, 3 and 4 are done by the next command (state.ts). A merged delta
 * serves the old manifest's chain as well, as it only has more blocks of the same version.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { encodeEntries } from '../cow/index-codec.js';
import { assert, CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { CHECKSUM_BYTES } from './checksum.js';
import {
  checksumOffset,
  type Delta,
  type DeltaFacts,
  deltaPlaces,
  finishDelta,
  openDelta,
  regionEntries,
  regionsOf,
  shapeOf,
  sliceOffset,
} from './delta.js';
import { readMarked, type WritableFile } from './files.js';
import { blocksInRegion, deltaName, HISTORY, REGION_BLOCKS, regionCount } from './layout.js';
import type { ManifestData, VersionRecord } from './manifest.js';
import type { Repository } from './repository.js';
import { requireGoingOn } from './runner.js';
import { recover, recoverAfter, seriesBytes } from './state.js';
import { openListed } from './version.js';

export interface PruneOptions {
  signal?: AbortSignal | undefined;
}

/**
 * Drops every version but `kept`, whose numbers ascend and end with the newest. Returns the dropped numbers.
 *
 * @throws what reading or writing gave; {@link CowbirdError} with `partial` when some were dropped by then.
 */
export async function pruneVersions(
  repository: Repository,
  kept: readonly number[],
  options: PruneOptions = {},
): Promise<number[]> {
  const { versions } = repository.requireManifest();
  assert(kept.at(-1) === versions.at(-1)?.number, 'the newest version is kept');
  const dropped: number[] = [];
  try {
    for (const run of runsOf(versions, new Set(kept))) {
      requireGoingOn(options.signal);
      await dropRun(repository, run, options);
      dropped.push(...run.dropped.map(({ number }) => number));
    }
  } catch (error) {
    const failure = recoverAfter(repository.files, error);
    if (dropped.length === 0) throw failure;
    throw new CowbirdError(
      codeOf(errnoOfError(error)),
      `Dropped: ${dropped.join(', ')}. The others that were to be dropped are still there: ${messageOf(failure)}`,
      { outcome: 'partial', cause: error },
    );
  }
  return dropped;
}

interface Run {
  /** The kept version before the run; undefined where the run begins with the oldest. */
  before: VersionRecord | undefined;
  dropped: VersionRecord[];
  /** The kept version after the run. */
  after: VersionRecord;
}

function runsOf(versions: readonly VersionRecord[], kept: ReadonlySet<number>): Run[] {
  const runs: Run[] = [];
  let before: VersionRecord | undefined;
  let dropped: VersionRecord[] = [];
  for (const version of versions) {
    if (!kept.has(version.number)) {
      dropped.push(version);
      continue;
    }
    if (dropped.length > 0) runs.push({ before, dropped, after: version });
    dropped = [];
    before = version;
  }
  return runs;
}

async function dropRun(repository: Repository, run: Run, options: PruneOptions): Promise<void> {
  const manifest = repository.requireManifest();
  const gone = new Set(run.dropped.map(({ number }) => number));
  const versions = manifest.versions.filter(({ number }) => !gone.has(number));
  const { before } = run;
  if (before === undefined) repository.commit({ ...manifest, versions });
  else {
    const delta = await merge(repository, manifest, before, run, options);
    repository.commit({
      ...manifest,
      versions: versions.map((version) => (version === before ? { ...before, delta } : version)),
    });
  }
  recover(repository.files);
}

/** Writes the delta of `before` to the version after the run, beside the one that it has. */
async function merge(
  repository: Repository,
  manifest: ManifestData,
  before: VersionRecord,
  run: Run,
  options: PruneOptions,
): Promise<NonNullable<VersionRecord['delta']>> {
  const { files } = repository;
  const opened: WritableFile[] = [];
  const open = (name: string, mode: 'read' | 'create' = 'read'): WritableFile => {
    const file = files.open(name, mode);
    opened.push(file);
    return file;
  };
  try {
    const chain = [before, ...run.dropped].map((version) => openListed(files, manifest, version, open));
    const regions = regionsWithin(chain, before.sizeBytes);
    const facts = await countMerged(chain, regions, before, run.after, manifest, options);
    requireSpace(repository, facts);
    const merged = open(`${deltaName(before.number)}.new`, 'create');
    merged.truncate(deltaPlaces(facts).lengthBytes);
    await writeMerged(chain, regions, facts, merged, options);
    const digest = finishDelta(merged, facts);
    merged.fsync();
    files.fsyncFolder(HISTORY);
    merged.dropCache();
    const again = openDelta(merged, before.number, facts.uuid);
    merged.dropCache();
    assert(again.digest === digest, 'the merged delta is on the disk as it was made');
    return { sha256: digest, lengthBytes: again.lengthBytes, blocks: facts.savedBlocks + facts.zeroBlocks };
  } finally {
    for (const file of opened) file.close();
  }
}

/**
 * The regions of which the merged delta has something, ascending. A later version may have grown: what it has beyond the end of the
 * one before has no place in that one's index, and where the place would be lie saved blocks.
 */
function regionsWithin(chain: readonly Delta[], sizeBytes: number): number[] {
  const end = regionCount(sizeBytes);
  const regions = new Set<number>();
  for (const delta of chain)
    for (const region of regionsOf(delta.file, shapeOf(delta))) if (region < end) regions.add(region);
  return [...regions].sort((a, b) => a - b);
}

/** A block of the merged delta and where it comes from. */
interface MergedBlock {
  block: number;
  delta: Delta;
  place: number;
}

/** What the merged delta has of a region, ascending: each block from the first delta that has it. */
function mergedRegion(chain: readonly Delta[], region: number, sizeBytes: number, scratch: Buffer): MergedBlock[] {
  const found = new Map<number, MergedBlock>();
  const count = blocksInRegion(region, sizeBytes);
  for (const delta of chain) {
    const entries = regionEntries(delta.file, shapeOf(delta), region, scratch);
    entries?.forEach((place, block) => {
      // A later version may have grown: the older one has no block there.
      if (place !== 0 && block < count && !found.has(block)) found.set(block, { block, delta, place });
    });
  }
  return [...found.values()].sort((a, b) => a.block - b.block);
}

async function countMerged(
  chain: readonly Delta[],
  regions: readonly number[],
  before: VersionRecord,
  after: VersionRecord,
  manifest: ManifestData,
  options: PruneOptions,
): Promise<DeltaFacts> {
  const scratch = Buffer.alloc(REGION_BLOCKS * 8);
  let savedBlocks = 0;
  let zeroBlocks = 0;
  for (const region of regions) {
    for (const { delta, place } of mergedRegion(chain, region, before.sizeBytes, scratch)) {
      if (place === delta.places.zeroPlace) zeroBlocks++;
      else savedBlocks++;
    }
    await letSignalsIn(options);
  }
  return {
    version: before.number,
    sizeBytes: before.sizeBytes,
    nextVersion: after.number,
    nextSizeBytes: after.sizeBytes,
    savedBlocks,
    zeroBlocks,
    uuid: seriesBytes(manifest),
  };
}

async function writeMerged(
  chain: readonly Delta[],
  regions: readonly number[],
  facts: DeltaFacts,
  merged: WritableFile,
  options: PruneOptions,
): Promise<void> {
  const layout = deltaPlaces(facts);
  const shape = { sizeBytes: facts.sizeBytes, ...layout };
  const scratch = Buffer.alloc(REGION_BLOCKS * 8);
  const data = Buffer.alloc(REGION_BLOCKS * BLOCK_SIZE_BYTES);
  const checksums = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  let next = layout.zeroPlace + 1;
  for (const region of regions) {
    const entries = new Uint32Array(REGION_BLOCKS);
    let saved = 0;
    for (const { block, delta, place } of mergedRegion(chain, region, facts.sizeBytes, scratch)) {
      if (place === delta.places.zeroPlace) {
        entries[block] = layout.zeroPlace;
        continue;
      }
      // With the checksum that it was recorded with: damage stays damage.
      readMarked(
        delta.file,
        data.subarray(saved * BLOCK_SIZE_BYTES, (saved + 1) * BLOCK_SIZE_BYTES),
        place * BLOCK_SIZE_BYTES,
      );
      readMarked(
        delta.file,
        checksums.subarray(saved * CHECKSUM_BYTES, (saved + 1) * CHECKSUM_BYTES),
        checksumOffset(shapeOf(delta), place),
      );
      entries[block] = next + saved;
      saved++;
    }
    if (saved > 0) {
      merged.pwrite(data.subarray(0, saved * BLOCK_SIZE_BYTES), next * BLOCK_SIZE_BYTES);
      merged.pwrite(checksums.subarray(0, saved * CHECKSUM_BYTES), checksumOffset(shape, next));
    }
    merged.pwrite(encodeEntries(entries), sliceOffset(shape, region));
    next += saved;
    await letSignalsIn(options);
  }
  assert(next === layout.endPlace, `merged places end at ${next}`);
}

let lookedUpMs = 0;

/** The event loop hears signals; looked into ten times a second. */
async function letSignalsIn(options: PruneOptions): Promise<void> {
  requireGoingOn(options.signal);
  if (Date.now() - lookedUpMs < 100) return;
  lookedUpMs = Date.now();
  await nextTurn();
}

function requireSpace(repository: Repository, facts: DeltaFacts): void {
  const neededBytes =
    (facts.savedBlocks + 1) * (BLOCK_SIZE_BYTES + CHECKSUM_BYTES) + (facts.savedBlocks + facts.zeroBlocks) * 8;
  const freeBytes = repository.files.freeBytes();
  if (freeBytes >= neededBytes) return;
  throw new CowbirdError(
    'ENOSPC',
    `${repository.files.path}: to drop versions after ${facts.version} takes ${neededBytes} bytes for a while, ${freeBytes} are free: ${neededBytes - freeBytes} are missing. Dropping the oldest ones takes none`,
  );
}
