/**
 * A new version. The order of effects is what makes a version whole or not there (I4); state.ts says what each cut leaves,
 * and how it is made good.
 *
 * The first version:
 *   1. image.updating and checksums are written, fsync of both, of the folder; history/1.used, fsync, fsync of its folder
 *   2. manifest.new, fsync, → manifest, fsync of the folder: committed
 *   3. image.updating → image, fsync of the folder; the manifest again with what the image looks like now; its copy
 *
 * Every later one:
 *   0. the source is compared; nothing is written, so that a lack of space is known before
 *   1. history/N.cow: old contents, index, checksums, header, footer; fsync, fsync of its folder; read again, compared
 *   2. image → image.updating, fsync of the folder: from here on a cut is rolled back
 *   3. image and checksums are written, fsync of both; history/M.used of the new version M, fsync, fsync of its folder
 *   4. manifest.new, fsync, → manifest, fsync of the folder: committed
 *   5. what became zeros gives its space back, which it has kept so that it can be written again on a disk that is full by then
 *   6. as 3 of the first; history/N.used is removed
 *
 * A source that goes on being written is read in passes (passes.ts): the first version's to its image in step 1, a later
 * one's to a file aside before step 0, so that from there on it is a source like any other.
 *
 * A failure is undone by the same code that makes good a cut.
 */
import { randomBytes } from 'node:crypto';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { makeBits, regionsWith } from './bits.js';
import { CHECKSUM_BYTES } from './checksum.js';
import type { JobTotals } from './jobs-common.js';
import { CHECKSUMS, HISTORY, IMAGE, IMAGE_UPDATING, regionCount } from './layout.js';
import { FORMAT, type ManifestData, type SkippedRange, type VersionRecord } from './manifest.js';
import { followSource, type SettledSource, settleSource } from './passes.js';
import { compare, type OpenFiles, requireSpace, saveDelta } from './plan.js';
import type { Repository } from './repository.js';
import type { BackupSource } from './source.js';
import { nameImage, newestOf, recoverAfter, seriesBytes } from './state.js';
import { bytesOf, isOutOfSpace, phase, type UpdateOptions, usedOf } from './update-options.js';
import {
  encodeUsedMap,
  type NewestUsed,
  newestUsed,
  type ReadBlocks,
  removeUsedMap,
  usedAfter,
  withUsedAgain,
  writeUsedMap,
} from './used-map.js';
import { punchZeros } from './zeroed.js';

export interface UpdateResult {
  version: VersionRecord;
  /** Blocks of the version before that were found damaged: it is not whole any more, the new one is. */
  damagedBlocks: number[];
  /** The image was changed by others and was compared block by block. */
  imageWasForeign: boolean;
  /** What the version before has contents of was not known, and so all was compared: why, in words. */
  lostUsedMap?: string;
  /** The version counts; this is what could not be done after it, in words. */
  afterwards?: string;
}

/** A version that is written and durable, and does not count yet. Exactly one of the two is to be called. */
export interface PreparedVersion {
  readonly version: VersionRecord;
  readonly repository: Repository;
  /** With which it counts. */
  readonly manifest: ManifestData;
  /** @throws what the source has against it. */
  confirm(): Promise<void>;
  /** Makes it count. @throws what writing gave; what then is shows when the repository is opened. */
  count(): UpdateResult;
  /** Both. @throws what they throw; then there is no version. */
  commit(): Promise<UpdateResult>;
  /** Takes it back after a failure, and returns the error to be thrown. */
  abort(error: unknown): unknown;
}

/** Makes a new version of the source: {@link prepareVersion} and its commit. */
export async function createVersion(
  repository: Repository,
  source: BackupSource,
  options: UpdateOptions,
): Promise<UpdateResult> {
  return (await prepareVersion(repository, source, options)).commit();
}

