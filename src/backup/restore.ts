/** Restoring a version to a disk or file: which targets are taken, and what is asked first. */
import { realpathSync, type Stats, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { HEAD_BYTES, isRaidSuperblock, raidSuperblockOffsets, signatureOf } from '../block/signature.js';
import { readPadded } from '../repository/files.js';
import { IMAGE } from '../repository/layout.js';
import type { VersionRecord } from '../repository/manifest.js';
import { versionRecord } from '../repository/repository.js';
import { type RestoreTarget, restoreVersion } from '../repository/restore.js';
import { belowDisk } from '../sys/below.js';
import { deviceNumber } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import { PageFile } from '../sys/page-file.js';
import { isInside } from './apart.js';
import { openOptions, parseVersionName, type RepositoryOptions, withRepository } from './repository-at.js';
import { claimError, lockImage, realPathOf } from './scan-source.js';

export interface RestoreToOptions extends RepositoryOptions {
  /** Write every block, also those that are right already. */
  all?: boolean;
  /** Say how much would be written, and write nothing. */
  dryRun?: boolean;
  /**
   * Asked before a target is overwritten that holds something: what it holds, in words. Undefined, or false: refused.
   */
  confirm?: (holds: string) => Promise<boolean>;
}

export interface RestoreSummary {
  version: number;
  sizeBytes: number;
  /** Written; with `dryRun` what would be. */
  bytesWritten: number;
  /** Damaged in the repository, and so not written. */
  damaged: Array<{ offset: number; lengthBytes: number }>;
  warnings: string[];
}

/**
 * Writes a version (`REPO` or `REPO@N`) to a disk that nobody uses, or to a file, which is made where it does not exist.
 *
 * @throws {CowbirdError} EBUSY for a target in use; EINVAL for one that is too small or in the repository; EEXIST for one that
 * holds something and was not confirmed; EIO when what was written does not read back.
 */
export async function restore(name: string, target: string, options: RestoreToOptions = {}): Promise<RestoreSummary> {
  const { repository, version } = parseVersionName(name);
  return withRepository(repository, 'read', openOptions(options), async (held, pool) => {
    const record = versionRecord(held.files, held.requireManifest(), version);
    requireOutside(target, held.files.path);
    const opened = openTarget(target, record, options.dryRun === true);
    try {
      if (options.dryRun !== true) await requireConsent(target, opened.existing, options);
      const result = await restoreVersion(held, record, opened.target, {
        all: options.all === true,
        dryRun: options.dryRun === true,
        run: pool.run,
        signal: options.signal,
        onProgress: (phase, doneBytes, totalBytes) => options.onProgress?.({ phase, doneBytes, totalBytes }),
      });
      const { bytesWritten, damaged } = result;
      return {
        version: record.number,
        sizeBytes: record.sizeBytes,
        bytesWritten,
        damaged,
        warnings: [...held.warnings, ...skippedWarning(record)],
      };
    } finally {
      opened.close();
    }
  });
}

function skippedWarning({ number, skipped }: VersionRecord): string[] {
  const bytes = skipped.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  if (bytes === 0) return [];
  return [
    `${bytes} bytes could not be read when version ${number} was made: they are as in the version before, or zeros`,
  ];
}

/** A target in the repository, or a second name of its image, would destroy what is restored from. */
function requireOutside(target: string, repository: string): void {
  const real = realPathOf(repository);
  const there = realTarget(target);
  if (isInside(there, real))
    throw new CowbirdError('EINVAL', `${target} lies in the repository: restore to another place`);
  const [a, image] = [statOf(there), statOf(join(real, IMAGE))];
  if (a === undefined || image === undefined) return;
  // A loop device on the image writes to it as well.
  const files = a.isBlockDevice() ? belowDisk(deviceNumber(a.rdev), { withFiles: true }).files : [a];
  if (files.some(({ dev, ino }) => dev === image.dev && ino === image.ino))
    throw new CowbirdError(
      'EINVAL',
      `${target} is the repository's image under another name: restore to another place`,
    );
}

/** Where a target is, or will be: links are followed as far as there is something. */
function realTarget(target: string): string {
  const path = resolve(target);
  if (statOf(path) !== undefined) return realpathSync(path);
  if (statOf(dirname(path)) === undefined)
    throw new CowbirdError('ENOENT', `${dirname(path)} does not exist: make it first, or name another target`);
  return join(realpathSync(dirname(path)), basename(path));
}

function statOf(path: string): Stats | undefined {
  return statSync(path, { throwIfNoEntry: false });
}

interface OpenTarget {
  target: RestoreTarget;
  /** What is there already. */
  existing: PageFile | undefined;
  close(): void;
}

function openTarget(path: string, record: VersionRecord, dryRun: boolean): OpenTarget {
  const real = realTarget(path);
  const stats = statOf(real);
  if (stats === undefined) return newTarget(real, dryRun);
  if (!stats.isFile() && !stats.isBlockDevice())
    throw new CowbirdError('ENOTBLK', `${path} is neither a block device nor a file: restore to one of these`);
  const release = stats.isFile() ? lockImage(real) : (): void => undefined;
  try {
    const file = stats.isFile()
      ? PageFile.open(real, dryRun ? 'read' : 'write')
      : claimTarget(real, Number(stats.rdev), dryRun);
    const target = { open: () => file, isFile: stats.isFile(), sizeBytes: file.sizeBytes() };
    const close = (): void => {
      file.close();
      release();
    };
    if (stats.isFile() || target.sizeBytes >= record.sizeBytes) return { target, existing: file, close };
    close();
    throw new CowbirdError(
      'EINVAL',
      `${path} has ${target.sizeBytes} bytes, version ${record.number} has ${record.sizeBytes}: choose a larger disk`,
    );
  } catch (error) {
    release();
    throw error;
  }
}

function newTarget(path: string, dryRun: boolean): OpenTarget {
  let made: PageFile | undefined;
  const open = (): PageFile | undefined => {
    if (!dryRun) made = PageFile.open(path, 'create-new');
    return made;
  };
  return { target: { open, isFile: true, sizeBytes: 0 }, existing: undefined, close: () => made?.close() };
}

function claimTarget(path: string, rdev: number, dryRun: boolean): PageFile {
  try {
    return PageFile.open(path, dryRun ? 'read' : 'write', true);
  } catch (error) {
    if (codeOf(errnoOfError(error)) === 'EROFS')
      throw new CowbirdError('EROFS', `${path} can only be read: choose another target`);
    throw claimError(path, error, 'unmount or release it first', rdev);
  }
}

async function requireConsent(path: string, file: PageFile | undefined, options: RestoreToOptions): Promise<void> {
  if (file === undefined) return;
  const head = Buffer.alloc(HEAD_BYTES);
  readPadded(file, head, 0);
  // The members of an array whose superblock is at their end begin with what the array holds.
  const name = isRaidMember(file) ? 'a RAID member' : signatureOf(head)?.name;
  if (name === undefined) return;
  const holds = `${path} holds ${name}, which will be overwritten`;
  if ((await options.confirm?.(holds)) === true) return;
  throw new CowbirdError('EEXIST', `${holds}: say --yes if that is meant`);
}

function isRaidMember(file: PageFile): boolean {
  const bytes = Buffer.alloc(4096);
  return raidSuperblockOffsets(file.sizeBytes()).some((offset) => {
    readPadded(file, bytes, offset);
    return isRaidSuperblock(bytes);
  });
}
