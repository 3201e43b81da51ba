/**
 * The commit of versions of several repositories at one instant: all of them count, or none. Every version is written and
 * durable by then (`prepareVersion`), and the repositories are open to write. Order of effects:
 *
 *   1. the sources are asked once more
 *   2. together/<id>.json of each repository, the first one's first; fsync, fsync of its folder
 *   3. the first repository's manifest: this is the commit of all
 *   4. for each of the others: its manifest, image.updating → image; then its file of 2 is removed
 *   5. the first one's file is removed
 *
 * Cut in 1 and 2, all are rolled back, each when it is opened; from 3 on all are rolled forward (together-record.ts says how
 * they know). In a repository that lost its file of 2 to the power cut, nothing was committed anywhere.
 */
import { assert, CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { togetherName } from './layout.js';
import { loadManifest } from './manifest.js';
import { recover, unended } from './state.js';
import { removeRecord, writeRecord } from './together-record.js';
import type { PreparedVersion, UpdateResult } from './update.js';

/**
 * Makes all of the versions count, or none. `id`: 32 hexadecimal digits, as in the versions.
 *
 * @throws what a source has against it, or writing gave: there is no version then; with `partial` all of them are there.
 */
export async function commitTogether(id: string, parts: readonly PreparedVersion[]): Promise<UpdateResult[]> {
  try {
    for (const part of parts) await part.confirm();
    const repositories = parts.map(({ repository, manifest }) => ({
      path: repository.files.path,
      series: manifest.series,
    }));
    for (const [self, { repository, manifest }] of parts.entries())
      writeRecord(repository.files, { id, self, repositories, manifest });
    const results: UpdateResult[] = [];
    for (const [i, part] of parts.entries()) {
      results.push(part.count());
      if (i > 0) removeRecord(part.repository.files, togetherName(id));
    }
    const [first] = parts;
    if (first !== undefined) removeRecord(first.repository.files, togetherName(id));
    return results;
  } catch (error) {
    throw settle(id, parts, error);
  }
}

/**
 * Takes back what was prepared in some of the repositories, before there is a file in any of them: in each, whatever becomes of the
 * others. Returns the error to be thrown.
 */
export function abortTogether(parts: readonly PreparedVersion[], error: unknown): unknown {
  return parts.reduce((failure, part) => part.abort(failure), error);
}

/** After a failure: the same decision as after a cut. The first one must be whole before another follows it. */
function settle(id: string, parts: readonly PreparedVersion[], error: unknown): unknown {
  const code = codeOf(errnoOfError(error));
  let isCommitted = false;
  try {
    for (const [i, { repository }] of parts.entries()) {
      recover(repository.files);
      if (i > 0) continue;
      const versions = loadManifest(repository.files)?.manifest.versions ?? [];
      isCommitted = versions.some(({ togetherId }) => togetherId === id);
    }
  } catch (second) {
    return unended(error, second);
  }
  if (!isCommitted) return error;
  assert(parts.length > 0, 'a version was committed');
  return new CowbirdError(code, `All versions were made, but: ${messageOf(error)}`, {
    outcome: 'partial',
    cause: error,
  });
}
