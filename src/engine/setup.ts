/** The first snapshot of a series, and the record of any that begins. */
import { randomBytes } from 'node:crypto';
import { detectFileSystem } from '../cow/fingerprint.js';
import { CowbirdError } from '../sys/errors.js';
import { withScratch } from './async-steps.js';
import { type EngineContext, refuseForeignLink } from './context.js';
import { fileSystemsOf } from './free-blocks.js';
import { type HookParams, hooksIn } from './hooks.js';
import { findByMinor, isMountedWritable, mountsOn, volumeForSnapshot } from './lookup.js';
import { endTracking, type Finished } from './pending.js';
import type { SnapshotRecord } from './records.js';
import type { PreparedStore } from './store-setup.js';
import { refuseHookProblem, type SnapshotPlan, type TakeOptions, takenTogether, takeSnapshots } from './taking.js';
import { clearMemory, currentMap, DEFAULT_CACHE_BYTES, RAW, snapshotLinks } from './tracking.js';
import type { TakenTogether } from './types.js';
import type { Volume } from './volume.js';

export interface SetupParams {
  device: string;
  cowFile: string;
  minor: number;
  cacheBytes?: number | undefined;
  storeBytes?: number | undefined;
  onVolumeOnly?: boolean | undefined;
  alias?: 'datto' | 'elastio-snap' | undefined;
  ignoreErrors?: boolean | undefined;
  /** Blocks that are free at T0 are not saved and read as zeros. */
  freeAware?: boolean | undefined;
}

/** Minor free, volume not tracked, link names free: else the errno that dattobd has. */
export function requireFreeMinor(
  context: EngineContext,
  volume: Volume,
  minor: number,
  alias: SnapshotRecord['alias'],
): void {
  if (findByMinor(context, minor) !== undefined)
    throw new CowbirdError('EBUSY', `Minor ${minor} is in use: \`cowbird get-free-minor\` prints one that is not`);
  const other = volume.record.snapshot;
  if (other !== null)
    throw new CowbirdError('EINVAL', `${volume.record.name} is tracked already, as minor ${other.minor}`);
  if (volume.record.opened.readOnly)
    throw new CowbirdError('EINVAL', `${volume.record.name} is read-only: there is nothing to track`);
  for (const link of snapshotLinks(minor, alias)) refuseForeignLink(link);
}

/** Takes the first snapshot of a series. */
export async function setupSnapshot(
  context: EngineContext,
  params: SetupParams & HookParams,
): Promise<{ device: string }> {
  const { result } = await setup(context, [params], { ...hooksIn(params), together: false });
  return { device: String(result['device']) };
}

/** Takes the first snapshots of several series, at one instant. */
export async function setupTogether(
  context: EngineContext,
  params: { snapshots: SetupParams[] } & HookParams,
): Promise<TakenTogether> {
  const { result } = await setup(context, params.snapshots, { ...hooksIn(params), together: true });
  return takenTogether(result);
}

async function setup(
  context: EngineContext,
  snapshots: readonly SetupParams[],
  options: TakeOptions,
): Promise<Finished> {
  const plans: SnapshotPlan[] = [];
  for (const params of snapshots) plans.push(await planSetup(context, params));
  const finished = await takeSnapshots(context, plans, options);
  if (finished.problem !== undefined) {
    for (const { volume } of plans) await endTracking(context, volume, false);
    throw new CowbirdError(finished.problem.code, finished.problem.message, { outcome: 'failed' });
  }
  for (const { volume, minor } of plans)
    context.emit({
      event: 'snapshot.created',
      level: 'info',
      message: `Snapshot ${minor} of ${volume.record.name}`,
      minor,
      volume: volume.record.name,
    });
  refuseHookProblem(finished, plans.length);
  return finished;
}

async function planSetup(context: EngineContext, params: SetupParams): Promise<SnapshotPlan> {
  const volume = volumeForSnapshot(context, params.device);
  const { minor } = params;
  requireFreeMinor(context, volume, minor, params.alias ?? null);
  await requireMountedOrRaw(volume);
  const freeAware = params.freeAware === true;
  if (freeAware) fileSystemsOf(volume);
  return {
    volume,
    minor,
    store: {
      path: params.cowFile,
      storeBytes: params.storeBytes,
      onVolumeOnly: params.onVolumeOnly === true,
      freeAware,
    },
    freeIndex: freeAware ? currentMap(volume.memory) : undefined,
    record: (store) => {
      const snapshot = newRecord(params, store, { uuid: randomBytes(16).toString('hex'), sequenceId: 1 });
      if (mountsOn(volume.record.device.node).length === 0) snapshot.fsType = RAW;
      return snapshot;
    },
    ready: async (store) => {
      clearMemory(volume, { index: true, maps: [0, 1] });
      return { kind: 'begin', store: store.config, free: freeAware };
    },
  };
}

/** A file system must be mounted read-write, so that it can be frozen; a volume without one is snapshotted as it is. */
async function requireMountedOrRaw(volume: Volume): Promise<void> {
  const mounts = mountsOn(volume.record.device.node);
  if (isMountedWritable(mounts)) return;
  const { name, device } = volume.record;
  if (mounts.length > 0) throw new CowbirdError('EINVAL', `${name} is mounted read-only: remount it read-write first`);
  const found = await withScratch((buffer) => detectFileSystem(volume.origin, buffer));
  if (found !== undefined)
    throw new CowbirdError(
      'EINVAL',
      `${name} holds an ${found} file system that is not mounted: mount ${device.node} first`,
    );
}

/** The record of a snapshot that is about to begin. */
export function newRecord(
  params: {
    minor: number;
    cacheBytes?: number | undefined;
    alias?: SnapshotRecord['alias'] | undefined;
    ignoreErrors?: boolean | undefined;
    freeAware?: boolean | undefined;
  },
  store: PreparedStore,
  series: { uuid: string; sequenceId: number },
): SnapshotRecord {
  return {
    minor: params.minor,
    ...series,
    mode: 'snapshot',
    cowFile: store.cowFile,
    file: store.file,
    store: store.config,
    storeFd: store.storeFd,
    storeBytes: store.sizeBytes,
    startBytes: store.startBytes,
    fsType: store.fsType,
    fallocateBytes: store.sizeBytes,
    cacheBytes: params.cacheBytes === undefined || params.cacheBytes === 0 ? DEFAULT_CACHE_BYTES : params.cacheBytes,
    autoExpand: null,
    alias: params.alias ?? null,
    ignoreErrors: params.ignoreErrors === true,
    ...(params.freeAware === true ? { freeAware: true } : {}),
    unverified: false,
    failure: '',
    device: null,
  };
}
