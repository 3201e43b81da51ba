/** What the control thread does: the operations of `src/engine`, each with the effects of the real one in its order. */
import { dataOffsetBytes } from '../../src/cow/geometry.js';
import { errnoOfError } from '../../src/sys/errors.js';
import { goClean } from '../../src/tracer/cleaning.js';
import { writeHeader } from '../../src/tracer/index-io.js';
import { BLOCK_BYTES, HeaderState, SwitchState, Word } from '../../src/tracer/layout.js';
import type { Steps } from '../../src/tracer/steps.js';
import { type StoreConfig, StoreMap } from '../../src/tracer/store-map.js';
import { isZero } from '../../src/tracer/zeros.js';
import { SimDisk } from './disk.js';
import type { Engine } from './engine.js';
import { isDeath } from './memory.js';
import type { SnapshotRecord } from './records.js';
import { goOn, restart } from './restarts.js';
import { Violation } from './violation.js';

type Operation = (engine: Engine) => Steps;

/** An operation that makes sense now. At the end of a run only what must not be left undone. */
export function chooseOperation(engine: Engine, isEnding: boolean): Steps | undefined {
  const { world, record } = engine;
  if (world.reload !== undefined) return goOn(engine);
  if (isEnding) return undefined;
  const { snapshot } = record;
  const random = world.random;
  const pick = (operations: readonly Operation[]): Steps | undefined => operations[random(operations.length)]?.(engine);
  if (snapshot === null) return begin(engine);
  // What is clean soon is not: that is the moment for other things.
  if (world.memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY && random(2) === 0)
    return pick([restart, restart, end]);
  if (snapshot.mode === 'incremental') return pick([next, next, next, clean, clean, restart, end]);
  if (world.memory.get(Word.FAILED) !== 0) {
    world.counts.failures++;
    return pick([next, next, end]);
  }
  return pick([toIncremental, toIncremental, grow, grow, clean, restart, random(3) === 0 ? end : grow]);
}

/** Whatever of an operation fails before its switch is undone; what fails is no violation. */
function* undoing(engine: Engine, steps: Steps): Steps {
  try {
    yield* steps;
  } catch (error) {
    if (isDeath(error) || error instanceof Violation) throw error;
    if (engine.world.memory.get(Word.SWITCH) === SwitchState.AFTER && engine.record.pending !== null) throw error;
    engine.world.counts.undone++;
    yield* undo(engine);
  }
}

function* undo(engine: Engine): Steps {
  yield* releaseFiles(engine);
  openDevice(engine);
  engine.record = { ...engine.record, pending: null };
  engine.saveRecord();
}

function openDevice(engine: Engine): void {
  const { snapshot } = engine.record;
  if (snapshot === null || snapshot.mode !== 'snapshot' || snapshot.isOpen) return;
  engine.record = { ...engine.record, snapshot: { ...snapshot, isOpen: true } };
  engine.saveRecord();
}

/** Blocks of files that no record names are the user's again, once nobody writes there any more. */
function* releaseFiles(engine: Engine): Steps {
  const { world } = engine;
  const kept = new Set<number>();
  // A series that is to be gone on with has its file, too.
  const stores = [engine.record.snapshot?.store, world.reload === undefined ? undefined : world.saved?.store];
  for (const store of stores)
    if (store?.kind === 'origin') for (const block of blocksOf(store.extents)) kept.add(block);
  const gone = new Set<number>();
  for (const [block, flag] of world.clients.reserved.entries()) if (flag === 1 && !kept.has(block)) gone.add(block);
  yield* engine.control.until(() => !world.clients.touches(gone));
  world.memory.quietly(() => world.model.releasePrepared(gone));
  for (const block of gone) world.clients.reserved[block] = 0;
}

/** A file system writes zeros into blocks of a file, through the volume. */
function* blank(engine: Engine, extents: StoreConfig['extents'], places: ReadonlySet<number>): Steps {
  const { clients, memory } = engine.world;
  const requests = memory.quietly(() =>
    [...places].map((place) => {
      const offset = blockOf(extents, place) * BLOCK_BYTES;
      return clients.send({ kind: 'write', isBlank: true, offset, lengthBytes: BLOCK_BYTES });
    }),
  );
  yield* engine.control.until(() => requests.every(({ isAnswered }) => isAnswered));
  const flush = memory.quietly(() => clients.send({ kind: 'flush', offset: 0, lengthBytes: 0 }));
  yield* engine.control.until(() => flush.isAnswered);
}

function blockOf(extents: StoreConfig['extents'], place: number): number {
  const extent = extents.find((piece) => piece.place <= place && place < piece.place + piece.count);
  if (extent === undefined) throw new Error(`Place ${place} has an extent`);
  return extent.block + place - extent.place;
}

function indexPlacesOf(engine: Engine): number {
  return dataOffsetBytes(engine.world.memory.blockCount) / BLOCK_BYTES;
}

