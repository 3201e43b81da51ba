/**
 * Sources that go on being written: read again and again, until what was read is one state.
 *
 * The first version needs no more than its image, which does not count before its commit: each pass is written over the one
 * before. For a later version the passes go to a file aside, and nothing else is touched before that holds one state. So the
 * delta is made once, of blocks that are known, and the order of effects of an update is as with any other source. The file
 * is unlinked as soon as it is made: cut off or killed, nothing is left of it (`incoming`, where that was between the two).
 */
import { CowbirdError } from '../sys/errors.js';
import { addBits, hasBit, makeBits, regionsWith } from './bits.js';
import type { WritableFile } from './files.js';
import type { JobTotals } from './jobs-common.js';
import { INCOMING, regionCount } from './layout.js';
import type { ManifestData } from './manifest.js';
import type { OpenFiles } from './plan.js';
import type { Repository } from './repository.js';
import type { BackupSource } from './source.js';
import { newestOf } from './state.js';
import { bytesOf, isOutOfSpace, phase, type UpdateOptions, usedOf } from './update-options.js';
import type { ReadBlocks } from './used-map.js';

/** What was read in all passes. */
export interface PassTotals {
  bytesRead: number;
  /** Could not be read when they were read last. */
  badBlocks: Set<number>;
  /** What was looked at, and what of it was in use when it was looked at last. */
  blocks: ReadBlocks;
}

/** Writes what changed meanwhile over the first version's image. `totals` is that of the first reading, and is added to. */
export async function followSource(
  files: OpenFiles,
  source: BackupSource,
  options: UpdateOptions,
  totals: JobTotals,
): Promise<{ totals: JobTotals; blocks: ReadBlocks }> {
  const sum: PassTotals = {
    bytesRead: totals.bytesRead,
    badBlocks: new Set(totals.badBlocks),
    blocks: { candidates: undefined, used: usedOf(source, options) },
  };
  let bytesWritten = totals.bytesWritten;
  for (let pass = await source.nextPass?.(); pass !== undefined; pass = await source.nextPass?.()) {
    const { blocks, file } = pass;
    const used = usedOf(pass, options);
    const spec = {
      kind: 'apply',
      sizeBytes: source.sizeBytes,
      skipBadBlocks: options.skipBadBlocks,
      used,
      changed: blocks,
      heal: undefined,
      zeroed: undefined,
    } as const;
    const chosen = regionsWith(regionCount(source.sizeBytes), blocks);
    const progress = phase(options, 'copy', bytesOf(chosen, source.sizeBytes));
    const more = await options.run(spec, { ...files, source: file }, chosen, progress);
    addPass(sum, blocks, more);
    sum.blocks = { candidates: undefined, used };
    bytesWritten += more.bytesWritten;
  }
  const { bytesRead } = sum;
  return { totals: { ...totals, bytesRead, bytesWritten, badBlocks: sortedBlocks(sum) }, blocks: sum.blocks };
}

function addPass(sum: PassTotals, blocks: Uint8Array | undefined, totals: JobTotals): void {
  sum.bytesRead += totals.bytesRead;
  // What could not be read once may have been written and read since.
  for (const block of [...sum.badBlocks])
    if (blocks === undefined || hasBit(blocks, block)) sum.badBlocks.delete(block);
  for (const block of totals.badBlocks) sum.badBlocks.add(block);
}

function sortedBlocks({ badBlocks }: PassTotals): number[] {
  return [...badBlocks].sort((a, b) => a - b);
}

/** One state of a source, aside. */
export interface SettledSource {
  source: BackupSource;
  bytesRead: number;
  badBlocks: number[];
  blocks: ReadBlocks;
  close(): void;
}

/** Reads a source that goes on being written until the file aside has one state of all that differs from the newest version. */
export async function settleSource(
  repository: Repository,
  { image, checksums }: OpenFiles,
  manifest: ManifestData,
  source: BackupSource,
  options: UpdateOptions,
  checkImage: boolean,
): Promise<SettledSource> {
  const regions = regionCount(source.sizeBytes);
  const staged = makeBits(regions);
  const target = openUnnamed(repository);
  // Where the image is not to be trusted every block is looked at.
  const candidates = checkImage ? undefined : source.candidates;
  const seen = candidates?.slice();
  const sum: PassTotals = {
    bytesRead: 0,
    badBlocks: new Set(),
    blocks: { candidates: seen, used: usedOf(source, options) },
  };
  const read = async (file: BackupSource['file'], blocks?: Uint8Array, used?: Uint8Array): Promise<void> => {
    const spec = {
      kind: 'stage',
      sizeBytes: source.sizeBytes,
      oldSizeBytes: newestOf(manifest).sizeBytes,
      skipBadBlocks: options.skipBadBlocks,
      used,
      blocks,
      checkImage,
      staged,
    } as const;
    const chosen = blocks === undefined ? regions : regionsWith(regions, blocks);
    const done = { doneBytes: 0 };
    const wholeBytes = bytesOf(chosen, source.sizeBytes);
    const progress = phase(options, 'compare', wholeBytes, done);
    try {
      const totals = await options.run(spec, { source: file, image, checksums, target }, chosen, progress);
      addPass(sum, blocks, totals);
      // What was read before was candidates, or all.
      if (seen !== undefined && blocks !== undefined && typeof chosen !== 'number') addBits(seen, blocks, chosen);
      sum.blocks = { candidates: seen, used };
    } catch (error) {
      throw isOutOfSpace(error) ? noRoomAside(repository, wholeBytes - done.doneBytes) : error;
    }
  };
  try {
    target.truncate(source.sizeBytes);
    await read(source.file, candidates, usedOf(source, options));
    for (let pass = await source.nextPass?.(); pass !== undefined; pass = await source.nextPass?.())
      await read(pass.file, pass.blocks, usedOf(pass, options));
  } catch (error) {
    target.close();
    throw error;
  }
  const { sizeBytes, identity, confirm } = source;
  return {
    source: { sizeBytes, identity, file: target, candidates: staged, holdsOnlyCandidates: true, confirm },
    bytesRead: sum.bytesRead,
    badBlocks: sortedBlocks(sum),
    blocks: sum.blocks,
    close: () => target.close(),
  };
}

/** At most: what is as in the newest version takes no space. */
function noRoomAside({ files }: Repository, leftBytes: number): CowbirdError {
  return new CowbirdError(
    'ENOSPC',
    `${files.path}: no space left for what changed, with ${leftBytes} bytes of the source still to be read and compared. No version was made, and nothing of this is kept; make room for twice what changed at most (once while it is read, once for the history), or drop old versions with \`cowbird prune\``,
    { outcome: 'failed' },
  );
}

function openUnnamed({ files }: Repository): WritableFile {
  const file = files.open(INCOMING, 'create');
  files.unlink(INCOMING);
  return file;
}
