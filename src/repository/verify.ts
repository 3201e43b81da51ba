/**
 * Verifying: every block of the image and of the deltas against its checksum, the deltas' structure against the manifest.
 *
 * What is damaged is told by file, place and versions: a block of the image is seen by the newest version, and by every
 * older one in whose chain no delta has that block; a block of delta N by version N and the older ones likewise; a delta
 * whose structure is damaged by version N and all older ones.
 */
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { type Delta, regionEntries, regionsOf, shapeOf } from './delta.js';
import type { WritableFile } from './files.js';
import type { JobSpec } from './jobs.js';
import type { JobFiles, JobTotals } from './jobs-common.js';
import { CHECKSUMS, deltaName, IMAGE, REGION_BLOCKS, regionCount, usedName } from './layout.js';
import type { ManifestData, VersionRecord } from './manifest.js';
import type { Repository } from './repository.js';
import type { RunJob } from './runner.js';
import { newestOf } from './state.js';
import { newestUsed } from './used-map.js';
import { openListed, openVersion } from './version.js';

export interface Damage {
  /** File of the repository. */
  file: string;
  /** Byte in that file; null for a file that cannot be read as a whole. */
  fileOffset: number | null;
  /** Byte in the versions; null for all of them. */
  offset: number | null;
  lengthBytes: number | null;
  /** That are not whole because of it; none for a manifest whose copy serves. */
  versions: number[];
  what: string;
}

export interface VerifyReport {
  damage: Damage[];
  /** Versions that are whole. */
  whole: number[];
  bytesRead: number;
  /** The image was opened and written by somebody else. */
  imageWasForeign: boolean;
}

