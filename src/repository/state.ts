/**
 * What a repository is found to be, and how it is made whole. Every command begins with this.
 *
 *     manifest  image  image.updating  delta of the newest   what happened                           what is done
 *     no        no     no              -                     nothing yet                             nothing
 *     no        no     yes             -                     cut off in the first backup             all of it is removed
 *     no        yes    -               -                     the manifest is lost                    EUCLEAN
 *     yes       yes    no              no                    nothing                                 nothing
 *     yes       yes    no              yes                   cut off before the image was touched    the delta is removed
 *     yes       no     yes             yes                   cut off while the image was written     rolled back
 *     yes       no     yes             no                    cut off after the commit, or after      the image gets its name
 *                                                            a rollback had its image done           back
 *     yes       yes    yes             -                     somebody else put a file there          EUCLEAN
 *     yes       no     no              -                     the image is lost                       EUCLEAN
 *                                                            (`checksums` gone: the same)
 *
 * Beside that: `history/N.cow.new` is renamed over `history/N.cow` when it is the one that the manifest names (a prune was
 * cut off after its commit), else removed; deltas of versions that the manifest no longer has, `manifest.new` and `incoming`
 * are removed, and used maps of all versions but the newest. A manifest that is damaged or gone is replaced by its copy; with the copy, an image under its name and a finished
 * delta of the newest are rolled back too, as the image may be one version newer than the copy knows.
 *
 * Order of effects of a rollback (each may be cut off, and done again):
 *   1. old contents to the image, old checksums, old lengths    2. fsync of both
 *   3. image.updating → image, fsync of the folder              4. the delta is removed, fsync of its folder
 */

import { CowFormatError } from '../cow/errors.js';
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { CHECKSUM_BYTES, matchesChecksum } from './checksum.js';
import { checksumOffset, type Delta, openDelta, regionEntries, regionsOf, shapeOf } from './delta.js';
import { isMark, type RepositoryFiles, readMarked, type WritableFile } from './files.js';
import { readPage, writePage } from './jobs-common.js';
import {
  bytesInRegion,
  CHECKSUMS,
  deltaName,
  HISTORY,
  IMAGE,
  IMAGE_UPDATING,
  INCOMING,
  LOCK,
  MANIFEST,
  MANIFEST_COPY,
  MANIFEST_NEW,
  REGION_BLOCKS,
  REGION_BYTES,
  TOGETHER,
  usedName,
  versionOfDelta,
} from './layout.js';
import {
  commitManifest,
  copyManifest,
  type LoadedManifest,
  loadManifest,
  type ManifestData,
  type VersionRecord,
} from './manifest.js';
import { removeRecord, type UnsettledInstant, unsettledInstants } from './together-record.js';

const NAMES = [
  IMAGE,
  IMAGE_UPDATING,
  CHECKSUMS,
  HISTORY,
  MANIFEST,
  MANIFEST_COPY,
  MANIFEST_NEW,
  INCOMING,
  TOGETHER,
  LOCK,
  'lost+found',
];

export type ImageState = 'none' | 'unfinished-first' | 'clean' | 'unused-delta' | 'half-written' | 'unnamed';

export interface RepositoryState {
  image: ImageState;
  loaded: LoadedManifest | undefined;
  /** Files of a prune or of a manifest that were left. */
  leftovers: string[];
  /** Of versions together with other repositories (together-record.ts). */
  instants: UnsettledInstant[];
}

/** The newest version of a manifest. */
export function newestOf(manifest: ManifestData): VersionRecord {
  const newest = manifest.versions.at(-1);
  if (newest === undefined) throw new RangeError('A manifest has one version at least');
  return newest;
}

/**
 * Refuses what is no repository, before anything is made there. `mayBegin`: an empty directory may become one.
 *
 * @throws {CowbirdError} ENOENT, EINVAL.
 */
