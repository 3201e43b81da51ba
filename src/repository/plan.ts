/** What a new version changes, found without writing anything, and the delta that keeps what it will overwrite. */
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { assert, CowbirdError } from '../sys/errors.js';
import { makeBits, regionsWith } from './bits.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { type DeltaFacts, deltaPlaces, finishDelta, openDelta } from './delta.js';
import type { WritableFile } from './files.js';
import type { JobTotals } from './jobs-common.js';
import { deltaName, HISTORY, regionCount } from './layout.js';
import type { ManifestData } from './manifest.js';
import type { Repository } from './repository.js';
import type { BackupSource } from './source.js';
import { newestOf, seriesBytes } from './state.js';
import { bytesOf, phase, type UpdateOptions, usedOf } from './update-options.js';

/** What a comparison found. */
export interface Plan {
  changed: Uint8Array;
  heal: Uint8Array | undefined;
  saves: Uint16Array;
  facts: DeltaFacts;
  totals: JobTotals;
}

export interface OpenFiles {
  image: WritableFile;
  checksums: WritableFile;
}

/** Compares the source with the newest version. */
export async function compare(
  { image, checksums }: OpenFiles,
  manifest: ManifestData,
  source: BackupSource,
  options: UpdateOptions,
  checkImage: boolean,
): Promise<Plan> {
  const newest = newestOf(manifest);
  const regions = regionCount(source.sizeBytes);
  const changed = makeBits(regions);
  const heal = checkImage ? makeBits(regions) : undefined;
  const saves = new Uint16Array(new SharedArrayBuffer(regions * 2));
  const spec = {
    kind: 'compare',
    sizeBytes: source.sizeBytes,
    oldSizeBytes: newest.sizeBytes,
    skipBadBlocks: options.skipBadBlocks,
    used: usedOf(source, options),
    holdsOnlyCandidates: source.holdsOnlyCandidates === true,
    candidates: checkImage && source.holdsOnlyCandidates !== true ? undefined : source.candidates,
    changed,
    heal,
    saves,
  } as const;
  const chosen = spec.candidates === undefined || checkImage ? regions : regionsWith(regions, spec.candidates);
  const totals = await options.run(
    spec,
    { source: source.file, image, checksums },
    chosen,
    phase(options, 'compare', bytesOf(chosen, source.sizeBytes)),
  );
  const oldBlocks = blockCount(newest.sizeBytes);
  const savedBlocks = saves.reduce((sum, count) => sum + count, 0);
  const facts: DeltaFacts = {
    version: newest.number,
    sizeBytes: newest.sizeBytes,
    nextVersion: manifest.lastNumber + 1,
    nextSizeBytes: source.sizeBytes,
    savedBlocks,
    zeroBlocks: countBits(changed, oldBlocks) - savedBlocks,
    uuid: seriesBytes(manifest),
  };
  return { changed, heal, saves, facts, totals };
}

function countBits(bits: Uint8Array, blocks: number): number {
  let count = 0;
  for (let at = 0; at * 8 < blocks; at++) {
    let byte = bits[at] ?? 0;
    if (blocks - at * 8 < 8) byte %= 2 ** (blocks - at * 8);
    for (; byte > 0; byte &= byte - 1) count++;
  }
  return count;
}

/** Manifest, its copy, directory entries and the file system's own needs. */
const SPARE_BYTES = 1_048_576;

/** `moreBytes`: what is written beside blocks and history. @throws {CowbirdError} ENOSPC, with what is missing. */
export function requireSpace(repository: Repository, plan: Plan, moreBytes: number): void {
  const { facts, totals } = plan;
  const { lengthBytes, zeroPlace } = deltaPlaces(facts);
  const indexBytes = Math.min(zeroPlace * BLOCK_SIZE_BYTES, (facts.savedBlocks + facts.zeroBlocks) * BLOCK_SIZE_BYTES);
  const neededBytes =
    lengthBytes -
    zeroPlace * BLOCK_SIZE_BYTES +
    indexBytes +
    totals.growthBlocks * (BLOCK_SIZE_BYTES + CHECKSUM_BYTES) +
    // Without that room neither the new contents could be written nor the old ones be put back.
    (repository.files.isCopyOnWrite() ? facts.savedBlocks * BLOCK_SIZE_BYTES : 0) +
    moreBytes +
    SPARE_BYTES;
  const freeBytes = repository.files.freeBytes();
  if (freeBytes >= neededBytes) return;
  throw new CowbirdError(
    'ENOSPC',
    `${repository.files.path}: the new version needs ${neededBytes} bytes, ${freeBytes} are free: ${neededBytes - freeBytes} are missing. Nothing was changed; make room, or drop old versions with \`cowbird prune\``,
  );
}

/** The delta, durable and read again. */
export async function saveDelta(
  repository: Repository,
  { image, checksums }: OpenFiles,
  plan: Plan,
  options: UpdateOptions,
): Promise<{ digest: string; lengthBytes: number; totals: JobTotals }> {
  const { files } = repository;
  const { facts, saves } = plan;
  const regions = regionCount(facts.sizeBytes);
  const layout = deltaPlaces(facts);
  const shape = {
    sizeBytes: facts.sizeBytes,
    zeroPlace: layout.zeroPlace,
    endPlace: layout.endPlace,
    checksumsAt: layout.checksumsAt,
  };
  const places = new Float64Array(new SharedArrayBuffer(regions * 8));
  let place = layout.zeroPlace + 1;
  for (let region = 0; region < regions; region++) {
    places[region] = place;
    place += saves[region] ?? 0;
  }
  assert(place === layout.endPlace, `places end at ${place}`);
  if (files.list(HISTORY) === undefined) {
    // Empty folders get lost where repositories are copied.
    files.makeFolder(HISTORY);
    files.fsyncFolder('');
  }
  const delta = files.open(deltaName(facts.version), 'create');
  try {
    delta.truncate(layout.lengthBytes);
    const spec = {
      kind: 'save',
      shape,
      changed: plan.changed,
      places,
      saves,
      checkImage: plan.heal !== undefined,
    } as const;
    const chosen = regionsWith(regions, plan.changed);
    const totals = await options.run(
      spec,
      { image, checksums, delta },
      chosen,
      phase(options, 'save', bytesOf(chosen, facts.sizeBytes)),
    );
    const digest = finishDelta(delta, facts);
    delta.fsync();
    files.fsyncFolder(HISTORY);
    delta.dropCache();
    const again = openDelta(delta, facts.version, facts.uuid);
    delta.dropCache();
    assert(again.digest === digest, 'the delta is on the disk as it was made');
    return { digest, lengthBytes: layout.lengthBytes, totals };
  } finally {
    delta.close();
  }
}