export interface VerifyOptions {
  run: RunJob;
  signal?: AbortSignal | undefined;
  onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

/** Verifies image, history and manifest. Never throws for damage: it is in the report. @throws {CowbirdError} EINTR. */
export async function verifyRepository(repository: Repository, options: VerifyOptions): Promise<VerifyReport> {
  const { files } = repository;
  const manifest = repository.requireManifest();
  const damage = manifestDamage(repository);
  const opened: WritableFile[] = [];
  const open = (name: string): WritableFile => {
    const file = files.open(name, 'read');
    opened.push(file);
    return file;
  };
  try {
    const deltas = openDeltas(repository, manifest, open, damage);
    const run = runWithProgress(manifest, options);
    let bytesRead = await verifyImage(manifest, open, deltas, damage, run);
    const used = newestUsed(files, manifest);
    if (used.kind === 'lost' && !used.isGone) damage.push(lostUsedMap(manifest, used.problem));
    for (const delta of deltas.values()) bytesRead += await verifyDelta(manifest, delta, deltas, damage, run);
    return reportOf(repository, manifest, damage, bytesRead);
  } finally {
    for (const file of opened) file.close();
  }
}

/** Verifies one version: all that reading it takes. */
export async function verifyVersion(
  repository: Repository,
  record: VersionRecord,
  options: VerifyOptions,
): Promise<VerifyReport> {
  const manifest = repository.requireManifest();
  const damage = manifestDamage(repository);
  const numbers = [record.number];
  let bytesRead = 0;
  try {
    const version = openVersion(repository.files, manifest, record);
    try {
      const onProgress = (done: number, of: number): void =>
        options.onProgress?.((done / of) * record.sizeBytes, record.sizeBytes);
      const job = { kind: 'verify-view', view: version.view } as const;
      const totals = await options.run(job, version.files, regionCount(record.sizeBytes), {
        signal: options.signal,
        onProgress,
      });
      bytesRead = totals.bytesRead;
      for (const block of totals.damagedBlocks) addBlock(damage, placeOf(version.deltas, block), block, numbers);
    } finally {
      version.close();
    }
  } catch (error) {
    if (codeOf(errnoOfError(error)) !== 'EUCLEAN') throw error;
    damage.push(wholeFile('history', numbers, messageOf(error)));
  }
  const report = reportOf(repository, manifest, damage, bytesRead);
  return { ...report, whole: report.whole.filter((number) => number === record.number) };
}

function manifestDamage(repository: Repository): Damage[] {
  return repository.warnings.map((warning) => wholeFile(warning.slice(0, warning.indexOf(':')), [], warning));
}

/** No version is the worse for it. */
function lostUsedMap(manifest: ManifestData, problem: string): Damage {
  const what = `${problem}; the versions do not need it: the next backup compares all contents, and makes it anew`;
  return wholeFile(usedName(newestOf(manifest).number), [], what);
}

function wholeFile(file: string, versions: number[], what: string): Damage {
  return { file, fileOffset: null, offset: null, lengthBytes: null, versions, what };
}

function reportOf(repository: Repository, manifest: ManifestData, damage: Damage[], bytesRead: number): VerifyReport {
  const bad = new Set(damage.flatMap(({ versions }) => versions));
  const whole = manifest.versions.map(({ number }) => number).filter((number) => !bad.has(number));
  return { damage, whole, bytesRead, imageWasForeign: !repository.isImageUntouched() };
}

type Deltas = ReadonlyMap<number, Delta>;

function openDeltas(
  repository: Repository,
  manifest: ManifestData,
  open: (name: string) => WritableFile,
  damage: Damage[],
): Deltas {
  const deltas = new Map<number, Delta>();
  for (const version of manifest.versions.slice(0, -1)) {
    try {
      deltas.set(version.number, openListed(repository.files, manifest, version, open));
    } catch (error) {
      if (!(error instanceof CowbirdError) || error.code !== 'EUCLEAN') throw error;
      const older = manifest.versions.map(({ number }) => number).filter((number) => number <= version.number);
      damage.push(wholeFile(deltaName(version.number), older, error.message));
    }
  }
  return deltas;
}

/** Runs a job and tells how much of the whole is done. */
type Run = (spec: JobSpec, files: JobFiles, regions: number, bytes: number) => Promise<JobTotals>;

function runWithProgress(manifest: ManifestData, options: VerifyOptions): Run {
  const imageBytes = manifest.versions.at(-1)?.sizeBytes ?? 0;
  const totalBytes = manifest.versions.reduce(
    (sum, { delta }) => sum + (delta?.blocks ?? 0) * BLOCK_SIZE_BYTES,
    imageBytes,
  );
  let before = 0;
  return (spec, files, regions, bytes) => {
    const start = before;
    before += bytes;
    const onProgress = (done: number, of: number): void =>
      options.onProgress?.(start + (done / of) * bytes, totalBytes);
    return options.run(spec, files, regions, { signal: options.signal, onProgress });
  };
}

async function verifyImage(
  manifest: ManifestData,
  open: (name: string) => WritableFile,
  deltas: Deltas,
  damage: Damage[],
  run: Run,
): Promise<number> {
  const { sizeBytes, number } = newestOf(manifest);
  const image = open(IMAGE);
  const checksums = open(CHECKSUMS);
  const all = manifest.versions.map((version) => version.number);
  const checksumBytes = blockCount(sizeBytes) * CHECKSUM_BYTES;
  if (image.sizeBytes() !== sizeBytes)
    damage.push(wholeFile(IMAGE, all, `image has ${image.sizeBytes()} bytes, version ${number} has ${sizeBytes}`));
  if (checksums.sizeBytes() !== checksumBytes)
    damage.push(
      wholeFile(CHECKSUMS, all, `checksums has ${checksums.sizeBytes()} bytes, it ought to have ${checksumBytes}`),
    );
  const totals = await run(
    { kind: 'verify-image', sizeBytes },
    { image, checksums },
    regionCount(sizeBytes),
    sizeBytes,
  );
  for (const block of totals.damagedBlocks) {
    const place = { file: IMAGE, fileOffset: block * BLOCK_SIZE_BYTES };
    addBlock(damage, place, block, [number, ...seenThrough(manifest, deltas, number, block)]);
  }
  return totals.bytesRead;
}

async function verifyDelta(
  manifest: ManifestData,
  delta: Delta,
  deltas: Deltas,
  damage: Damage[],
  run: Run,
): Promise<number> {
  const { savedBlocks, version, file } = delta;
  const spec = { kind: 'verify-delta', shape: shapeOf(delta), savedBlocks } as const;
  const totals = await run(
    spec,
    { chain: [file] },
    Math.ceil(savedBlocks / REGION_BLOCKS),
    savedBlocks * BLOCK_SIZE_BYTES,
  );
  if (totals.damagedBlocks.length === 0) return totals.bytesRead;
  const places = new Set(totals.damagedBlocks.map((saved) => delta.places.zeroPlace + 1 + saved));
  for (const { block, place } of entriesOf(delta)) {
    if (!places.has(place)) continue;
    const at = { file: deltaName(version), fileOffset: place * BLOCK_SIZE_BYTES };
    addBlock(damage, at, block, [version, ...seenThrough(manifest, deltas, version, block)]);
  }
  return totals.bytesRead;
}

/** Every block of a delta with its place, ascending. */
function* entriesOf(delta: Delta): Generator<{ block: number; place: number }> {
  const shape = shapeOf(delta);
  const scratch = Buffer.alloc(REGION_BLOCKS * 8);
  for (const region of regionsOf(delta.file, shape)) {
    const entries = regionEntries(delta.file, shape, region, scratch) ?? new Uint32Array();
    for (const [at, place] of entries.entries()) if (place !== 0) yield { block: region * REGION_BLOCKS + at, place };
  }
}

/** Versions before `number` that read this block from where it does: their deltas, and those between, do not have it. */
function seenThrough(manifest: ManifestData, deltas: Deltas, number: number, block: number): number[] {
  const seen: number[] = [];
  for (const version of manifest.versions.filter((older) => older.number < number).reverse()) {
    const delta = deltas.get(version.number);
    if (delta !== undefined && placeIn(delta, block) !== 0) break;
    if (block < blockCount(version.sizeBytes)) seen.push(version.number);
  }
  return seen;
}

/** The place of a block in a delta; 0 where it does not have it. */
function placeIn(delta: Delta, block: number): number {
  const scratch = Buffer.alloc(REGION_BLOCKS * 8);
  const entries = regionEntries(delta.file, shapeOf(delta), Math.floor(block / REGION_BLOCKS), scratch);
  return entries?.[block % REGION_BLOCKS] ?? 0;
}

function placeOf(chain: readonly Delta[], block: number): { file: string; fileOffset: number } {
  for (const delta of chain) {
    const place = placeIn(delta, block);
    if (place !== 0) return { file: deltaName(delta.version), fileOffset: place * BLOCK_SIZE_BYTES };
  }
  return { file: IMAGE, fileOffset: block * BLOCK_SIZE_BYTES };
}

/** Adds a damaged block; to the last one where it goes on there. */
function addBlock(
  damage: Damage[],
  { file, fileOffset }: { file: string; fileOffset: number },
  block: number,
  versions: number[],
): void {
  const offset = block * BLOCK_SIZE_BYTES;
  const sorted = [...versions].sort((a, b) => a - b);
  const last = damage.at(-1);
  const goesOn =
    last?.offset != null &&
    last.lengthBytes !== null &&
    last.fileOffset !== null &&
    last.file === file &&
    last.offset + last.lengthBytes === offset &&
    last.fileOffset + last.lengthBytes === fileOffset &&
    last.versions.join() === sorted.join();
  if (goesOn) last.lengthBytes = (last.lengthBytes ?? 0) + BLOCK_SIZE_BYTES;
  else
    damage.push({
      file,
      fileOffset,
      offset,
      lengthBytes: BLOCK_SIZE_BYTES,
      versions: sorted,
      what: 'contents and checksum do not agree',
    });
}
