/** The list of changes of a minor, which long ones give in pages. */
import { CowbirdError } from '../sys/errors.js';
import { type ClientOptions, call } from './client.js';
import type { ChangesReport } from './schema.js';

/**
 * The list in pages, ascending; most are one page. It has every block that had changed when it was begun with; where the volume
 * is written meanwhile, also some that changed since, and a run may be told in two parts.
 *
 * @throws {CowbirdError} ESTALE when the minor went on to another snapshot between two pages: what was told is of no use then.
 */
export async function* changePages(
  minor: number,
  client: ClientOptions = {},
): AsyncGenerator<ChangesReport, void, undefined> {
  const whole = await wholeList(minor, client);
  if (whole !== undefined) {
    yield whole;
    return;
  }
  let first: ChangesReport | undefined;
  for (let fromBlock: number | undefined = 0; fromBlock !== undefined; ) {
    const page: ChangesReport = await call('changes', { minor, fromBlock }, client);
    first ??= page;
    if (page.uuid !== first.uuid || page.seq_id !== first.seq_id) {
      const message = `Minor ${minor} went on to another snapshot while its changes were listed: ask again`;
      throw new CowbirdError('ESTALE', message, { outcome: 'failed' });
    }
    yield page;
    fromBlock = page.next_block;
  }
}

/** Undefined where it has to be asked for in pages. A daemon that does not know of them answers with the whole list. */
async function wholeList(minor: number, client: ClientOptions): Promise<ChangesReport | undefined> {
  try {
    return await call('changes', { minor }, client);
  } catch (error) {
    if (error instanceof CowbirdError && error.code === 'EFBIG') return undefined;
    throw error;
  }
}

/** All pages in one: see {@link changePages}. */
export async function allChanges(minor: number, client: ClientOptions = {}): Promise<ChangesReport> {
  let report: ChangesReport | undefined;
  for await (const { next_block: _, ...page } of changePages(minor, client)) {
    if (report === undefined) report = page;
    else append(report, page);
  }
  if (report === undefined) throw new Error('A list has a page');
  return report;
}

function append(report: ChangesReport, page: ChangesReport): void {
  report.nr_changed_blocks += page.nr_changed_blocks;
  report.bytes += page.bytes;
  for (const extent of page.extents) {
    const last = report.extents.at(-1);
    // A run that grew between two pages.
    if (last !== undefined && last.offset + last.length === extent.offset) last.length += extent.length;
    else report.extents.push(extent);
  }
}
