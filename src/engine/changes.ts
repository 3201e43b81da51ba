/**
 * What `changes` answers: the change map as byte extents, in pages.
 *
 * A map of 16 TiB can have two thousand million runs, and an answer is one text. So a page has so many runs at most, and says
 * where the next one begins. The map is alive between two pages: within a sequence bits are set and never cleared, so the pages
 * have every block that had changed when the first one was asked for, and of what is written meanwhile some. Whoever asks proves
 * by `uuid` and `seq_id` that all pages are of one sequence.
 */
import { CowbirdError } from '../sys/errors.js';
import { BLOCK_BYTES, setRuns } from '../tracer/layout.js';
import type { EngineContext } from './context.js';
import { tracked } from './tracking.js';
import type { ChangesReport } from './types.js';

/** Some megabytes of text. */
export const PAGE_RUNS_MAX = 100_000;

/**
 * The changed blocks of a minor from a block on; or, without `fromBlock`, all of them.
 *
 * @throws {CowbirdError} EFBIG where all of them are more than one answer holds: they are asked for from block 0 on then.
 */
export function changesReport(context: EngineContext, minor: number, fromBlock: number | undefined): ChangesReport {
  const { volume, snapshot } = tracked(context, minor);
  if (snapshot.unverified) {
    throw new CowbirdError('EINVAL', `Minor ${minor} is not verified yet: mount ${volume.record.device.node} first`);
  }
  const { sizeBytes } = volume.record.opened;
  const page = pageOf(volume.memory.map, { blockCount: volume.blockCount, sizeBytes }, fromBlock ?? 0);
  if (fromBlock === undefined && page.next_block !== undefined) {
    const message = `Minor ${minor} has more than ${PAGE_RUNS_MAX} runs of changed blocks: they are answered in pages, from block 0 on; this command is older than that`;
    throw new CowbirdError('EFBIG', message);
  }
  return { minor, uuid: snapshot.uuid, seq_id: snapshot.sequenceId, block_size: BLOCK_BYTES, ...page };
}

type Page = Pick<ChangesReport, 'nr_changed_blocks' | 'bytes' | 'extents' | 'next_block'>;

/** The runs from a block on, so many at most. */
export function pageOf(
  map: Int32Array,
  { blockCount, sizeBytes }: { blockCount: number; sizeBytes: number },
  fromBlock: number,
  runsMax = PAGE_RUNS_MAX,
): Page {
  const page: Page = { nr_changed_blocks: 0, bytes: 0, extents: [] };
  for (const run of setRuns(map, blockCount, fromBlock)) {
    // Known to be there: a page that is full is followed by one that is not empty.
    if (page.extents.length === runsMax) return { ...page, next_block: run.firstBlock };
    const offset = run.firstBlock * BLOCK_BYTES;
    const length = Math.min(run.blockCount * BLOCK_BYTES, sizeBytes - offset);
    page.extents.push({ offset, length });
    page.nr_changed_blocks += run.blockCount;
    page.bytes += length;
  }
  return page;
}
