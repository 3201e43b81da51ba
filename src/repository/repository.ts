/**
 * A repository that is open: locked, whole, its manifest read.
 *
 * Locks: shared for who reads, exclusive for who writes, and for as long as it takes to make it whole. They are held by a descriptor: a
 * process that dies leaves none.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { blockCount } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { CHECKSUM_BYTES } from './checksum.js';
import type { FileWitness, Lock, RepositoryFiles } from './files.js';
import { CHECKSUMS, IMAGE } from './layout.js';
import { commitManifest, copyManifest, type LoadedManifest, loadManifest, type ManifestData } from './manifest.js';
import { examine, needsRecovery, newestOf, recover, requireRepository } from './state.js';

export interface OpenOptions {
  /** How long to wait for somebody else's lock. @default 0 */
  waitMs?: number;
  signal?: AbortSignal | undefined;
  /** An empty directory may become a repository. @default false */
  mayBegin?: boolean;
}

const POLL_MS = 100;
/** For those who look at the same repository at the same time. */
const RECOVERY_WAIT_MS = 2_000;

export class Repository {
  readonly files: RepositoryFiles;
  /** Undefined while there is no version yet. */
  manifest: ManifestData | undefined;
  /** What is damaged and was got round, in words. */
  readonly warnings: readonly string[];
  readonly #lock: Lock;

  private constructor(
    files: RepositoryFiles,
    lock: Lock,
    manifest: ManifestData | undefined,
    warnings: readonly string[],
  ) {
    this.files = files;
    this.#lock = lock;
    this.manifest = manifest;
    this.warnings = warnings;
  }

