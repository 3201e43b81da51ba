/** Repositories as people name them, opened on a disk. */
import { resolve } from 'node:path';
import { DiskFiles } from '../repository/disk-files.js';
import { type OpenOptions, Repository } from '../repository/repository.js';
import { WorkerPool } from '../repository/runner.js';
import { CowbirdError } from '../sys/errors.js';

/** What every command on a repository takes. */
export interface RepositoryOptions {
  /** How long to wait for another process's lock. @default 0 */
  waitMs?: number;
  signal?: AbortSignal;
  /** Hears how far it is, about ten times a second. */
  onProgress?: (progress: Progress) => void;
}

export interface Progress {
  /** What is being done. */
  phase: 'compare' | 'save' | 'copy' | 'verify' | 'restore' | 'check';
  doneBytes: number;
  totalBytes: number;
}

/** `REPO@3`: the last `@` with digits behind it; without it the newest version. */
export interface VersionName {
  repository: string;
  version: number | undefined;
}

export function parseVersionName(text: string): VersionName {
  const [, repository, digits] = /^(.+)@(\d{1,15})$/s.exec(text) ?? [];
  if (repository === undefined || digits === undefined) return { repository: text, version: undefined };
  return { repository, version: Number(digits) };
}

/** `REPO@2..5`; undefined for anything else. */
export function parseVersionRange(text: string): { repository: string; from: number; to: number } | undefined {
  const [, repository, from, to] = /^(.+)@(\d{1,15})\.\.(\d{1,15})$/s.exec(text) ?? [];
  return repository === undefined ? undefined : { repository, from: Number(from), to: Number(to) };
}

/** Opens a repository, does something with it and threads for it, and closes both on every path. */
export async function withRepository<T>(
  path: string,
  access: 'read' | 'write',
  options: OpenOptions,
  use: (repository: Repository, pool: WorkerPool) => Promise<T>,
): Promise<T> {
  if (path === '') throw new CowbirdError('ENOENT', 'The repository is an empty string: name a directory');
  const repository = await Repository.open(new DiskFiles(resolve(path)), access, options);
  const pool = new WorkerPool();
  try {
    return await use(repository, pool);
  } finally {
    await pool.close();
    repository.close();
  }
}

/** The options that opening takes. */
export function openOptions({ waitMs, signal }: RepositoryOptions): OpenOptions {
  return { ...(waitMs === undefined ? {} : { waitMs }), signal };
}
