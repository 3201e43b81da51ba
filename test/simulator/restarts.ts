/** The end of the daemon while the machine goes on or not, and going on with a series afterwards. */
import { dataOffsetBytes } from '../../src/cow/geometry.js';
import { BLOCK_BYTES, Mode, Word } from '../../src/tracer/layout.js';
import { type ReloadParts, takeOver } from '../../src/tracer/reloading.js';
import type { Steps } from '../../src/tracer/steps.js';
import { StoreMap } from '../../src/tracer/store-map.js';
import { slotCount } from '../../src/tracer/switches.js';
import type { Engine } from './engine.js';
import { isDeath } from './memory.js';
import { finish, makeClean } from './operations.js';
import type { SavedSeries, SnapshotRecord } from './records.js';
import { Violation } from './violation.js';

const EINVAL = 22;

/** A clean stop: nobody uses the volume, the COW file becomes clean, the machine goes down. */
export function* restart(engine: Engine): Steps {
  const { world } = engine;
  const { clients, random } = world;
  clients.isQuiet = true;
  yield* engine.control.until(() => clients.unanswered.size === 0);
  const isClean = yield* makeClean(engine);
  world.shutDown = () => {
    if (random(2) === 0) world.losePowerOfDisks();
    const isUsed = random(4) === 0;
    if (isUsed) useDirectly(engine);
    world.boot({ mustSucceed: isClean && !isUsed, mustFail: isUsed });
  };
}

/** Somebody mounts the origin without Cowbird, and writes. */
function useDirectly({ world }: Engine): void {
  const { origin, random, model } = world;
  for (const sector of [2, random(origin.sectorCount)]) {
    if (model.isOwn(sector)) continue;
    const value = 0x7000_0000 + random(0x00ff_ffff);
    origin.preset(sector, value);
    model.registers.reset(sector, [value]);
  }
}

/** What `src/engine/reload.ts` does. */
export function* goOn(engine: Engine): Steps {
  const { world } = engine;
  const { memory, saved } = world;
  if (saved === undefined) throw new Violation('A series that is reloaded was saved');
  const { mode, uuid, sequenceId, store, disk } = saved;
  const snapshot: SnapshotRecord = { mode, uuid, sequenceId, store, disk, isOpen: false };
  memory.clear({ index: true, maps: [0, 1] });
  engine.describe({ kind: 'reload', mode }, snapshot);
  yield* engine.whilePaused(() => {
    memory.set(Word.MODE, Mode.PASSTHROUGH);
    memory.set(Word.FAILED, 0);
    memory.set(Word.CHANGED, 0);
    memory.set(Word.NEXT_SLOT, saved.nextSlot | 0);
    memory.set(Word.SLOT_COUNT, slotCount(store) | 0);
    engine.record = { ...engine.record, snapshot };
    engine.configureStore();
  });
  let refusal: unknown;
  try {
    yield* takeOver(engine.tracer, reloadParts(engine, saved));
  } catch (error) {
    if (isDeath(error) || error instanceof Violation) throw error;
    refusal = error;
    engine.tracer.fail(EINVAL);
  }
  if (refusal !== undefined) memory.quietly(() => world.refused(refusal));
  if (refusal === undefined) {
    const { pending } = engine.record;
    if (pending !== null) engine.tellModel(pending);
    yield* finish(engine);
    return;
  }
  engine.record = { ...engine.record, snapshot: null };
  engine.describe({ kind: 'end' }, null);
  yield* engine.whilePaused(() => engine.performSwitch());
  yield* finish(engine);
}

function reloadParts(engine: Engine, saved: SavedSeries): ReloadParts {
  const { store, mode, sequenceId, fingerprint } = saved;
  return {
    store: { map: new StoreMap(store), device: saved.disk },
    buffer: engine.buffer,
    mode,
    uuid: Buffer.from(saved.uuid, 'hex'),
    sequenceId,
    fingerprint: () => engine.fingerprint(),
    expectedFingerprint: fingerprint ?? Buffer.alloc(0),
    firstPlace: dataOffsetBytes(engine.world.memory.blockCount) / BLOCK_BYTES,
    endPlace: store.placeCount,
  };
}