/** Asked before anything is begun for a source, and again when it is there. @throws {CowbirdError} EINVAL. */
export function requireNotSmaller({ manifest }: Repository, path: string, sizeBytes: number): void {
  if (manifest === undefined) return;
  const newest = newestOf(manifest);
  if (sizeBytes >= newest.sizeBytes) return;
  throw new CowbirdError(
    'EINVAL',
    `${path} has ${sizeBytes} bytes, version ${newest.number} has ${newest.sizeBytes}: a smaller source needs another repository`,
  );
}

/**
 * Writes a new version up to its commit: for versions of several sources that are all to be there, or none. The repository
 * is open to write.
 *
 * @throws {CowbirdError} EINVAL for a source that is smaller; ENOSPC with what is missing; EINTR; what reading or writing
 * gave. The version before is untouched then.
 */
export async function prepareVersion(
  repository: Repository,
  source: BackupSource,
  options: UpdateOptions,
): Promise<PreparedVersion> {
  const { manifest } = repository;
  requireNotSmaller(repository, source.identity.path, source.sizeBytes);
  try {
    const written =
      manifest === undefined
        ? await firstVersion(repository, source, options)
        : await nextVersion(repository, manifest, source, options);
    const { manifest: next, result, isSound, zeroed } = written;
    const confirm = async (): Promise<void> => source.confirm?.();
    const count = (): UpdateResult => {
      repository.commit(next);
      if (zeroed !== undefined) punchZeros(repository.files, zeroed, result.version.sizeBytes);
      nameImage(repository.files);
      repository.seal(isSound);
      if (manifest !== undefined) removeUsedMap(repository.files, newestOf(manifest).number);
      return result;
    };
    const commit = async (): Promise<UpdateResult> => {
      try {
        await confirm();
        return count();
      } catch (error) {
        const failure = undo(repository, error);
        // The manifest is committed first: what failed behind it takes nothing back.
        if (!repository.reread(next)) throw failure;
        return { ...result, afterwards: messageOf(failure) };
      }
    };
    const abort = (error: unknown): unknown => undo(repository, error);
    return { version: result.version, repository, manifest: next, confirm, count, commit, abort };
  } catch (error) {
    throw undo(repository, error);
  }
}

/** What is on the disk, and the manifest with which it counts. */
interface Written {
  manifest: ManifestData;
  result: UpdateResult;
  /** Of an image that others wrote: all of it was made good, which wants every block to be read. */
  isSound: boolean;
  /** Blocks that became zeros, and have kept their space so far. */
  zeroed?: Uint8Array;
}

/** Makes the repository whole after a failure, and returns the error to be thrown. */
function undo(repository: Repository, error: unknown): unknown {
  const failure = recoverAfter(repository.files, error);
  if (failure !== error) return failure;
  if (!isOutOfSpace(error) || error instanceof CowbirdError) return error;
  const free = repository.files.freeBytes();
  return new CowbirdError(
    'ENOSPC',
    `${repository.files.path}: no space left (${messageOf(error)}); ${free} bytes are free again. The versions before are untouched`,
    { outcome: 'failed', cause: error },
  );
}

async function firstVersion(repository: Repository, source: BackupSource, options: UpdateOptions): Promise<Written> {
  const { files } = repository;
  const { sizeBytes } = source;
  const image = files.open(IMAGE_UPDATING, 'create');
  const checksums = files.open(CHECKSUMS, 'create');
  let totals: JobTotals;
  let blocks: ReadBlocks;
  try {
    image.truncate(sizeBytes);
    checksums.truncate(blockCount(sizeBytes) * CHECKSUM_BYTES);
    const spec = {
      kind: 'copy',
      sizeBytes,
      skipBadBlocks: options.skipBadBlocks,
      used: usedOf(source, options),
    } as const;
    const progress = { doneBytes: 0 };
    try {
      totals = await options.run(
        spec,
        { source: source.file, image, checksums },
        regionCount(sizeBytes),
        phase(options, 'copy', sizeBytes, progress),
      );
    } catch (error) {
      throw isOutOfSpace(error) ? outOfSpace(repository, sizeBytes - progress.doneBytes) : error;
    }
    ({ totals, blocks } = await followSource({ image, checksums }, source, options, totals));
    image.fsync();
    checksums.fsync();
    image.dropCache();
    checksums.dropCache();
  } finally {
    image.close();
    checksums.close();
  }
  files.makeFolder(HISTORY);
  files.fsyncFolder('');
  const skipped = rangesOf(totals.badBlocks, sizeBytes);
  const version = { ...versionFrom(1, blocks.used === undefined, source, options, totals), skipped };
  const series = randomBytes(16);
  if (blocks.used !== undefined) writeUsedMap(files, 1, encodeUsedMap({ version: 1, sizeBytes, series }, blocks.used));
  return {
    manifest: { format: FORMAT, series: series.toString('hex'), lastNumber: 1, image: null, versions: [version] },
    result: { version, damagedBlocks: [], imageWasForeign: false },
    isSound: true,
  };
}

