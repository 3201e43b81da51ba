/**
 * Node's own reporter (spec on a terminal, else TAP) over several runs of `node --test` as if they were one: the numbers go on,
 * and the closing lines stand once, at the end, with the sums.
 *
 * COWBIRD_TEST_TOTALS names the file that carries the sums from run to run; COWBIRD_TEST_MORE=1: this run is not the last.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { spec as Spec, tap } from 'node:test/reporters';

const CLOSING_LINE = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) ([\d.]+)$/;
const TAP_HEADER = 'TAP version 13\n';

/** The sums of the runs before; `planned` counts what stands at the top level of the report. */
export function readTotals(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return {};
    throw error;
  }
}

/** The events of this run, counted on from the runs before. */
export async function* countedOn(source, before, after, hasMore) {
  const planned = before.planned ?? 0;
  for await (const event of source) {
    const { type, data } = event;
    const closing = type === 'test:diagnostic' && data.nesting === 0 ? CLOSING_LINE.exec(data.message) : null;
    if (closing !== null) {
      const [, name, value] = closing;
      after[name] = (before[name] ?? 0) + Number(value);
      if (!hasMore) yield { type, data: { ...data, message: `${name} ${after[name]}` } };
    } else if (type === 'test:plan' && data.nesting === 0) {
      after.planned = planned + data.count;
      if (!hasMore) yield { type, data: { ...data, count: after.planned } };
    } else if ((type === 'test:pass' || type === 'test:fail') && data.nesting === 0) {
      yield { type, data: { ...data, testNumber: data.testNumber + planned } };
    } else {
      yield event;
    }
  }
}

export default async function* report(source) {
  const path = process.env.COWBIRD_TEST_TOTALS;
  const before = readTotals(path);
  const after = { ...before };
  const events = countedOn(source, before, after, process.env.COWBIRD_TEST_MORE === '1');
  const isFirst = before.tests === undefined;
  if (process.stdout.isTTY) yield* Readable.from(events).pipe(new Spec());
  else for await (const text of tap(events)) if (isFirst || text !== TAP_HEADER) yield text;
  writeFileSync(path, JSON.stringify(after));
}