/** A new file for a store: allocated, blank, known to the keeper, with the header "unclean" on it. */
function* prepare(engine: Engine, sequence: { uuid: string; sequenceId: number }): Steps<SnapshotRecord | undefined> {
  const { world } = engine;
  const { scenario, clients, model, random } = world;
  const indexPlaces = indexPlacesOf(engine);
  const count = Math.max(1, random(scenario.slots + 1));
  const placeCount = indexPlaces + count;
  const slots = [{ place: indexPlaces, count }];
  const base = { mode: 'snapshot', isOpen: false, ...sequence } as const;
  let snapshot: SnapshotRecord;
  if (scenario.storeKind === 'device') {
    // Room for growing; what is beyond the file's length is not there yet.
    const disk = new SimDisk(`store ${sequence.sequenceId}`, (placeCount + 200) * BLOCK_BYTES, scenario.disk);
    snapshot = { ...base, store: { kind: 'device', extents: [], slots, placeCount }, disk };
  } else {
    const extents = engine.allocate(placeCount);
    if (extents === undefined) return undefined;
    const blocks = blocksOf(extents);
    yield* engine.control.until(() => !clients.touches(blocks));
    engine.announce();
    for (const block of blocks) model.prepared[block] = 1;
    const places = new Set<number>([placeCount - 1, random(placeCount)]);
    for (let place = 0; place < indexPlaces; place++) places.add(place);
    yield* blank(engine, extents, places);
    snapshot = { ...base, store: { kind: 'origin', extents, slots, placeCount }, disk: world.origin };
  }
  const header = engine.headerFor({ ...snapshot, store: { ...snapshot.store, slots: [] } }, UNCLEAN);
  yield* writeHeader({ map: new StoreMap(snapshot.store), device: snapshot.disk }, engine.buffer, header);
  return snapshot;
}

const UNCLEAN = { clean: false, changedBlocks: 0 };

function blocksOf(extents: StoreConfig['extents']): Set<number> {
  const blocks = new Set<number>();
  for (const { block, count } of extents) for (let i = 0; i < count; i++) blocks.add(block + i);
  return blocks;
}

function* begin(engine: Engine): Steps {
  yield* undoing(
    engine,
    (function* () {
      const { memory, random } = engine.world;
      const uuid = random(0x7fff_ffff).toString(16).padStart(32, '0');
      const snapshot = yield* prepare(engine, { uuid, sequenceId: 1 });
      if (snapshot === undefined) return;
      memory.clear({ index: true, maps: [0, 1] });
      engine.describe({ kind: 'begin', store: snapshot.store }, snapshot);
      yield* engine.whilePaused(() => engine.performSwitch());
      yield* finish(engine);
    })(),
  );
}

function* next(engine: Engine): Steps {
  yield* undoing(
    engine,
    (function* () {
      const { memory } = engine.world;
      const old = engine.record.snapshot;
      if (old === null) return;
      const snapshot = yield* prepare(engine, { uuid: old.uuid, sequenceId: old.sequenceId + 1 });
      if (snapshot === undefined) return;
      yield* closeDevice(engine);
      yield* ensureDirty(engine);
      const closedMap = memory.get(Word.MAP) === 0 ? 0 : 1;
      memory.clear({ index: true, maps: [closedMap === 0 ? 1 : 0] });
      engine.describe({ kind: 'next', before: old.store, store: snapshot.store, closedMap }, snapshot);
      yield* engine.whilePaused(() => engine.performSwitch());
      yield* finish(engine);
    })(),
  );
}

function* toIncremental(engine: Engine): Steps {
  yield* undoing(
    engine,
    (function* () {
      const old = engine.record.snapshot;
      if (old === null) return;
      yield* closeDevice(engine);
      yield* ensureDirty(engine);
      const keptPlaces = indexPlacesOf(engine);
      const store = indexPart(old.store, keptPlaces);
      const change = { kind: 'toIncremental', before: old.store, keptPlaces } as const;
      yield* engine.switchPaused(change, { ...old, isOpen: false, mode: 'incremental', store });
    })(),
  );
}

function indexPart(store: StoreConfig, placeCount: number): StoreConfig {
  const extents = store.extents
    .filter((extent) => extent.place < placeCount)
    .map((extent) => ({ ...extent, count: Math.min(extent.count, placeCount - extent.place) }));
  return { kind: store.kind, extents, slots: [], placeCount };
}