/** At most: zeros at the end of the source would take no space. */
function outOfSpace(repository: Repository, leftBytes: number): CowbirdError {
  return new CowbirdError(
    'ENOSPC',
    `${repository.files.path}: no space left with ${leftBytes} bytes of the source still to be copied. Nothing is kept; make room for that much more, or choose a larger disk`,
    { outcome: 'failed' },
  );
}

async function nextVersion(
  repository: Repository,
  manifest: ManifestData,
  given: BackupSource,
  options: UpdateOptions,
): Promise<Written> {
  const { files } = repository;
  const checkImage = !repository.isImageUntouched() || !repository.hasAllChecksums();
  // Whoever looks at everything does not ask, and is not kept by a map that cannot be read.
  const before = given.candidates === undefined || checkImage ? undefined : newestUsed(files, manifest);
  const source = { ...given, candidates: candidatesOf(given, before, options) };
  const image = files.open(IMAGE, 'write');
  const checksums = files.open(CHECKSUMS, 'write');
  let settled: SettledSource | undefined;
  try {
    const open = { image, checksums };
    if (given.nextPass !== undefined)
      settled = await settleSource(repository, open, manifest, source, options, checkImage);
    const blocks = settled?.blocks ?? { candidates: source.candidates, used: usedOf(source, options) };
    const used = usedAfter(blocks, before, source.sizeBytes);
    const written = await updateImage(
      repository,
      open,
      manifest,
      { given: source, settled, used },
      options,
      checkImage,
    );
    return before?.kind === 'lost'
      ? { ...written, result: { ...written.result, lostUsedMap: before.problem } }
      : written;
  } finally {
    settled?.close();
    image.close();
    checksums.close();
  }
}

/** What may differ from the newest version, or from what the source has where that version has no contents. */
function candidatesOf(
  source: BackupSource,
  before: NewestUsed | undefined,
  options: UpdateOptions,
): Uint8Array | undefined {
  const { candidates } = source;
  if (candidates === undefined || before === undefined || before.kind === 'lost') return undefined;
  return withUsedAgain(candidates, usedOf(source, options), before, source.sizeBytes);
}

/** What a later version is made of. */
interface NextSource {
  given: BackupSource;
  settled: SettledSource | undefined;
  /** Which blocks the version will have contents of; undefined for all. */
  used: Uint8Array | undefined;
}

