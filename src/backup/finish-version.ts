/** After the commit of a backup's version: what is told of it, and what is dropped. */
import { pruneVersions } from '../repository/prune.js';
import type { Repository } from '../repository/repository.js';
import { keptVersions } from '../repository/retention.js';
import type { UpdateResult } from '../repository/update.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import type { BackupOptions, BackupSummary, Chosen } from './backup.js';

/** After the commit: drops what is no longer kept, and sums up. */
export async function finishVersion(
  held: Repository,
  result: UpdateResult,
  { engine, freezeMs, committed }: Chosen,
  options: BackupOptions,
): Promise<BackupSummary> {
  const problems = tellCommitted(committed);
  const dropped = await dropOld(held, result.version.number, options);
  const summary = { ...summaryOf(held, result, dropped), freezeMs };
  summary.warnings.push(...problems);
  const { preFreeze, postThaw } = options.hooks ?? {};
  if ((preFreeze ?? postThaw) !== undefined && (engine === 'scan' || (engine === 'driver' && freezeMs === 0)))
    summary.warnings.push('the hooks were not run: no snapshot was taken');
  return summary;
}

/** The version counts by now: what its engine cannot note of it is no failure of the backup. */
function tellCommitted(committed: Chosen['committed']): string[] {
  try {
    committed?.();
    return [];
  } catch (error) {
    return [
      `that the version was made could not be noted for the next one, which finds out by itself: ${messageOf(error)}`,
    ];
  }
}

async function dropOld(repository: Repository, made: number, options: BackupOptions): Promise<number[]> {
  if (options.keep === undefined) return [];
  const { versions } = repository.requireManifest();
  try {
    return await pruneVersions(repository, keptVersions(versions, { last: options.keep }), { signal: options.signal });
  } catch (error) {
    throw new CowbirdError(
      codeOf(errnoOfError(error)),
      `Version ${made} was made, but not all older ones could be dropped: ${messageOf(error)}`,
      { outcome: 'partial', cause: error },
    );
  }
}

function summaryOf(
  repository: Repository,
  { version, damagedBlocks, imageWasForeign, lostUsedMap, afterwards }: UpdateResult,
  dropped: number[],
): BackupSummary {
  const warnings = [...repository.warnings];
  const skippedBytes = version.skipped.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  if (imageWasForeign)
    warnings.push(
      'the image or its checksums are not as the last version left them (touched by somebody, or an update was cut off): it was read and compared too',
    );
  if (damagedBlocks.length > 0)
    warnings.push(
      `${damagedBlocks.length} blocks of the version before were damaged in the repository: \`cowbird verify\` tells which versions are whole`,
    );
  if (lostUsedMap !== undefined)
    warnings.push(
      `which blocks the version before has no contents of is not known (${lostUsedMap}): all contents were compared`,
    );
  if (afterwards !== undefined)
    warnings.push(`the version was made, but not all could be done after it: ${afterwards}`);
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
    passes: 1,
    restBytes: 0,
    skippedBytes,
    dropped,
    hookFailed: false,
    warnings,
  };
}