function* grow(engine: Engine): Steps {
  yield* undoing(
    engine,
    (function* () {
      const { world } = engine;
      const { random } = world;
      const old = engine.record.snapshot;
      if (old === null) return;
      const before = old.store;
      const more = 1 + random(12);
      const placeCount = before.placeCount + more;
      let extents = before.extents;
      let gained = [{ place: before.placeCount, count: more }];
      if (before.kind === 'origin') {
        const added = engine.allocate(more);
        if (added === undefined) return;
        extents = [...extents, ...added.map((extent) => ({ ...extent, place: extent.place + before.placeCount }))];
        gained = yield* proveAndKeep(engine, before, extents);
      }
      const store = { kind: before.kind, extents, slots: [...before.slots, ...gained], placeCount };
      yield* ensureDirty(engine);
      engine.describe({ kind: 'grow', before, store }, { ...old, store });
      yield* engine.whilePaused(() => engine.performSwitch());
      yield* finish(engine);
    })(),
  );
}

/** The nonces of the proof, and `keepInPlace` of `src/engine/grow.ts`. */
function* proveAndKeep(
  engine: Engine,
  before: StoreConfig,
  extents: StoreConfig['extents'],
): Steps<Array<{ place: number; count: number }>> {
  const { memory, clients, origin, random } = engine.world;
  const added = extents.filter(({ place }) => place >= before.placeCount);
  const blocks = blocksOf(added);
  yield* engine.control.until(() => !clients.touches(blocks));
  engine.announce();
  if (random(2) === 0) yield* blank(engine, extents, new Set(added.map(({ place }) => place)));
  const runs: Array<{ place: number; count: number }> = [];
  for (const { place, block, count } of added) {
    for (let i = 0; i < count; i++) {
      const offset = (block + i) * BLOCK_BYTES;
      yield { kind: 'read', device: origin, buffer: engine.buffer, at: 0, lengthBytes: BLOCK_BYTES, offset };
      if (!memory.isMarked(block + i) && !isZero(engine.buffer.bytes, 0, BLOCK_BYTES))
        memory.setEntry(block + i, place + i);
      else runs.push({ place: place + i, count: 1 });
    }
  }
  return runs;
}

function* clean(engine: Engine): Steps {
  engine.isCleaning = true;
  yield* makeClean(engine);
  engine.isCleaning = false;
}

/** What `src/engine/cleaning.ts` does. */
export function* makeClean(engine: Engine): Steps<boolean> {
  const { snapshot } = engine.record;
  const { tracer } = engine;
  if (snapshot === null) return false;
  try {
    return yield* goClean(tracer, {
      store: { map: new StoreMap(snapshot.store), device: snapshot.disk },
      buffer: engine.buffer,
      fingerprint: () => engine.fingerprint(),
      header: (changedBlocks, fingerprint) => {
        engine.saveSeries(Buffer.from(fingerprint));
        return engine.headerFor(snapshot, { clean: true, changedBlocks, fingerprint });
      },
    });
  } catch (error) {
    if (isDeath(error)) throw error;
    tracer.fail(errnoOfError(error));
    return false;
  }
}

/** As `ensureDirty` of `src/engine/cleaning.ts`. */
function* ensureDirty(engine: Engine): Steps {
  if (engine.world.memory.get(Word.HEADER_STATE) === HeaderState.DIRTY) return;
  yield* engine.tracer.makeDirty({ worker: 0, scratch: engine.buffer });
}

function* end(engine: Engine): Steps {
  yield* undoing(
    engine,
    (function* () {
      yield* closeDevice(engine);
      yield* engine.switchPaused({ kind: 'end' }, null);
    })(),
  );
}

function* closeDevice(engine: Engine): Steps {
  const { snapshot } = engine.record;
  if (snapshot?.isOpen !== true) return;
  engine.isClosing = true;
  yield* engine.control.until(() => !engine.world.clients.hasInHand(({ kind }) => kind === 'snapshotRead'));
  engine.record = { ...engine.record, snapshot: { ...snapshot, isOpen: false } };
  engine.saveRecord();
  engine.isClosing = false;
}

/** Everything behind the switch. May be done again from its beginning. */
export function* finish(engine: Engine): Steps {
  const { pending, snapshot } = engine.record;
  const { memory } = engine.world;
  const change = pending?.change ?? null;
  if (change === null) throw new Violation('A switch is described before it is finished');
  engine.saveRecord();
  if (snapshot !== null && change.kind !== 'reload') engine.saveSeries(undefined);
  if (change.kind === 'next') memory.quietly(() => engine.world.model.checkClosedAgain(change.closedMap));
  if (change.kind === 'toIncremental') memory.clear({ index: true, maps: [] });
  if (change.kind === 'end') {
    memory.clear({ index: true, maps: [0, 1] });
    engine.world.saved = undefined;
  }
  yield* releaseFiles(engine);
  openDevice(engine);
  engine.record = { ...engine.record, pending: null };
  engine.saveRecord();
  if (change.kind === 'next') memory.clear({ index: false, maps: [change.closedMap] });
}

/** What `settle` of `src/engine/pending.ts` does: an operation that was cut off is finished or undone. */
export function* settle(engine: Engine, isSwitched: boolean): Steps {
  if (isSwitched) yield* finish(engine);
  else yield* undo(engine);
}
