/** Which sums are continuity, and which are a doubt. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Note, type Reading, sectorDoubt, surplusAtStart } from './sector-account.js';

const note = (key: string, count: number): Note => ({ key, first: 0, count });
const at = (counted: number, seen: number, notes: Note[] = [], underWay = 0): Reading => ({
  counted,
  seen,
  notes,
  underWay,
});
/** One reading after the other, the last one again and again. */
function readings(...all: Array<Reading | undefined>): () => Reading | undefined {
  let i = 0;
  return () => all[Math.min(i++, all.length - 1)];
}
const MISSED_ALL = /without running the tracker/;
const MISSED = /writes of 8 sectors without running the tracker/;

describe('the account of sectors', () => {
  it('adds up when every end was seen, recovered, or is still noted', () => {
    const before = surplusAtStart(readings(at(1000, 16)));
    assert.equal(sectorDoubt(readings(at(1080, 96)), before), undefined);
    assert.equal(sectorDoubt(readings(at(1080, 88, [note('a', 8)])), before), undefined);
  });

  it('does not when neither beginning nor end was seen, whatever else is noted', () => {
    const before = surplusAtStart(readings(at(1000, 16)));
    assert.match(sectorDoubt(readings(at(1080, 88)), before) ?? '', MISSED);
    assert.match(sectorDoubt(readings(at(1080, 80, [note('a', 8)])), before) ?? '', MISSED);
  });

  it('does not take what is under way for what was missed', () => {
    assert.match(sectorDoubt(readings(at(1080, 1072, [note('a', 8)], 1)), 0) ?? '', MISSED);
    assert.equal(sectorDoubt(readings(at(1080, 1080, [note('a', 8)], 1)), 0), undefined);
  });

  it('asks again until nothing is under way', () => {
    const busy = at(1080, 1072, [note('a', 8), note('b', 8)], 1);
    assert.equal(sectorDoubt(readings(busy, undefined, at(1088, 1080, [note('a', 8)])), 0), undefined);
  });

  it('believes no note that was of a write about to be counted', () => {
    // The driver is done, the tracker is not yet run: between the two readings it is.
    const read = readings(at(1080, 1072, [note('a', 8)]), at(1088, 1080), at(1088, 1080));
    assert.match(sectorDoubt(read, 0) ?? '', MISSED);
  });

  it('has a doubt when more was seen than counted, and when it cannot be read', () => {
    assert.match(sectorDoubt(readings(at(1000, 1008)), 0) ?? '', /does not count/);
    assert.match(sectorDoubt(readings(undefined), 0) ?? '', /too busy/);
    assert.match(sectorDoubt(readings(at(0, 0)), surplusAtStart(readings(undefined))) ?? '', MISSED_ALL);
  });

  it('begins, on a disk that is never idle, with notes that last as missed ones and no others', () => {
    const both = at(1000, 900, [note('old', 16), note('new', 8)], 1);
    assert.equal(surplusAtStart(readings(both, at(1008, 908, [note('newer', 8)], 1))), -100);
    assert.equal(surplusAtStart(readings(both, at(1008, 908, [note('old', 16)], 1))), -84);
  });
});
