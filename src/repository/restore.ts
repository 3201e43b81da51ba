/**
 * Writing a version to a disk or file.
 *
 * Order of effects: the target gets its length (a file) → blocks, only those that differ unless all are wanted → fsync →
 * the written blocks are read back past the page cache and compared with the version's checksums. Cut off anywhere it can be
 * run again: it finds what is still different. Every block is compared with its checksum before it is written; one that is
 * damaged is left out and told.
 */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { makeBits } from './bits.js';
import type { WritableFile } from './files.js';
import { regionCount } from './layout.js';
import type { SkippedRange, VersionRecord } from './manifest.js';
import type { Repository } from './repository.js';
import type { RunJob, RunOptions } from './runner.js';
import { rangesOf } from './update.js';
import { openVersion } from './version.js';

export interface RestoreOptions {
  /** Write every block, also those that are right already. */
  all: boolean;
  /** Say how much would be written, and write nothing. */
  dryRun: boolean;
  run: RunJob;
  signal?: AbortSignal | undefined;
  onProgress?: ((phase: 'restore' | 'check', doneBytes: number, totalBytes: number) => void) | undefined;
}

export interface RestoreResult {
  bytesRead: number;
  /** Written; with `dryRun` what would be. */
  bytesWritten: number;
  /** Damaged in the repository, and so not written. */
  damaged: SkippedRange[];
}

/** Where a version goes. */
export interface RestoreTarget {
  /** Called when the version can be read. Undefined for a file that does not exist, in a dry run: it makes none. */
  open(): WritableFile | undefined;
  /** A file gets the version's length; a disk keeps its own. */
  isFile: boolean;
  sizeBytes: number;
}

/**
 * Restores a version.
 *
 * @throws {CowbirdError} EINVAL for a disk that is too small; EIO when what was written does not read back; EINTR.
 */
export async function restoreVersion(
  repository: Repository,
  record: VersionRecord,
  target: RestoreTarget,
  options: RestoreOptions,
): Promise<RestoreResult> {
  const { sizeBytes } = record;
  if (!target.isFile && target.sizeBytes < sizeBytes) {
    throw new CowbirdError(
      'EINVAL',
      `The target has ${target.sizeBytes} bytes, version ${record.number} has ${sizeBytes}: choose a larger one`,
    );
  }
  const version = openVersion(repository.files, repository.requireManifest(), record);
  try {
    const file = target.open();
    const written = makeBits(regionCount(sizeBytes));
    const files = { ...version.files, ...(file === undefined ? {} : { target: file }) };
    const targetBytes = Math.min(target.sizeBytes, sizeBytes);
    if (target.isFile && !options.dryRun) file?.truncate(sizeBytes);
    const job = {
      kind: 'restore',
      view: version.view,
      targetBytes,
      all: options.all,
      dryRun: options.dryRun,
      written,
    } as const;
    const totals = await options.run(job, files, regionCount(sizeBytes), progress(options, 'restore', sizeBytes));
    if (!options.dryRun && file !== undefined) {
      file.fsync();
      file.dropCache();
      const check = { kind: 'check', view: version.view, written } as const;
      const checked = await options.run(check, files, regionCount(sizeBytes), progress(options, 'check', sizeBytes));
      file.dropCache();
      requireRight(checked.damagedBlocks);
    }
    const damaged = rangesOf(totals.damagedBlocks, sizeBytes);
    return { bytesRead: totals.bytesRead, bytesWritten: totals.bytesWritten, damaged };
  } finally {
    version.close();
  }
}

function requireRight(blocks: readonly number[]): void {
  const [first] = blocks;
  if (first === undefined) return;
  throw new CowbirdError(
    'EIO',
    `What was written does not read back in ${blocks.length} blocks, the first at ${first * BLOCK_SIZE_BYTES}: the target is failing; choose another, or run this again`,
    { outcome: 'partial' },
  );
}

function progress(options: RestoreOptions, phase: 'restore' | 'check', sizeBytes: number): RunOptions {
  return {
    signal: options.signal,
    onProgress: (done, of) => options.onProgress?.(phase, (done / of) * sizeBytes, sizeBytes),
  };
}
