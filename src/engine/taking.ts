/**
 * Taking snapshots, of one volume or of several at one instant. In this order, each step for all volumes before the next:
 *
 *   1. checks, which change nothing
 *   2. a store each: created, proved, its header on disk
 *   3. checks again, since preparing took time; a failed snapshot's device goes; memory is made ready
 *   4. all switches are described to the keeper, in one message
 *   5. the pre-freeze hook; syncfs, freeze, all gates closed, all switched, all gates opened, thaw; the post-thaw hook
 *   6. finished (devices, lists of changes), and concluded in one message
 *
 * Whatever fails before the first word of the first switch changes is undone for all of them.
 */
import { FdDevice, type IoBuffer } from '../block/device.js';
import { CowbirdError } from '../sys/errors.js';
import { type StoreOnDevice, writeHeader } from '../tracer/index-io.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import { runSteps, type Steps } from '../tracer/steps.js';
import { writePlaces } from '../tracer/store-io.js';
import { StoreMap } from '../tracer/store-map.js';
import type { Switch } from '../tracer/switches.js';
import { withScratch } from './async-steps.js';
import { type EngineContext, type Undo, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { beginNoting, lookUpFree } from './free-blocks.js';
import { betweenHooks, type HookParams, hookCall } from './hooks.js';
import { describeSwitches, type Finished, finishAll, performSwitch } from './pending.js';
import type { SnapshotRecord } from './records.js';
import type { HelperSession } from './services.js';
import { type PreparedStore, prepareStore, type StoreRequest } from './store-setup.js';
import { type FreezeTimes, freezeAndSwitch, headerFor } from './tracking.js';
import type { TakenTogether } from './types.js';
import type { Volume } from './volume.js';

/** What is to be done with one volume. */
export interface SnapshotPlan {
  volume: Volume;
  minor: number;
  store: StoreRequest;
  /** Which free map the snapshot will have, where it is to know its free blocks. */
  freeIndex: 0 | 1 | undefined;
  /** The record of the snapshot that begins. */
  record(store: PreparedStore): SnapshotRecord;
  /** Makes the volume ready for the switch, and says which that is. Refuses what has become impossible meanwhile. */
  ready(store: PreparedStore): Promise<Switch>;
}

export interface TakeOptions extends HookParams {
  /** Whether the answer is that of several volumes: as a list, with the times. */
  together: boolean;
}

/** The answer, read from a result. */
export function takenTogether({ devices, windowMs, freezeMs }: Finished['result']): TakenTogether {
  const numberOf = (value: unknown): number | null => (typeof value === 'number' ? value : null);
  return { devices: Array.isArray(devices) ? devices : [], windowMs: numberOf(windowMs), freezeMs: numberOf(freezeMs) };
}

/** What was taken, and what of it did not succeed. */
export interface Taken extends Finished {
  /** Of the post-thaw hook, in words. */
  hookProblem: string | undefined;
}

/** @throws {CowbirdError} `partial`, when the snapshots are there and the hook after them failed. */
export function refuseHookProblem({ hookProblem }: Taken, count: number): void {
  const what = count === 1 ? 'The snapshot was taken' : 'The snapshots were taken';
  if (hookProblem !== undefined)
    throw new CowbirdError('ECANCELED', `${what}, but: ${hookProblem}`, { outcome: 'partial' });
}

/** Takes the snapshots; what is behind the switch may have had a problem. */
export async function takeSnapshots(
  context: EngineContext,
  plans: readonly SnapshotPlan[],
  options: TakeOptions,
): Promise<Taken> {
  refuseTwice(plans);
  const volumes = plans.map(({ volume }) => volume);
  const { result: times, problem: hookProblem } = await undoing(context, (undo) =>
    withHelper(context, (helper) => prepareAndSwitch(context, undo, helper, plans, options)),
  );
  // It has run: an engine that resumes need not do it again.
  for (const { record } of volumes) delete record.pending?.postThaw;
  return { ...(await finishAll(context, volumes, times)), hookProblem };
}

async function prepareAndSwitch(
  context: EngineContext,
  undo: Undo,
  helper: HelperSession,
  plans: readonly SnapshotPlan[],
  options: TakeOptions,
): Promise<{ result: FreezeTimes; problem: string | undefined }> {
  const prepared = await prepareAll(context, undo, helper, plans);
  const parts: Array<{ volume: Volume; change: Switch; next: SnapshotRecord }> = [];
  for (const { plan, store, next } of prepared)
    parts.push({ volume: plan.volume, change: await plan.ready(store), next });
  const volumes = parts.map(({ volume }) => volume);
  const preFreeze = hookCall(options.preFreeze, options, plans);
  const postThaw = hookCall(options.postThaw, options, plans);
  await describeSwitches(context, parts, {
    ...(options.together ? { together: volumes.map(({ record }) => record.id) } : {}),
    ...(postThaw === undefined ? {} : { postThaw }),
  });
  for (const { volume, freeIndex } of plans) if (freeIndex !== undefined) beginNoting(volume, undo, freeIndex);
  const change = (): void => {
    // From the first changed word on nothing can be undone, and everything be finished.
    undo.clear();
    for (const { plan, store } of prepared) performSwitch(plan.volume, store.ownFd);
  };
  const lookUp = async (): Promise<void> => {
    for (const { volume, freeIndex } of plans)
      if (freeIndex !== undefined) await lookUpFree(context, helper, volume, freeIndex);
  };
  return betweenHooks(context, { preFreeze, postThaw }, () =>
    freezeAndSwitch(context, helper, volumes, change, lookUp),
  );
}

interface PreparedPlan {
  plan: SnapshotPlan;
  store: PreparedStore;
  next: SnapshotRecord;
}

async function prepareAll(
  context: EngineContext,
  undo: Undo,
  helper: HelperSession,
  plans: readonly SnapshotPlan[],
): Promise<PreparedPlan[]> {
  const prepared: PreparedPlan[] = [];
  for (const plan of plans) {
    const store = await prepareStore(context, undo, helper, plan.volume, plan.store);
    const next = plan.record(store);
    await writeFirstHeader(plan.volume, next, store);
    prepared.push({ plan, store, next });
    failPoint('header-written');
  }
  return prepared;
}

/** @throws {CowbirdError} EINVAL when a volume, a minor or a COW file is named twice. */
function refuseTwice(plans: readonly SnapshotPlan[]): void {
  for (const [what, named] of [
    ['volume', ({ volume }: SnapshotPlan) => volume.record.name],
    ['minor', ({ minor }: SnapshotPlan) => String(minor)],
    ['COW file', ({ store }: SnapshotPlan) => store.path],
  ] as const) {
    const values = plans.map(named);
    const twice = values.find((value, i) => values.indexOf(value) !== i);
    if (twice !== undefined)
      throw new CowbirdError(
        'EINVAL',
        `The ${what} ${twice} is named twice: name each once, with a COW file and a minor of its own`,
      );
  }
}

/** The new store's header says "unclean" on the disk before the first block is saved. */
export async function writeFirstHeader(volume: Volume, snapshot: SnapshotRecord, store: PreparedStore): Promise<void> {
  const header = headerFor(
    volume,
    { ...snapshot, store: { ...snapshot.store, slots: [] } },
    { clean: false, changedBlocks: 0 },
  );
  const device =
    store.ownFd === undefined ? volume.origin : new FdDevice(store.ownFd, store.config.placeCount * BLOCK_BYTES, false);
  await withScratch((buffer) =>
    runSteps(writeZerosAndHeader({ map: new StoreMap(store.config), device }, buffer, header), noWait),
  );
}

function* writeZerosAndHeader(store: StoreOnDevice, buffer: IoBuffer, header: Uint8Array): Steps {
  if (store.map.zeroPlace !== undefined) {
    buffer.bytes.fill(0, 0, BLOCK_BYTES);
    yield* writePlaces(store, buffer, [{ place: store.map.zeroPlace, count: 1 }]);
  }
  yield* writeHeader(store, buffer, header);
}

function noWait(): never {
  throw new Error('Writing a header waits for nothing');
}