  /**
   * Opens a repository to read or write it, and makes it whole first where an update was cut off.
   *
   * @throws {CowbirdError} EBUSY when somebody else has it, naming him; ENOENT, EINVAL, EUCLEAN as `examine` has them.
   */
  static async open(files: RepositoryFiles, access: 'read' | 'write', options: OpenOptions = {}): Promise<Repository> {
    const deadlineMs = Date.now() + (options.waitMs ?? 0);
    requireRepository(files, options.mayBegin === true);
    if (access === 'write') return Repository.#openAlone(files, deadlineMs, options.signal);
    const read = await Repository.#openBeside(files, deadlineMs, options.signal);
    if (read !== undefined) return read;
    // Whoever else reads at the same time has found the same, and gives way in a moment.
    const patientMs = Math.max(deadlineMs, Date.now() + RECOVERY_WAIT_MS);
    const alone = await Repository.#openAlone(files, patientMs, options.signal);
    alone.close();
    const again = await Repository.#openBeside(files, patientMs, options.signal);
    if (again === undefined)
      throw new CowbirdError('EBUSY', `${files.path}: another update was cut off just now: run this again`);
    return new Repository(files, again.#lock, again.manifest, [...alone.warnings, ...again.warnings]);
  }

  /** With the exclusive lock, and made whole. */
  static async #openAlone(
    files: RepositoryFiles,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<Repository> {
    const lock = await acquire(files, true, deadlineMs, signal);
    try {
      let state = examine(files);
      const warnings = state.loaded?.warnings ?? [];
      if (needsRecovery(state, true)) {
        recover(files);
        state = examine(files);
      }
      return new Repository(files, lock, state.loaded?.manifest, warnings);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  /** With the shared lock; undefined where it has to be made whole first. */
  static async #openBeside(
    files: RepositoryFiles,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<Repository | undefined> {
    const lock = await acquire(files, false, deadlineMs, signal);
    let isHeld = false;
    try {
      const state = examine(files);
      if (needsRecovery(state, false)) return undefined;
      isHeld = true;
      return new Repository(files, lock, state.loaded?.manifest, state.loaded?.warnings ?? []);
    } finally {
      if (!isHeld) lock.release();
    }
  }

  /** The manifest of a repository that has versions. @throws {CowbirdError} ENOENT where there is none yet. */
  requireManifest(): ManifestData {
    if (this.manifest !== undefined) return this.manifest;
    throw noVersion(this.files);
  }

  /** Whether the image is as it was left: not opened and written, not replaced. */
  isImageUntouched(): boolean {
    const known = this.manifest?.image;
    const now = this.files.witness(IMAGE);
    return known != null && now !== undefined && sameWitness(known, now);
  }

  /** Whether `checksums` is as long as it has to be. One that was cut off reads as zeros, which is what a hole's checksums are. */
  hasAllChecksums(): boolean {
    const { sizeBytes } = newestOf(this.requireManifest());
    return this.files.witness(CHECKSUMS)?.sizeBytes === blockCount(sizeBytes) * CHECKSUM_BYTES;
  }

  /** Commits a manifest; from then on it counts. */
  commit(manifest: ManifestData): void {
    commitManifest(this.files, manifest);
    this.manifest = manifest;
  }

  /**
   * After a commit, with the image under its name: notes what it looks like, and writes the copy. An image that is not `sound`
   * counts as changed by others: the next backup looks at all of it.
   */
  seal(sound: boolean): void {
    const image = sound ? (this.files.witness(IMAGE) ?? null) : null;
    const manifest = { ...this.requireManifest(), image };
    commitManifest(this.files, manifest);
    copyManifest(this.files, manifest);
    this.manifest = manifest;
  }

  /** After a failure that was made good: whether a manifest counts by now; it is the one of this repository then. */
  reread({ series, lastNumber }: ManifestData): boolean {
    const { manifest } = loadManifest(this.files) ?? {};
    if (manifest?.series !== series || manifest.lastNumber !== lastNumber) return false;
    this.manifest = manifest;
    return true;
  }

  /** Gives the lock back. */
  close(): void {
    this.#lock.release();
  }
}

function sameWitness(a: FileWitness, b: FileWitness): boolean {
  return a.inode === b.inode && a.sizeBytes === b.sizeBytes && a.mtimeNs === b.mtimeNs && a.ctimeNs === b.ctimeNs;
}

async function acquire(
  files: RepositoryFiles,
  exclusive: boolean,
  deadlineMs: number,
  signal: AbortSignal | undefined,
): Promise<Lock> {
  for (;;) {
    const lock = files.tryLock(exclusive);
    if (lock !== undefined) return lock;
    if (signal?.aborted === true) throw new CowbirdError('EINTR', 'Interrupted while waiting for the repository');
    const leftMs = deadlineMs - Date.now();
    if (leftMs <= 0) {
      throw new CowbirdError(
        'EBUSY',
        `${files.path} is in use by ${files.lockHolder()}: try again when it has ended, or wait for it with --wait`,
      );
    }
    await pause(Math.min(POLL_MS, leftMs));
  }
}

/** The manifest without lock or repair. @throws {CowbirdError} ENOENT where there is no version yet; as `examine`. */
export function listedManifest(files: RepositoryFiles): LoadedManifest {
  requireRepository(files, false);
  const loaded = loadManifest(files);
  if (loaded !== undefined) return loaded;
  throw noVersion(files);
}

function noVersion(files: RepositoryFiles): CowbirdError {
  return new CowbirdError(
    'ENOENT',
    `${files.path} has no version yet: \`cowbird backup SOURCE ${files.path}\` makes the first`,
  );
}

/** The version that `number` names; the newest for undefined. @throws {CowbirdError} ENOENT, with those that there are. */
export function versionRecord(
  files: RepositoryFiles,
  manifest: ManifestData,
  number: number | undefined,
): ManifestData['versions'][number] {
  if (number === undefined) return newestOf(manifest);
  const found = manifest.versions.find((version) => version.number === number);
  if (found !== undefined) return found;
  const numbers = manifest.versions.map((version) => version.number).join(', ');
  throw new CowbirdError('ENOENT', `${files.path} has no version ${number}; it has ${numbers}`);
}
