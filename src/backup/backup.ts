/**
 * One backup: choose the engine, open the source, make the version, drop what is no longer kept.
 *
 * An engine is whatever makes a `BackupSource`: what there is to read, which of it is in use, and, where that is proved,
 * which of it may have changed. The repository does the same with each.
 */
import { realpathSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { DiskFiles } from '../repository/disk-files.js';
import { IMAGE } from '../repository/layout.js';
import type { VersionRecord } from '../repository/manifest.js';
import { pruneVersions } from '../repository/prune.js';
import type { Repository } from '../repository/repository.js';
import { keptVersions } from '../repository/retention.js';
import { newestOf } from '../repository/state.js';
import { createVersion, type UpdateResult } from '../repository/update.js';
import { CowbirdError } from '../sys/errors.js';
import { openOptions, type RepositoryOptions, withRepository } from './repository-at.js';
import { isSameSource, lockImage, type OpenSource, openScanSource } from './scan-source.js';

export interface BackupOptions extends RepositoryOptions {
  /** @default 'auto' */
  engine?: 'auto' | 'scan';
  /** Keep so many of the newest versions. @default all */
  keep?: number;
  /** Copy unused blocks too. */
  whole?: boolean;
  /** Make a version although some blocks cannot be read; they are recorded. */
  skipBadBlocks?: boolean;
}

export interface BackupSummary {
  version: number;
  engine: VersionRecord['engine'];
  /** Why this engine, in words. */
  reason: string;
  sizeBytes: number;
  /** Of the source. */
  bytesRead: number;
  /** To the repository. */
  bytesWritten: number;
  /** How long the file system stood still. */
  freezeMs: number;
  /** Could not be read. */
  skippedBytes: number;
  /** Versions that were dropped. */
  dropped: number[];
  /** What else the person has to know. */
  warnings: string[];
}

/**
 * Makes a version of an image file or an unused disk in a repository, which is made where it does not exist.
 *
 * @throws {CowbirdError} with `refused` when nothing was changed; the versions that there were are untouched in any case.
 */
export async function backup(source: string, repository: string, options: BackupOptions = {}): Promise<BackupSummary> {
  const path = resolve(repository);
  const chosen = chooseEngine(source, options);
  const opened = chosen.open();
  let release = (): void => undefined;
  try {
    requireApart(opened, path);
    const files = new DiskFiles(path);
    files.create();
    const open = { ...openOptions(options), mayBegin: true };
    return await withRepository(path, 'write', open, async (held, pool) => {
      requireSameSource(held, opened);
      release = lockRepositoryImage(path);
      const result = await createVersion(held, opened, {
        engine: chosen.engine,
        reason: held.manifest === undefined ? `the first version; ${chosen.reason}` : chosen.reason,
        whole: options.whole === true,
        skipBadBlocks: options.skipBadBlocks === true,
        time: new Date(),
        run: pool.run,
        signal: options.signal,
        onProgress: (phase, doneBytes, totalBytes) => options.onProgress?.({ phase, doneBytes, totalBytes }),
      });
      const dropped = await dropOld(held, options);
      return summaryOf(held, result, dropped);
    });
  } finally {
    release();
    opened.close();
  }
}

/** A virtual machine or a mount that runs from the image must not have it changed underneath. */
function lockRepositoryImage(repository: string): () => void {
  const image = join(realpathSync(repository), IMAGE);
  return statSync(image, { throwIfNoEntry: false }) === undefined ? () => undefined : lockImage(image);
}

interface Choice {
  engine: VersionRecord['engine'];
  reason: string;
  open(): OpenSource;
}

function chooseEngine(source: string, options: BackupOptions): Choice {
  const reason = options.engine === 'scan' ? 'scan was asked for' : 'nothing tracks the changes of this source';
  return { engine: 'scan', reason, open: () => openScanSource(source) };
}

/** The repository must not lie in what is backed up, nor the source in the repository. */
function requireApart(source: OpenSource, repository: string): void {
  const { real, existing } = realPathOfNew(repository);
  const { kind, path } = source.identity;
  if (kind === 'file') {
    if (!isInside(path, real)) return;
    throw new CowbirdError(
      'EINVAL',
      `${path} lies in the repository ${repository}: a repository cannot hold its own source`,
    );
  }
  if (statSync(existing).dev === statSync(path).rdev)
    throw new CowbirdError('EINVAL', `${repository} lies on ${path}, which is to be backed up: put it on another disk`);
}

/** The real path of what may not exist yet, and its nearest parent that does. */
function realPathOfNew(path: string): { real: string; existing: string } {
  for (let at = path; ; at = dirname(at)) {
    if (statSync(at, { throwIfNoEntry: false }) === undefined && at !== dirname(at)) continue;
    const existing = realpathSync(at);
    return { existing, real: join(existing, relative(at, path)) };
  }
}

/** Whether a path is in a directory, or is it. */
export function isInside(path: string, directory: string): boolean {
  return path === directory || path.startsWith(join(directory, '/'));
}

function requireSameSource(repository: Repository, source: OpenSource): void {
  if (repository.manifest === undefined) return;
  const known = newestOf(repository.manifest).source;
  if (isSameSource(known, source.identity)) return;
  throw new CowbirdError(
    'EINVAL',
    `${repository.files.path} is the repository of ${known.path} (${known.content ?? known.place}), and ${source.identity.path} is another (${source.identity.content ?? source.identity.place}): use another repository for it`,
  );
}

async function dropOld(repository: Repository, options: BackupOptions): Promise<number[]> {
  if (options.keep === undefined) return [];
  const { versions } = repository.requireManifest();
  return pruneVersions(repository, keptVersions(versions, { last: options.keep }), { signal: options.signal });
}

function summaryOf(
  repository: Repository,
  { version, damagedBlocks, imageWasForeign }: UpdateResult,
  dropped: number[],
): BackupSummary {
  const warnings = [...repository.warnings];
  const skippedBytes = version.skipped.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  if (imageWasForeign)
    warnings.push(
      'the image was touched since the last version, or an update was cut off: it was read and compared too',
    );
  if (damagedBlocks.length > 0)
    warnings.push(
      `${damagedBlocks.length} blocks of the version before were damaged in the repository: \`cowbird verify\` tells which versions are whole`,
    );
  if (skippedBytes > 0)
    warnings.push(`${skippedBytes} bytes could not be read: they are as in the version before, or zeros`);
  const { number, engine, reason, sizeBytes, bytesRead, bytesWritten } = version;
  return {
    version: number,
    engine,
    reason,
    sizeBytes,
    bytesRead,
    bytesWritten,
    freezeMs: 0,
    skippedBytes,
    dropped,
    warnings,
  };
}
