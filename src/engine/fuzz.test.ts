/** Saved series of any contents: what is damaged is reported and never trusted. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import { dataOffsetBytes } from '../cow/geometry.js';
import { decodeHeader, encodeHeader } from '../cow/header.js';
import { CowbirdError } from '../sys/errors.js';
import { StoreMap } from '../tracer/store-map.js';
import type { EventInput } from './events.js';
import type { SavedSeries } from './records.js';
import { checksumOf, decodeSeries, encodeSeries, findSeries, requireHeader, seriesPath } from './saved-state.js';

const folder = mkdtempSync(join(tmpdir(), 'cowbird-state-'));
after(() => rmSync(folder, { recursive: true }));
let stateDir = '';
let events: EventInput[] = [];
let nextDir = 0;
const emit = (event: EventInput): void => void events.push(event);
beforeEach(() => {
  events = [];
  stateDir = join(folder, `${nextDir++}`);
  mkdirSync(join(stateDir, 'series'), { recursive: true });
});

const hex = (length: number): fc.Arbitrary<string> =>
  fc.uint8Array({ minLength: length / 2, maxLength: length / 2 }).map((bytes) => Buffer.from(bytes).toString('hex'));

/** `total` as pieces of one at least. */
const pieces = (total: number): fc.Arbitrary<number[]> =>
  fc.uniqueArray(fc.integer({ min: 1, max: Math.max(1, total - 1) }), { maxLength: 4 }).map((cuts) => {
    const ends = [...cuts.filter((cut) => cut < total).sort((a, b) => a - b), total];
    return ends.map((end, i) => end - (ends[i - 1] ?? 0));
  });

/** A store as the engine makes it: pieces anywhere on the volume, and slots in one run or, after growing, in several. */
const storeOf = (
  mode: string,
  kind: 'origin' | 'device',
  index: number,
  data: number,
): fc.Arbitrary<SavedSeries['store']> =>
  fc
    .tuple(pieces(index + data), pieces(Math.max(1, data)), fc.integer({ min: 1, max: 9 }), fc.boolean())
    .map(([counts, slotCounts, gap, backwards]) => {
      let place = 0;
      let block = gap;
      const placed = counts.map((count) => {
        const extent = { place, block, count };
        place += count;
        block += count + gap;
        return extent;
      });
      // The places in the order of the file, the blocks from the end of the volume.
      if (backwards) for (const extent of placed) extent.block = block - extent.block - extent.count;
      let slot = index;
      const slots = slotCounts.map((count) => {
        slot += count;
        return { place: slot - count, count };
      });
      const isOrigin = kind === 'origin';
      return {
        kind,
        extents: isOrigin ? placed : [],
        slots: mode === 'snapshot' ? slots : [],
        placeCount: index + data,
      };
    });

const base = fc.record({
  uuid: hex(32),
  fingerprint: fc.oneof(hex(64), fc.constant('')),
  mode: fc.constantFrom<'snapshot' | 'incremental'>('snapshot', 'incremental'),
  kind: fc.constantFrom<'origin' | 'device'>('origin', 'device'),
  blocks: fc.integer({ min: 300, max: 9000 }),
  data: fc.integer({ min: 1, max: 200 }),
  odd: fc.nat(7),
  numbers: fc.tuple(fc.nat(), fc.nat(), fc.nat(200)),
});
const series: fc.Arbitrary<SavedSeries> = base.chain((chosen) => {
  const { uuid, fingerprint, mode, kind, blocks, odd } = chosen;
  const [sequence, inode, used] = chosen.numbers;
  const sizeBytes = blocks * 4096 + odd * 512;
  const index = dataOffsetBytes(Math.ceil(sizeBytes / 4096)) / 4096;
  const data = mode === 'snapshot' ? chosen.data : 0;
  return storeOf(mode, kind, index, data).map((store) => ({
    format: 1,
    origin: '/dev/sdb',
    sizeBytes,
    uuid,
    sequenceId: sequence + 1,
    mode,
    cowFile: '/.cow',
    file: { path: '/mnt/.cow', dev: 42, ino: inode },
    store,
    storeBytes: store.placeCount * 4096 + (mode === 'snapshot' ? odd : 0),
    startBytes: 0,
    fsType: 'ext4',
    nextSlot: Math.min(used, data),
    cacheBytes: 314_572_800,
    fingerprint,
  }));
});

