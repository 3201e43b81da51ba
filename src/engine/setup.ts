/** The first snapshot of a series, and what every new snapshot needs: a record, a proved store, a header that says unclean. */
import { randomBytes } from 'node:crypto';
import { FdDevice } from '../block/device.js';
import { detectFileSystem } from '../cow/fingerprint.js';
import { CowbirdError } from '../sys/errors.js';
import { writeHeader } from '../tracer/index-io.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import { runSteps } from '../tracer/steps.js';
import { StoreMap } from '../tracer/store-map.js';
import { withScratch } from './async-steps.js';
import { type EngineContext, refuseForeignLink, undoing, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import { findByMinor, isMountedWritable, mountsOn, volumeForSnapshot } from './lookup.js';
import { describeSwitch, endTracking, finish, performSwitch } from './pending.js';
import type { SnapshotRecord } from './records.js';
import { type PreparedStore, prepareStore } from './store-setup.js';
import { clearMemory, DEFAULT_CACHE_BYTES, freezeAndSwitch, headerFor, RAW, snapshotLinks } from './tracking.js';
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
export async function setupSnapshot(context: EngineContext, params: SetupParams): Promise<{ device: string }> {
  const volume = volumeForSnapshot(context, params.device);
  const alias = params.alias ?? null;
  requireFreeMinor(context, volume, params.minor, alias);
  await requireMountedOrRaw(volume);
  await undoing(context, (undo) =>
    withHelper(context, [volume.record.opened.memoryFd], async (helper) => {
      const store = await prepareStore(context, undo, helper, volume, {
        path: params.cowFile,
        storeBytes: params.storeBytes,
        onVolumeOnly: params.onVolumeOnly === true,
      });
      const snapshot = newRecord(params, store, { uuid: randomBytes(16).toString('hex'), sequenceId: 1 });
      if (mountsOn(volume.record.device.node).length === 0) snapshot.fsType = RAW;
      await writeFirstHeader(volume, snapshot, store);
      failPoint('header-written');
      clearMemory(volume, { index: true, maps: [0, 1] });
      await describeSwitch(context, volume, { kind: 'begin', store: store.config }, snapshot);
      await freezeAndSwitch(context, helper, volume, () => {
        performSwitch(volume, store.ownFd);
        undo.clear();
      });
    }),
  );
  const { result, problem } = await finish(context, volume);
  if (problem !== undefined) {
    await endTracking(context, volume, false);
    throw new CowbirdError(problem.code, problem.message, { outcome: 'failed' });
  }
  context.emit({
    event: 'snapshot.created',
    level: 'info',
    message: `Snapshot ${params.minor} of ${volume.record.name}`,
    minor: params.minor,
    volume: volume.record.name,
  });
  return { device: String(result['device']) };
}

/** A file system must be mounted read-write, so that it can be frozen; a volume without one is snapshotted as it is. */
async function requireMountedOrRaw(volume: Volume): Promise<void> {
  const mounts = mountsOn(volume.record.device.node);
  if (isMountedWritable(mounts)) return;
  const { name, device } = volume.record;
  if (mounts.length > 0) throw new CowbirdError('EINVAL', `${name} is mounted read-only: remount it read-write first`);
  const found = await withScratch((buffer) => detectFileSystem(volume.origin, buffer));
  if (found !== 'none')
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
    unverified: false,
    failure: '',
    device: null,
  };
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
    runSteps(writeHeader({ map: new StoreMap(store.config), device }, buffer, header), noWait),
  );
}

function noWait(): never {
  throw new Error('Writing a header waits for nothing');
}
