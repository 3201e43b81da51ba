/** The list of what is attached, of any contents: a damaged one attaches nothing, is kept, and the engine starts. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import { CowbirdError } from '../sys/errors.js';
import { Engine } from './engine.js';
import type { EventInput } from './events.js';
import type { SavedVolume } from './records.js';
import { attachedPath, decodeAttached, loadAttached } from './saved-state.js';
import type { Keeper } from './services.js';

const stateDir = mkdtempSync(join(tmpdir(), 'cowbird-attached-'));
after(() => rmSync(stateDir, { recursive: true }));
const path = attachedPath(stateDir);
let events: EventInput[] = [];
const emit = (event: EventInput): void => void events.push(event);
beforeEach(() => {
  events = [];
  for (const name of [path, `${path}.damaged`]) rmSync(name, { recursive: true, force: true });
});

const right = {
  name: fc.stringMatching(/^[A-Za-z0-9._-]{1,64}$/),
  origin: fc.constantFrom('/dev/sdb', '/images/a b.img', '/images/\u{1f426}.img'),
  workers: fc.integer({ min: 1, max: 64 }),
  readOnly: fc.boolean(),
  raw: fc.boolean(),
};
const entry: fc.Arbitrary<SavedVolume> = fc.record(right, { noNullPrototype: true });
const wrongValue = fc.oneof(
  fc.constantFrom<unknown>(-1, 0, 65, 0.5, 1e308, 2 ** 53, Number.NaN, null, '', 'relative', '/\0', '../x', [], {}),
  fc.constantFrom<unknown>('/'.repeat(5000), 'n'.repeat(65), 'true', '4'),
  fc.jsonValue(),
);
const damagedEntry = fc
  .tuple(entry, fc.constantFrom(...Object.keys(right)), wrongValue)
  .map(([whole, field, value]): unknown => ({ ...whole, [field]: value }));

function requireAttachable(list: readonly SavedVolume[]): void {
  for (const { name, origin, workers, readOnly, raw } of list) {
    assert.match(name, /^[A-Za-z0-9._-]{1,64}$/);
    assert.ok(origin.startsWith('/') && !origin.includes('\0') && origin.length < 4096);
    assert.ok(Number.isInteger(workers) && workers >= 1 && workers <= 64);
    assert.deepEqual([typeof readOnly, typeof raw], ['boolean', 'boolean']);
  }
}

describe('the list of what is attached', () => {
  it('is read as it was written', () => {
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 4 }), (list) => {
        writeFileSync(path, JSON.stringify(list, null, 2));
        assert.deepEqual(loadAttached(stateDir, emit), list);
        assert.deepEqual(events, []);
      }),
      { numRuns: 100 },
    );
  });

  it('with a value that cannot be is refused with the field, and nothing of it is taken', () => {
    const list = fc.tuple(fc.array(entry, { maxLength: 2 }), damagedEntry).map(([good, bad]) => [...good, bad]);
    fc.assert(
      fc.property(fc.oneof(list, fc.jsonValue()), (value) => {
        try {
          requireAttachable(decodeAttached(JSON.stringify(value)));
        } catch (error) {
          assert.ok(error instanceof CowbirdError && error.code === 'EUCLEAN', String(error));
          assert.match(error.message, /^([\d.]+(name|origin|workers|readOnly|raw)?|all of it): .* \(value /s);
          assert.ok(error.message.length < 500);
        }
      }),
      { numRuns: 1500 },
    );
  });

  it('that is damaged is kept aside whole, reported as an error, and attaches nothing', () => {
    const splice = fc.record({ at: fc.nat(), remove: fc.nat(40), insert: fc.uint8Array({ maxLength: 20 }) });
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 4 }), splice, (list, { at, remove, insert }) => {
        const whole = Buffer.from(JSON.stringify(list));
        const from = at % (whole.byteLength + 1);
        const bytes = Buffer.concat([whole.subarray(0, from), insert, whole.subarray(from + remove)]);
        writeFileSync(path, bytes);
        events = [];
        const loaded = loadAttached(stateDir, emit);
        requireAttachable(loaded);
        const [event] = events;
        if (event === undefined) return;
        assert.deepEqual(loaded, []);
        assert.deepEqual(readFileSync(`${path}.damaged`), bytes);
        assert.ok(event.event === 'state.damaged' && event.level === 'error');
        assert.ok(event.message.includes(`${path}.damaged`) && events.length === 1);
        events = [];
        assert.deepEqual(loadAttached(stateDir, emit), []);
        assert.deepEqual(events, [], 'the next start has nothing to say about it');
      }),
      { numRuns: 400 },
    );
  });

  const unreadable: ReadonlyArray<readonly [string, () => unknown]> = [
    ['is empty', () => writeFileSync(path, '')],
    ['is binary', () => writeFileSync(path, Buffer.from([0xff, 0xfe, 0, 1]))],
    ['is another type', () => writeFileSync(path, '{"name":"a"}')],
    ['has a huge number', () => writeFileSync(path, '[{"name":"a","origin":"/a","workers":1e99,"readOnly":false}]')],
    ['is nested deep', () => writeFileSync(path, '{"a":['.repeat(200_000))],
    ['is a folder', () => mkdirSync(path)],
    ['is a named pipe', () => execFileSync('mkfifo', [path])],
    ['is a link to itself', () => symlinkSync(path, path)],
  ];
  for (const [what, make] of unreadable) {
    it(`does not keep the engine from starting when it ${what}`, async () => {
      make();
      const paths = { runDir: stateDir, stateDir, info: join(stateDir, 'info'), fuseDir: join(stateDir, 'fuse') };
      const engine = new Engine(keeperThatHears(events), paths);
      await engine.start([]);
      assert.deepEqual(await engine.list(), { volumes: [] });
      const heard = events.map(({ event, level }) => `${event} ${level}`);
      assert.deepEqual(heard, ['state.damaged error']);
      await engine.stop(false);
    });
  }
});

/** Takes events, and is asked for nothing else. */
function keeperThatHears(heard: EventInput[]): Keeper {
  const call: Keeper['call'] = async (name, params) => {
    assert.equal(name, 'event');
    heard.push(params as EventInput);
    return null as never;
  };
  return { pid: process.pid, call, helper: () => Promise.reject(new Error('no helper is needed')) };
}
