/** The pages of a list of changes. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setBits } from '../tracer/layout.js';
import { pageOf } from './changes.js';

const BLOCKS = 1_000;
/** The last block is a half one. */
const VOLUME = { blockCount: BLOCKS, sizeBytes: BLOCKS * 4096 - 2048 };
const RUNS = [
  [0, 1],
  [5, 3],
  [31, 2],
  [64, 200],
  [999, 1],
] as const;

function changed(runs: ReadonlyArray<readonly [number, number]>): Int32Array {
  const map = new Int32Array(Math.ceil(BLOCKS / 32));
  for (const [first, count] of runs) setBits(map, first, first + count - 1);
  return map;
}

type Extents = ReturnType<typeof pageOf>['extents'];

/** All pages of so many runs; `between` is done before each but the first. */
function pages(map: Int32Array, runsMax: number, between: () => void = () => undefined): Extents[] {
  const found: Extents[] = [];
  for (let from: number | undefined = 0; from !== undefined; ) {
    if (from > 0) between();
    const page: ReturnType<typeof pageOf> = pageOf(map, VOLUME, from, runsMax);
    found.push(page.extents);
    from = page.next_block;
  }
  return found;
}

describe('the list of changes', () => {
  it('is the same in pages of any length, and no page is empty but that of nothing', () => {
    const map = changed(RUNS);
    const whole = pageOf(map, VOLUME, 0, RUNS.length);
    assert.equal(whole.next_block, undefined);
    assert.equal(whole.nr_changed_blocks, 207);
    assert.equal(whole.bytes, 207 * 4096 - 2048);
    for (let runsMax = 1; runsMax <= RUNS.length; runsMax++) {
      const found = pages(map, runsMax);
      assert.deepEqual(found.flat(), whole.extents);
      assert.equal(found.length, Math.ceil(RUNS.length / runsMax));
    }
    assert.deepEqual(pages(changed([]), 1), [[]]);
  });

  it('has all that had changed at its beginning, whatever is written between two pages', () => {
    for (const written of [
      [1, 4],
      [6, 26],
      [40, 41],
      [0, BLOCKS],
    ] as const) {
      const map = changed(RUNS);
      const found = pages(map, 1, () => setBits(map, written[0], written[1] - 1)).flat();
      const listed = new Set(found.flatMap(({ offset, length }) => blocksOf(offset, length)));
      for (const [first, count] of RUNS)
        for (let block = first; block < first + count; block++) assert.ok(listed.has(block), `block ${block}`);
    }
  });
});

function blocksOf(offset: number, length: number): number[] {
  return Array.from({ length: Math.ceil(length / 4096) }, (_, i) => offset / 4096 + i);
}
