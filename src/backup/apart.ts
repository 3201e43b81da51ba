/** Where a repository may be, and what may be put into it: looked at before anything is written. */
import { realpathSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import type { SourceIdentity } from '../repository/manifest.js';
import type { Repository } from '../repository/repository.js';
import { newestOf } from '../repository/state.js';
import { requireNotSmaller } from '../repository/update.js';
import { belowPath } from '../sys/below.js';
import { deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import { isMereName, isSameSource } from './scan-source.js';

/** The repository must not lie in what is backed up, nor the source in the repository. */
export function requireApart({ kind, path }: SourceIdentity, repository: string): void {
  const { real, existing } = realPathOfNew(repository);
  if (kind === 'file') {
    if (!isInside(path, real)) return;
    throw new CowbirdError(
      'EINVAL',
      `${path} lies in the repository ${repository}: a repository cannot hold its own source`,
    );
  }
  const below = belowPath(existing, { withFiles: false }).numbers;
  if (deviceNumbersOn(path).some(({ number }) => below.has(number)))
    throw new CowbirdError('EINVAL', `${repository} lies on ${path}, which is to be backed up: put it on another disk`);
}

/** The real path of what may not exist yet, and its nearest parent that does. */
export function realPathOfNew(path: string): { real: string; existing: string } {
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

/** Whether a source may go on in a repository: asked before its series or its tracking begins. */
export function requireSameSource(repository: Repository, identity: SourceIdentity, sizeBytes: number): void {
  if (repository.manifest === undefined) return;
  const known = newestOf(repository.manifest).source;
  if (!isSameSource(known, identity)) {
    const why = isMereName(identity) ? '; it has no serial number, and so is known by what it holds' : '';
    throw new CowbirdError(
      'EINVAL',
      `${repository.files.path} is the repository of ${known.path} (${known.content ?? known.place}), and ${identity.path} is another (${identity.content ?? identity.place}${why}): use another repository for it`,
    );
  }
  requireNotSmaller(repository, identity.path, sizeBytes);
}
