/** A user's files, as a process that was killed between two steps leaves them. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { PAGE_BYTES } from './kernel-map.js';
import { newMark, openPending, readState, UserSet, type UserState } from './user-set.js';

const PAGES = 3;
const RANGE = { first: 0, count: PAGES };
const MAP = 'a'.repeat(32);

function begin(t: TestContext): { folder: string; disk: string; set: UserSet; close: () => void } {
  const disk = mkdtempSync(join(tmpdir(), 'cowbird-user-set-'));
  const folder = join(disk, 'user');
  mkdirSync(folder);
  const state: UserState = {
    format: 1,
    user: 'one',
    bootId: 'boot',
    device: 'disk',
    number: '7:0',
    startSector: 0,
    sizeBytes: 4096,
    mapId: MAP,
    since: '2026-01-01T00:00:00.000Z',
    baseline: [0],
    generation: 4,
    mark: newMark(),
    attempt: newMark(),
  };
  const set = UserSet.create(folder, state, RANGE, PAGES);
  let isOpen = true;
  const close = (): void => {
    if (isOpen) set.close();
    isOpen = false;
  };
  t.after(() => {
    close();
    rmSync(disk, { recursive: true });
  });
  return { folder, disk, set, close };
}

function page(...words: number[]): Uint32Array {
  const bits = new Uint32Array(PAGE_BYTES / 4);
  bits.set(words);
  return bits;
}

/** What would be taken: pages with their first word. */
function takeAll(set: UserSet): string {
  const found: string[] = [];
  const bits = page();
  for (let at = set.pending.next(0); at < PAGES; at = set.pending.next(at + 1))
    if (set.takePage(at, bits)) found.push(`${at}:${bits[0]}`);
  return found.join(' ');
}

function reopen(t: TestContext, folder: string, which: 'mark' | 'attempt', before: UserState): UserSet {
  const state = readState(folder);
  assert.ok(state !== undefined);
  const set = UserSet.open(folder, state, RANGE, PAGES, before[which]);
  t.after(() => set.close());
  return set;
}

describe('the files of a user', () => {
  it('give once what was added, page by page, and add what comes again', (t) => {
    const { set, disk } = begin(t);
    const [pending] = openPending(disk, MAP, PAGES);
    assert.ok(pending !== undefined);
    pending.file.add(2, page(5));
    pending.file.add(2, page(8));
    pending.file.close();
    assert.equal(takeAll(set), '2:13');
    assert.equal(takeAll(set), '');
    assert.deepEqual(openPending(disk, 'b'.repeat(32), PAGES), [], 'users of another map are not among them');
  });

  it('count what was taken again when the newest version is the one before', (t) => {
    const { set, folder, close } = begin(t);
    const { state } = set;
    set.pending.add(0, page(1));
    takeAll(set);
    set.pending.add(0, page(2));
    close();
    const again = reopen(t, folder, 'mark', state);
    assert.equal(takeAll(again), '0:3');
    assert.equal(again.state.generation, 4);
    assert.notEqual(again.state.attempt, state.attempt, 'a mark is never used twice');
  });

  it('forget what was taken, and no more, when the newest version is the one it was taken for', (t) => {
    const { set, folder, close } = begin(t);
    const { state } = set;
    set.pending.add(0, page(1));
    takeAll(set);
    set.pending.add(1, page(2));
    close();
    const next = reopen(t, folder, 'attempt', state);
    assert.equal(takeAll(next), '1:2');
    assert.equal(next.state.generation, 5);
    assert.equal(next.state.mark, state.attempt);
  });

  it('survive a kill between a page’s two places: it is in both, and counts once', (t) => {
    const { set, folder, close } = begin(t);
    const { state } = set;
    set.pending.add(0, page(1));
    takeAll(set);
    set.pending.add(0, page(1));
    close();
    assert.equal(takeAll(reopen(t, folder, 'mark', state)), '0:1');
  });

  it('remove what a kill between the state and the files left', (t) => {
    const { set, folder, close } = begin(t);
    const { state } = set;
    close();
    writeFileSync(join(folder, `taken-${newMark()}`), 'x');
    reopen(t, folder, 'mark', state);
    assert.equal(readdirSync(folder).filter((name) => name.startsWith('taken-')).length, 1);
  });

  it('say which file is damaged, and what to do', (t) => {
    const { folder } = begin(t);
    writeFileSync(join(folder, 'state.json'), '{"format":1}');
    assert.throws(() => readState(folder), /state\.json is damaged .*cowbird untrack/);
  });
});