export function requireRepository(files: RepositoryFiles, mayBegin: boolean): void {
  const names = files.list('');
  if (names === undefined)
    throw new CowbirdError('ENOENT', `${files.path} does not exist: \`cowbird backup SOURCE ${files.path}\` makes it`);
  if (names.includes(MANIFEST) || names.includes(MANIFEST_COPY)) return;
  const foreign = names.filter((name) => !NAMES.includes(name));
  if (foreign.length > 0) {
    throw new CowbirdError(
      'EINVAL',
      `${files.path} is no repository, and not empty (it has \`${foreign[0]}\`): name an empty directory or one that does not exist`,
    );
  }
  if (mayBegin || names.includes(IMAGE) || names.includes(IMAGE_UPDATING)) return;
  throw new CowbirdError(
    'ENOENT',
    `${files.path} has no version yet: \`cowbird backup SOURCE ${files.path}\` makes the first`,
  );
}

/**
 * Looks at the names alone, and at the manifest.
 *
 * @throws {CowbirdError} ENOENT, EINVAL for what is no repository; EUCLEAN for one that lacks a part.
 */
export function examine(files: RepositoryFiles): RepositoryState {
  requireRepository(files, true);
  const names = files.list('') ?? [];
  const loaded = loadManifest(files);
  const has = (name: string): boolean => names.includes(name);
  if (loaded === undefined) {
    if (has(IMAGE))
      throw unclean(files, 'its manifest is gone. `image` is the newest version, and can be copied as it is');
    return {
      image: has(IMAGE_UPDATING) || has(CHECKSUMS) ? 'unfinished-first' : 'none',
      loaded,
      leftovers: [...(has(MANIFEST_NEW) ? [MANIFEST_NEW] : []), ...usedMaps(files.list(HISTORY) ?? [])],
      instants: unsettledInstants(files, undefined),
    };
  }
  if (!has(CHECKSUMS)) throw unclean(files, 'its checksums are gone. `image` can be copied as it is');
  const newest = newestOf(loaded.manifest).number;
  const history = files.list(HISTORY) ?? [];
  const beyond = history.map(versionOfDelta).find((version) => version !== undefined && version > newest);
  if (beyond !== undefined)
    throw unclean(
      files,
      `history has a delta of version ${beyond}, the manifest ends with ${newest}: it is older than the rest`,
    );
  const listed = new Set(
    loaded.manifest.versions.slice(0, -1).map(({ number }) => deltaName(number).slice(HISTORY.length + 1)),
  );
  const open = `${newest}.cow`;
  // Only what has a name of ours is removed.
  const leftovers = history
    .filter((name) => /^[1-9]\d*\.cow(\.new)?$/.test(name) && !listed.has(name) && name !== open)
    .map((name) => `${HISTORY}/${name}`);
  leftovers.push(...usedMaps(history).filter((name) => name !== usedName(newest)));
  leftovers.push(...[MANIFEST_NEW, INCOMING].filter(has));
  const image = imageState(files, has(IMAGE), has(IMAGE_UPDATING), history.includes(open));
  return { image, loaded, leftovers, instants: unsettledInstants(files, loaded.manifest) };
}

/** Paths of used maps, by the names in the history. */
function usedMaps(history: readonly string[]): string[] {
  return history.filter((name) => /^[1-9]\d*\.used$/.test(name)).map((name) => `${HISTORY}/${name}`);
}

function imageState(files: RepositoryFiles, named: boolean, updating: boolean, hasDelta: boolean): ImageState {
  if (named && updating)
    throw unclean(files, 'it has both `image` and `image.updating`: move the one that is not Cowbird’s out of it');
  if (named) return hasDelta ? 'unused-delta' : 'clean';
  if (!updating) throw unclean(files, 'its image is gone');
  return hasDelta ? 'half-written' : 'unnamed';
}

function unclean(files: RepositoryFiles, why: string): CowbirdError {
  return new CowbirdError('EUCLEAN', `${files.path}: ${why}`);
}

/** Whether {@link recover} has something to do. A manifest that is not like its copy is healed by who writes. */
export function needsRecovery({ image, leftovers, loaded, instants }: RepositoryState, writes: boolean): boolean {
  // A used map that is left, as in a copy of a repository where nothing was deleted, is in nobody's way who only reads.
  const inTheWay = leftovers.filter((name) => writes || !name.endsWith('.used'));
  const isCut = (image !== 'clean' && image !== 'none') || inTheWay.length > 0;
  return isCut || instants.some(({ decision }) => decision !== 'keep') || (writes && loaded?.differ === true);
}