/** A later version of a source that does not change any more. */
async function updateImage(
  repository: Repository,
  { image, checksums }: OpenFiles,
  manifest: ManifestData,
  { given, settled, used }: NextSource,
  options: UpdateOptions,
  checkImage: boolean,
): Promise<Written> {
  const { files } = repository;
  const newest = newestOf(manifest);
  const source = settled?.source ?? given;
  const plan = await compare({ image, checksums }, manifest, source, options, checkImage);
  const number = manifest.lastNumber + 1;
  const facts = { version: number, sizeBytes: source.sizeBytes, series: seriesBytes(manifest) };
  const usedMap = used === undefined ? undefined : encodeUsedMap(facts, used);
  requireSpace(repository, plan, usedMap?.byteLength ?? 0);
  const saved = await saveDelta(repository, { image, checksums }, plan, options);
  files.rename(IMAGE, IMAGE_UPDATING);
  files.fsyncFolder('');
  setLengths({ image, checksums }, newest.sizeBytes, source.sizeBytes);
  const zeroed = makeBits(regionCount(source.sizeBytes));
  const spec = {
    kind: 'apply',
    sizeBytes: source.sizeBytes,
    skipBadBlocks: options.skipBadBlocks,
    used: usedOf(source, options),
    changed: plan.changed,
    heal: plan.heal,
    zeroed,
  } as const;
  const chosen = regionsWith(regionCount(source.sizeBytes), plan.changed, plan.heal);
  const applied = await options.run(
    spec,
    { source: source.file, image, checksums },
    chosen,
    phase(options, 'copy', bytesOf(chosen, source.sizeBytes)),
  );
  image.fsync();
  checksums.fsync();
  image.dropCache();
  checksums.dropCache();
  writeUsedMap(files, number, usedMap);
  const version: VersionRecord = {
    ...versionFrom(number, used === undefined, given, options, plan.totals),
    // What lies aside is the repository's own.
    bytesRead: settled?.bytesRead ?? plan.totals.bytesRead + applied.bytesRead,
    bytesWritten: saved.totals.bytesWritten + applied.bytesWritten,
    skipped: rangesOf(
      [...new Set([...(settled?.badBlocks ?? []), ...plan.totals.badBlocks, ...applied.badBlocks])].sort(
        (a, b) => a - b,
      ),
      source.sizeBytes,
    ),
  };
  const delta = {
    sha256: saved.digest,
    lengthBytes: saved.lengthBytes,
    blocks: plan.facts.savedBlocks + plan.facts.zeroBlocks,
  };
  const before = manifest.versions.slice(0, -1);
  const versions = [...before, { ...newest, delta }, version];
  const damagedBlocks = [...new Set([...plan.totals.damagedBlocks, ...saved.totals.damagedBlocks])];
  return {
    manifest: { ...manifest, lastNumber: version.number, image: null, versions },
    result: { version, damagedBlocks, imageWasForeign: checkImage },
    isSound: !checkImage || version.skipped.length === 0,
    zeroed,
  };
}

/** Somebody else may have changed the image's length: what he wrote behind its end must not be there when the source grows. */
function setLengths({ image, checksums }: OpenFiles, oldSizeBytes: number, sizeBytes: number): void {
  if (image.sizeBytes() > oldSizeBytes) image.truncate(oldSizeBytes);
  if (image.sizeBytes() !== sizeBytes) image.truncate(sizeBytes);
  const checksumBytes = blockCount(sizeBytes) * CHECKSUM_BYTES;
  if (checksums.sizeBytes() !== checksumBytes) checksums.truncate(checksumBytes);
}

function versionFrom(
  number: number,
  whole: boolean,
  source: BackupSource,
  options: UpdateOptions,
  totals: JobTotals,
): VersionRecord {
  return {
    number,
    time: (source.instant?.() ?? options.time).toISOString(),
    sizeBytes: source.sizeBytes,
    engine: options.engine,
    reason: options.reason,
    whole,
    skipped: [],
    source: source.identity,
    continuityToken: options.continuityToken ?? null,
    togetherId: options.togetherId ?? null,
    bytesRead: totals.bytesRead,
    bytesWritten: totals.bytesWritten,
    delta: null,
  };
}

/** Blocks, ascending, as byte ranges. */
export function rangesOf(blocks: readonly number[], sizeBytes: number): SkippedRange[] {
  const ranges: SkippedRange[] = [];
  for (const block of blocks) {
    const offset = block * BLOCK_SIZE_BYTES;
    const lengthBytes = Math.min(BLOCK_SIZE_BYTES, sizeBytes - offset);
    const last = ranges.at(-1);
    if (last !== undefined && last.offset + last.lengthBytes === offset) last.lengthBytes += lengthBytes;
    else ranges.push({ offset, lengthBytes });
  }
  return ranges;
}
