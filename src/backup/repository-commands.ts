/** What is asked of a repository that has versions: list, verify, compare, drop. */
import { resolve } from 'node:path';
import { changesBetween } from '../repository/changes.js';
import { DiskFiles } from '../repository/disk-files.js';
import { TOGETHER } from '../repository/layout.js';
import type { VersionRecord } from '../repository/manifest.js';
import { pruneVersions } from '../repository/prune.js';
import { listedManifest, Repository, versionRecord } from '../repository/repository.js';
import { keptVersions, type RetentionPolicy } from '../repository/retention.js';
import { type VerifyReport, verifyRepository, verifyVersion } from '../repository/verify.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { openOptions, parseVersionName, type RepositoryOptions, withRepository } from './repository-at.js';

export interface RepositoryVersions {
  repository: string;
  series: string;
  /** Ascending; the last is the image. */
  versions: VersionRecord[];
  warnings: string[];
}

/**
 * The versions of a repository. Needs no lock and writes nothing: a manifest is the old one or the new one, also while a
 * backup runs or after one was cut off. Only what was cut off together with other repositories is settled first.
 */
export async function listVersions(repository: string): Promise<RepositoryVersions> {
  const files = new DiskFiles(resolve(repository));
  const unsettled = await settleInstants(files);
  const { manifest, warnings } = listedManifest(files);
  return {
    repository: files.path,
    series: manifest.series,
    versions: manifest.versions,
    warnings: [...warnings, ...unsettled],
  };
}

/** A version that was cut off together with others may count there already. Returns why it is not known here, in words. */
async function settleInstants(files: DiskFiles): Promise<string[]> {
  if ((files.list(TOGETHER) ?? []).length === 0) return [];
  try {
    (await Repository.open(files, 'read')).close();
    return [];
  } catch (error) {
    return [messageOf(error)];
  }
}

/** Verifies a repository (`REPO`) or one version (`REPO@N`). Damage is told in the report, not thrown. */
export async function verify(name: string, options: RepositoryOptions = {}): Promise<VerifyReport> {
  const { repository, version } = parseVersionName(name);
  return withRepository(repository, 'read', openOptions(options), async (held, pool) => {
    const onProgress = (doneBytes: number, totalBytes: number): void =>
      options.onProgress?.({ phase: 'verify', doneBytes, totalBytes });
    const how = { run: pool.run, signal: options.signal, onProgress };
    if (version === undefined) return verifyRepository(held, how);
    return verifyVersion(held, versionRecord(held.files, held.requireManifest(), version), how);
  });
}

export interface PruneSummary {
  kept: number[];
  /** With `dryRun`: that would be dropped. */
  dropped: number[];
}

/**
 * Drops the versions that no rule keeps. The newest always stays.
 *
 * @throws {CowbirdError} EINVAL where no rule is given.
 */
export async function prune(
  repository: string,
  policy: RetentionPolicy,
  options: RepositoryOptions & { dryRun?: boolean } = {},
): Promise<PruneSummary> {
  if (Object.values(policy).every((count) => count === undefined))
    throw new CowbirdError(
      'EINVAL',
      'No rule says what to keep: give --keep, --keep-daily, --keep-weekly or --keep-monthly',
    );
  const access = options.dryRun === true ? 'read' : 'write';
  return withRepository(repository, access, openOptions(options), async (held) => {
    const { versions } = held.requireManifest();
    const kept = keptVersions(versions, policy);
    const dropped = versions.map(({ number }) => number).filter((number) => !kept.includes(number));
    if (options.dryRun !== true) await pruneVersions(held, kept, { signal: options.signal });
    return { kept, dropped };
  });
}

export interface VersionChanges {
  from: number;
  to: number;
  bytes: number;
  extents: Array<{ offset: number; length: number }>;
}

/** The byte ranges in which two versions of a repository differ. */
export async function versionChanges(
  repository: string,
  from: number,
  to: number,
  options: RepositoryOptions = {},
): Promise<VersionChanges> {
  return withRepository(repository, 'read', openOptions(options), async (held) => {
    const manifest = held.requireManifest();
    const ranges = changesBetween(
      held,
      versionRecord(held.files, manifest, from),
      versionRecord(held.files, manifest, to),
    );
    const extents = ranges.map(({ offset, lengthBytes }) => ({ offset, length: lengthBytes }));
    return { from, to, bytes: extents.reduce((sum, { length }) => sum + length, 0), extents };
  });
}
