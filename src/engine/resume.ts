/**
 * Going on where a dead engine was, in two parts.
 *
 * Serving again comes first and waits for nothing: descriptors duplicated from the keeper, a switch that was begun made
 * whole, what dead workers had in hand forgotten, stores configured, sessions opened, and only then the kernel asked to send
 * the unanswered requests again.
 *
 * Settling comes after, since it needs file systems that this engine serves: what the old engine's helpers had in hand ends,
 * devices that nobody knows are cleared away, and each operation that was cut off is finished or undone.
 */
import { encodeResend } from '../frontend/fuse/wire.js';
import { boundLoops } from '../sys/blkdev.js';
import { messageOf, SystemError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { ownMounts } from '../sys/mounts.js';
import { Mode, SwitchState, Word } from '../tracer/layout.js';
import { recover } from '../tracer/recover.js';
import { runStepsAsync, withScratch } from './async-steps.js';
import { removeVolume } from './attach.js';
import { attachedRecords, type EngineContext, withHelper } from './context.js';
import { isWhole, keepDevice } from './devices.js';
import { failPoint } from './fail-points.js';
import { refuseInUse } from './lookup.js';
import type { VolumeRecord } from './records.js';
import { cutOffOperations, type Outcome, resumeSwitches, settle } from './settling.js';
import { removeDeadLinks } from './stale.js';
import { closeSnapshotDevice, configureStore, saveRecord } from './tracking.js';
import { Volume } from './volume.js';

const EUCLEAN = 117;

/** Volumes whose pending operation has switched, and is to be finished. */
export type Switched = ReadonlySet<string>;

/** Serves the volumes of the records again. One that cannot be is reported, and the others go on. */
export async function serveAgain(
  context: EngineContext,
  records: readonly VolumeRecord[],
  onAttention: () => void,
): Promise<Switched> {
  await context.pool.grow(Math.max(...records.map((record) => record.workers)));
  const opened: Volume[] = [];
  for (const record of records)
    await orStuck(context, record, async () => opened.push(openAgain(context, record, onAttention)));
  // All of them before the first is served: those that switch together have one instant.
  const { switched, failed } = resumeSwitches(opened);
  for (const volume of opened) {
    await orStuck(context, volume.record, async () => {
      if (failed.has(volume.record.id)) throw failed.get(volume.record.id);
      await serveVolume(context, volume);
    });
    failPoint('resuming');
  }
  return switched;
}

async function orStuck(context: EngineContext, record: VolumeRecord, action: () => Promise<unknown>): Promise<void> {
  try {
    await action();
  } catch (error) {
    const { id, name } = record;
    // What is served all the same takes requests, and is no different from any other.
    if (!context.volumes.has(id)) context.stuck.push(record);
    context.emit({
      event: 'volume.stuck',
      level: 'error',
      message: `${name} is not served: ${messageOf(error)}. \`cowbird daemon restart\` tries again`,
      volume: name,
    });
  }
}

/** A volume with this process's duplicates of its descriptors. */
function openAgain({ keeper, pool }: EngineContext, record: VolumeRecord, onAttention: () => void): Volume {
  failPoint('opening');
  sayWhereStoresLie(record);
  const duplicate = (fd: number): number => libc.duplicateFrom(keeper.pid, fd);
  const fds = {
    origin: duplicate(record.opened.originFd),
    fuse: duplicate(record.device.fuseFd),
    memory: duplicate(record.opened.memoryFd),
  };
  return new Volume(record, fds, pool, onAttention);
}

/** An older engine did not write it down. */
function sayWhereStoresLie({ device, snapshot, pending }: VolumeRecord): void {
  for (const each of [snapshot, pending?.old, pending?.next])
    if (each?.store.kind === 'origin' && each.file.path !== '') each.file.on ??= device.node;
}

async function serveVolume(context: EngineContext, volume: Volume): Promise<void> {
  const { keeper, pool, volumes } = context;
  const { record, fds } = volume;
  requireAgreement(volume);
  // A snapshot that was about to begin has begun by now, or is begun again from the start.
  volume.memory.set(Word.NOTING, 0);
  const { snapshot } = record;
  if (snapshot !== null && snapshot.storeFd !== null) volume.storeFd = libc.duplicateFrom(keeper.pid, snapshot.storeFd);
  volume.announce();
  configureStore(volume);
  await withScratch((scratch) => runStepsAsync(recover(volume.tracer, { worker: 0, scratch })));
  volumes.set(record.id, volume);
  // Before anybody reads: what is given out again includes what one of our own workers had in hand, and another would do it a second time.
  askAgain(context, fds.fuse);
  volume.serve();
  if (snapshot === null || snapshot.device === null) return;
  volume.snapshotFuseFd = libc.duplicateFrom(keeper.pid, snapshot.device.fuseFd);
  askAgain(context, volume.snapshotFuseFd);
  pool.addSession({
    id: snapshot.device.id,
    volumeId: record.id,
    kind: 'snapshot',
    fd: volume.snapshotFuseFd,
    concurrency: record.workers,
  });
}

/** Record and memory name the same mode, or nobody knows which map belongs to which sequence: the series says so. */
function requireAgreement({ memory, record, tracer }: Volume): void {
  const { snapshot } = record;
  if (record.pending === null) memory.set(Word.SWITCH, SwitchState.BEFORE);
  if (snapshot === null) {
    memory.set(Word.MODE, Mode.PASSTHROUGH);
    return;
  }
  const expected = snapshot.mode === 'snapshot' ? Mode.SNAPSHOT : Mode.INCREMENTAL;
  if (memory.get(Word.MODE) === expected || snapshot.unverified) return;
  snapshot.unverified = true;
  snapshot.failure =
    'its record and its memory disagree: begin a new series, and compare contents for its first backup';
  tracer.fail(EUCLEAN);
}

function askAgain(context: EngineContext, fd: number): void {
  const message = encodeResend();
  const memory = libc.mapLocked(4096);
  new Uint8Array(memory.bytes).set(message);
  if (libc.fast.write(fd, memory.address, message.byteLength) < 0) {
    const error = new SystemError('FUSE_NOTIFY_RESEND', libc.lastErrno());
    context.emit({ event: 'resend.failed', level: 'error', message: error.message, errno: error.errno });
  }
}

/** Finishes or undoes everything that was cut off. Under the engine's lock, before any other operation. */
export async function settleAll(context: EngineContext, switched: Switched): Promise<Map<number, Outcome>> {
  const outcomes = new Map<number, Outcome>();
  await context.keeper.call('oldHelpersGone', {});
  await clearUnknownDevices(context);
  const volumes = [...context.volumes.values()];
  for (const volume of volumes) await completeSnapshotDevice(context, volume);
  for (const group of cutOffOperations(volumes)) {
    const requestId = group[0]?.record.pending?.requestId ?? 0;
    const isSwitched = group.some(({ record }) => switched.has(record.id));
    const outcome = await settle(context, group, isSwitched);
    // Parts that were announced and not described yet are undone one by one: what did not succeed counts.
    if (outcomes.get(requestId)?.kind !== 'failed') outcomes.set(requestId, outcome);
  }
  for (const { name, pending, detaching } of context.stuck) {
    const requestId = pending?.requestId ?? detaching?.requestId;
    const message = `${name} is not served: what was cut off is settled by the engine that serves it again (\`cowbird daemon restart\`)`;
    if (requestId !== undefined) outcomes.set(requestId, { kind: 'failed', message });
  }
  for (const volume of volumes) if (volume.record.detaching !== null) await settleDetach(context, volume);
  return outcomes;
}

/** Half made devices of operations that no record tells of: their descriptors are closed already, so nothing waits. */
async function clearUnknownDevices(context: EngineContext): Promise<void> {
  const known = new Set<string>();
  for (const { device, snapshot } of attachedRecords(context)) {
    known.add(device.target);
    if (snapshot?.device != null) known.add(snapshot.device.target);
  }
  // What is half made of these is for the engine that can serve them.
  for (const { pending } of context.stuck)
    for (const snapshot of [pending?.old, pending?.next])
      if (snapshot?.device != null) known.add(snapshot.device.target);
  const isUnknown = (path: string): boolean => path.startsWith(`${context.paths.fuseDir}/`) && !known.has(path);
  const loops = boundLoops().filter(({ backingFile }) => isUnknown(backingFile));
  const targets = ownMounts().filter(({ mountPoint }) => isUnknown(mountPoint));
  if (loops.length + targets.length === 0) return;
  await withHelper(context, async (helper) => {
    for (const { node, backingFile: target } of loops) await helper.call('releaseLoop', { node, target });
    for (const { mountPoint } of targets) await helper.call('umount', { target: mountPoint, lazy: true });
  });
  removeDeadLinks([]);
}

/** A snapshot's device that was being taken down is taken down wholly; the next look brings it up where it belongs. */
async function completeSnapshotDevice(context: EngineContext, volume: Volume): Promise<void> {
  const { snapshot } = volume.record;
  if (snapshot === null || snapshot.device === null || volume.snapshotFuseFd === undefined) return;
  if (isWhole(snapshot.device) && (await keepDevice(context, snapshot.device))) return;
  await closeSnapshotDevice(context, { volume, snapshot });
}

/** A volume that was being detached is gone, or, when somebody has opened it meanwhile, as it was. */
async function settleDetach(context: EngineContext, volume: Volume): Promise<void> {
  const { record } = volume;
  try {
    if (isWhole(record.device)) await refuseInUse(context, record.device.node);
    await removeVolume(context, volume, record.detaching?.forget === true);
  } catch (error) {
    record.detaching = null;
    if (isWhole(record.device)) await keepDevice(context, record.device);
    await saveRecord(context, volume);
    context.emit({
      event: 'volume.kept',
      level: 'warning',
      message: `${record.name} stays attached: ${messageOf(error)}`,
      volume: record.name,
    });
  }
}