/**
 * Makes the repository whole: the version before, or the new one where it was committed. Wants the exclusive lock. Done
 * twice it does no harm.
 *
 * @throws {CowbirdError} EUCLEAN when the delta of a half-written image is damaged; when another repository that knows more
 * cannot be found.
 */
export function recover(files: RepositoryFiles): void {
  settleInstants(files, examine(files).instants);
  const { image, loaded, leftovers } = examine(files);
  if (loaded === undefined) {
    if (image === 'unfinished-first') removeUnfinished(files);
    removeAll(files, leftovers);
    return;
  }
  const { manifest, isFromCopy, differ } = loaded;
  const newest = newestOf(manifest);
  if (image === 'half-written') rollBack(files, manifest);
  // The copy may be one commit old, and the image newer than it says: then the delta is what undoes it.
  if (image === 'unused-delta' && isFromCopy && isCompleteDelta(files, manifest, newest.number)) {
    files.rename(IMAGE, IMAGE_UPDATING);
    files.fsyncFolder('');
    rollBack(files, manifest);
  }
  if (image === 'unnamed') nameImage(files);
  if (image === 'half-written' || image === 'unused-delta') {
    files.unlink(deltaName(newest.number));
    files.fsyncFolder(HISTORY);
  }
  settleLeftovers(files, manifest, leftovers);
  if (isFromCopy) commitManifest(files, manifest);
  if (differ) copyManifest(files, manifest);
}

/** What is rolled forward is as after a commit then, and what is rolled back as without the file. */
function settleInstants(files: RepositoryFiles, instants: readonly UnsettledInstant[]): void {
  for (const { name, decision, record } of instants) {
    if (decision === 'keep') continue;
    if (decision === 'forward' && record !== undefined) commitManifest(files, record.manifest);
    removeRecord(files, name);
  }
}

function isCompleteDelta(files: RepositoryFiles, manifest: ManifestData, version: number): boolean {
  return digestOfFile(files, deltaName(version), version, manifest) !== undefined;
}

/** image.updating → image, durable. */
export function nameImage(files: RepositoryFiles): void {
  files.rename(IMAGE_UPDATING, IMAGE);
  files.fsyncFolder('');
}

function removeUnfinished(files: RepositoryFiles): void {
  removeAll(
    files,
    [CHECKSUMS, IMAGE_UPDATING].filter((name) => files.witness(name) !== undefined),
  );
}

function removeAll(files: RepositoryFiles, names: readonly string[]): void {
  for (const name of names) files.unlink(name);
  for (const folder of new Set(names.map((name) => (name.startsWith(`${HISTORY}/`) ? HISTORY : ''))))
    files.fsyncFolder(folder);
}

/** Ends what a prune had committed, and removes the rest. The merged deltas first: what they replace may be removed then. */
function settleLeftovers(files: RepositoryFiles, manifest: ManifestData, leftovers: readonly string[]): void {
  const removed: string[] = [];
  let isRenamed = false;
  for (const name of leftovers) {
    if (name.endsWith('.cow.new') && isCommittedMerge(files, manifest, name)) {
      files.rename(name, name.slice(0, -'.new'.length));
      isRenamed = true;
    } else removed.push(name);
  }
  if (isRenamed) files.fsyncFolder(HISTORY);
  removeAll(files, removed);
}

function isCommittedMerge(files: RepositoryFiles, manifest: ManifestData, name: string): boolean {
  const version = versionOfDelta(name.slice(HISTORY.length + 1, -'.new'.length));
  const record = manifest.versions.find(({ number }) => number === version);
  if (version === undefined || record?.delta == null) return false;
  return digestOfFile(files, name, version, manifest) === record.delta.sha256;
}

/** Undefined for a delta that was never finished. */
function digestOfFile(
  files: RepositoryFiles,
  name: string,
  version: number,
  manifest: ManifestData,
): string | undefined {
  const file = files.open(name, 'read');
  try {
    return openDelta(file, version, seriesBytes(manifest)).digest;
  } catch (error) {
    if (error instanceof CowFormatError) return undefined;
    throw error;
  } finally {
    file.close();
  }
}