/** Every place of the store is a whole block of its device, and nowhere twice; every slot is a place of data. */
function requireUsable(saved: SavedSeries): void {
  const { store, sizeBytes } = saved;
  assert.ok(Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes % 512 === 0);
  const map = new StoreMap(store);
  const offsets = new Set<number>();
  for (let place = 0; place < Math.min(store.placeCount, 3000); place++) {
    const { offset, run } = map.locate(place);
    assert.ok(Number.isSafeInteger(offset) && offset >= 0 && offset % 4096 === 0 && run > 0, `place ${place}`);
    if (store.kind === 'origin') assert.ok(offset + run * 4096 <= sizeBytes, `place ${place} is on the volume`);
    offsets.add(offset);
  }
  assert.equal(offsets.size, Math.min(store.placeCount, 3000), 'no block is there twice');
  const first = dataOffsetBytes(Math.ceil(sizeBytes / 4096)) / 4096;
  const places = new Set<number>();
  for (let slot = 0; slot < Math.min(map.slotCount, 3000); slot++) {
    const { place, run } = map.placeOfSlot(slot);
    assert.ok(place >= first && place + run <= store.placeCount, `slot ${slot} is at ${place}`);
    places.add(place);
  }
  assert.equal(places.size, Math.min(map.slotCount, 3000));
  if (saved.mode === 'snapshot') assert.ok(saved.nextSlot <= map.slotCount);
  assert.ok(store.placeCount <= 0xffff_ffff && store.placeCount >= first);
}

function requireNamed(error: unknown): void {
  assert.ok(error instanceof CowbirdError, error instanceof Error ? (error.stack ?? error.message) : String(error));
  assert.equal(error.code, 'EUCLEAN');
  assert.ok(error.message.length > 10 && error.message.length < 500, error.message);
}

type Json = Record<string, unknown> | unknown[];
const isJson = (value: unknown): value is Json => typeof value === 'object' && value !== null;

/** Every place of a value, as the way to it. */
function pathsIn(value: unknown, path: string[] = []): string[][] {
  if (!isJson(value)) return [path];
  return [path, ...Object.entries(value).flatMap(([key, inner]) => pathsIn(inner, [...path, key]))];
}

/** A copy of `value` with another value at `path`. */
function replaced(value: unknown, [key, ...rest]: string[], change: (old: unknown) => unknown): unknown {
  if (key === undefined || !isJson(value)) return change(value);
  if (Array.isArray(value)) return value.map((inner, i) => (String(i) === key ? replaced(inner, rest, change) : inner));
  return Object.fromEntries(
    Object.entries(value).map(([name, inner]) => [name, name === key ? replaced(inner, rest, change) : inner]),
  );
}

const numbers = fc.constantFrom(
  -1,
  0,
  1,
  0.5,
  255,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 53,
  -(2 ** 31),
  1e308,
  Number.NaN,
);
const change = fc.oneof(
  fc.oneof(numbers, fc.integer({ min: 0, max: 400 })).map((value) => () => value),
  fc.integer({ min: -5, max: 5 }).map((by) => (old: unknown) => (typeof old === 'number' ? old + by : old)),
  fc.constantFrom<unknown>(null, '', 'x', '/\0', [], {}, true, 'incremental', 'origin').map((value) => () => value),
  fc.boolean().map((twice) => (old: unknown) => (Array.isArray(old) ? (twice ? [...old, ...old] : old.slice(1)) : old)),
);
/** Which place of the value, and what becomes of it. */
const changes = fc.array(fc.tuple(fc.nat(), change), { minLength: 1, maxLength: 3 });

function changed(value: unknown, steps: ReadonlyArray<[number, (old: unknown) => unknown]>): unknown {
  return steps.reduce((current: unknown, [pick, step]) => {
    const paths = pathsIn(current);
    return replaced(current, paths[pick % paths.length] ?? [], step);
  }, value);
}

const digit = fc.integer({ min: 0x30, max: 0x39 }).map((code) => Uint8Array.of(code));
/** Most changes leave no JSON; a digit for another character may leave all of it but one number. */
const bytesChange = fc.oneof(
  fc.record({ at: fc.nat(), remove: fc.nat(40), insert: fc.uint8Array({ maxLength: 20 }) }),
  fc.record({ at: fc.nat(), remove: fc.nat(1), insert: digit }),
);

function spliced(text: string, { at, remove, insert }: { at: number; remove: number; insert: Uint8Array }): Buffer {
  const bytes = Buffer.from(text);
  const from = at % (bytes.byteLength + 1);
  return Buffer.concat([bytes.subarray(0, from), insert, bytes.subarray(from + remove)]);
}

describe('a saved series', () => {
  it('is read as it was written', () => {
    fc.assert(
      fc.property(series, (saved) => {
        assert.deepEqual(decodeSeries(encodeSeries(saved)), saved);
        requireUsable(saved);
      }),
      { numRuns: 200 },
    );
  });

  it('whose bytes were changed anywhere is refused, unless they still say the same', () => {
    fc.assert(
      fc.property(series, bytesChange, (saved, step) => {
        const path = seriesPath(stateDir, saved.uuid);
        writeFileSync(path, spliced(encodeSeries(saved), step));
        events = [];
        const found = findSeries(stateDir, saved.origin, saved.cowFile, emit);
        if (found === undefined) assert.equal(events.length, 1, 'it is reported');
        else assert.deepEqual(found, saved);
        for (const { event, message } of events) assert.ok(event === 'state.damaged' && message.includes(path));
        rmSync(path);
      }),
      { numRuns: 500 },
    );
  });

  it('whose numbers do not fit each other is refused although its checksum is right', () => {
    fc.assert(
      fc.property(series, changes, (saved, steps) => {
        const wrong = changed(saved, steps);
        const text = JSON.stringify({ checksum: checksumOf(wrong), series: wrong });
        try {
          requireUsable(decodeSeries(text));
        } catch (error) {
          requireNamed(error);
        }
      }),
      { numRuns: 3000 },
    );
  });

  it('with a store that overlaps, leaves the volume, or has slots outside of it is refused', () => {
    const snapshots = series.filter(({ mode, store }) => mode === 'snapshot' && store.extents.length > 1);
    fc.assert(
      fc.property(snapshots, fc.nat(2), (saved, which) => {
        const { store, sizeBytes } = saved;
        const [first, second] = store.extents;
        const slot = store.slots.at(-1);
        assert.ok(first !== undefined && second !== undefined && slot !== undefined);
        if (which === 0) second.block = first.block + first.count - 1;
        else if (which === 1) second.block = Math.floor(sizeBytes / 4096) - second.count + 1;
        else slot.count += 1;
        assert.throws(() => decodeSeries(encodeSeries(saved)), {
          code: 'EUCLEAN',
          message: /store\.(extents|slots) has/,
        });
      }),
      { numRuns: 200 },
    );
  });

  it('is found among any others, and each that cannot be used is reported by its name', () => {
    const directory = join(stateDir, 'series');
    mkdirSync(join(directory, 'folder.json'));
    symlinkSync('nowhere', join(directory, 'link.json'));
    execFileSync('mkfifo', [join(directory, 'pipe.json')]);
    writeFileSync(join(directory, 'deep.json'), '['.repeat(100_000));
    fc.assert(
      fc.property(series, fc.uint8Array({ maxLength: 50 }), (saved, garbage) => {
        writeFileSync(join(directory, 'copy.json'), encodeSeries(saved));
        writeFileSync(join(directory, 'garbage.json'), garbage);
        const path = seriesPath(stateDir, saved.uuid);
        writeFileSync(path, encodeSeries(saved));
        events = [];
        assert.deepEqual(findSeries(stateDir, saved.origin, saved.cowFile, emit), saved);
        for (const name of ['folder', 'pipe', 'deep', 'copy', 'garbage']) {
          const about = events.filter(({ message }) =>
            message.startsWith(join(directory, `${name}.json cannot be used`)),
          );
          assert.equal(about.length, 1, name);
        }
        assert.equal(findSeries(stateDir, '/dev/sdc', saved.cowFile, emit), undefined);
        assert.equal(findSeries(stateDir, saved.origin, '/other', emit), undefined);
        rmSync(path);
      }),
      { numRuns: 30 },
    );
  });

  it('is the later one where two had the same COW file', () => {
    const [first, second] = fc.sample(series, 2);
    assert.ok(first !== undefined && second !== undefined);
    for (const [older, newer] of [
      [first, second],
      [second, first],
    ] as const) {
      for (const saved of [older, newer]) writeFileSync(seriesPath(stateDir, saved.uuid), encodeSeries(saved));
      utimesSync(seriesPath(stateDir, older.uuid), 1000, 1000);
      assert.deepEqual(findSeries(stateDir, '/dev/sdb', '/.cow', emit), newer);
    }
  });

  it('is trusted only with the header that was written with it', () => {
    fc.assert(
      fc.property(series, fc.nat(2), (saved, field) => {
        const index = dataOffsetBytes(Math.ceil(saved.sizeBytes / 4096)) / 4096;
        const used = saved.store.slots.length > 1 ? saved.store.placeCount : index + saved.nextSlot;
        const header = decodeHeader(
          encodeHeader({
            clean: true,
            indexOnly: saved.mode === 'incremental',
            vmallocUpper: false,
            positionBlocks: saved.mode === 'incremental' ? index : used,
            fileSizeBytes: saved.storeBytes,
            sequenceId: saved.sequenceId,
            uuid: Buffer.from(saved.uuid, 'hex'),
            version: 1,
            changedBlocks: 0,
          }),
        );
        requireHeader(header, saved);
        if (field === 0) header.indexOnly = !header.indexOnly;
        else if (field === 1) header.positionBlocks++;
        else header.fileSizeBytes--;
        assert.throws(() => requireHeader(header, saved), { code: 'EUCLEAN', message: /COW file/ });
      }),
      { numRuns: 200 },
    );
  });
});