export function seriesBytes(manifest: ManifestData): Uint8Array {
  return Uint8Array.from(Buffer.from(manifest.series, 'hex'));
}

function rollBack(files: RepositoryFiles, manifest: ManifestData): void {
  const newest = newestOf(manifest);
  const opened: WritableFile[] = [];
  const open = (name: string, mode: 'read' | 'write'): WritableFile => {
    const file = files.open(name, mode);
    opened.push(file);
    return file;
  };
  try {
    const deltaFile = open(deltaName(newest.number), 'read');
    const delta = openUndo(files, deltaFile, newest, manifest);
    const image = open(IMAGE_UPDATING, 'write');
    const checksums = open(CHECKSUMS, 'write');
    for (const region of regionsOf(deltaFile, shapeOf(delta)))
      restoreRegion(delta, deltaFile, image, checksums, region);
    image.truncate(newest.sizeBytes);
    checksums.truncate(blockCount(newest.sizeBytes) * CHECKSUM_BYTES);
    image.fsync();
    checksums.fsync();
  } finally {
    for (const file of opened) file.close();
  }
  nameImage(files);
}

function openUndo(files: RepositoryFiles, file: WritableFile, newest: VersionRecord, manifest: ManifestData): Delta {
  try {
    return openDelta(file, newest.number, seriesBytes(manifest));
  } catch (error) {
    if (!(error instanceof CowFormatError)) throw error;
    throw new CowbirdError(
      'EUCLEAN',
      `${files.path}: an update was cut off, and ${deltaName(newest.number)}, which would undo it, is damaged (${messageOf(error)}). image.updating is version ${newest.number} but for the blocks that were being written`,
      { outcome: 'failed', cause: error },
    );
  }
}

/** Writes back what a region of the image was, with its checksums. */
function restoreRegion(
  delta: Delta,
  deltaFile: WritableFile,
  image: WritableFile,
  checksums: WritableFile,
  region: number,
): void {
  const shape = shapeOf(delta);
  const entries = regionEntries(deltaFile, shape, region, Buffer.alloc(REGION_BLOCKS * 8));
  const page = Buffer.alloc(REGION_BLOCKS * CHECKSUM_BYTES);
  const data = Buffer.alloc(BLOCK_SIZE_BYTES);
  readPage(checksums, region, page);
  const regionEnd = region * REGION_BYTES + bytesInRegion(region, delta.sizeBytes);
  entries?.forEach((place, block) => {
    if (place === 0) return;
    const offset = region * REGION_BYTES + block * BLOCK_SIZE_BYTES;
    const checksum = page.subarray(block * CHECKSUM_BYTES, (block + 1) * CHECKSUM_BYTES);
    if (place === shape.zeroPlace) {
      checksum.fill(0);
      image.punch(offset, BLOCK_SIZE_BYTES);
      return;
    }
    readMarked(deltaFile, checksum, checksumOffset(shape, place));
    readMarked(deltaFile, data, place * BLOCK_SIZE_BYTES);
    // Where the medium does not give the saved block back, the image may still have what it was: its checksum tells. A block
    // may also consist of nothing but marks, and then it has the checksum of that.
    if (isMark(data) && !matchesChecksum(data, checksum, 0)) return;
    image.pwrite(data.subarray(0, Math.min(BLOCK_SIZE_BYTES, regionEnd - offset)), offset);
  });
  writePage(checksums, region, page, delta.sizeBytes);
}

/** Makes the repository whole after a failure, and returns the error to be thrown: with what stands against that, too. */
export function recoverAfter(files: RepositoryFiles, error: unknown): unknown {
  try {
    recover(files);
    return error;
  } catch (second) {
    return unended(error, second);
  }
}

/** A failure after which the repository could not be made whole. */
export function unended(error: unknown, second: unknown): CowbirdError {
  return new CowbirdError(
    codeOf(errnoOfError(error)),
    `${messageOf(error)}; and what was begun could not be ended yet (${messageOf(second)}): the next command does that`,
    { outcome: 'failed', cause: error },
  );
}
