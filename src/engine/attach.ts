/**
 * Attaching and detaching volumes.
 *
 * Attaching writes nothing to the origin: the volume has the very same bytes at the very same offsets, so it can be
 * detached and mounted directly at any time.
 */
import { mkdirSync, readFileSync, realpathSync, renameSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { VOLUME_NAME } from '../sys/checks.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { MAX_WORKERS } from '../tracer/layout.js';
import { attachedRecords, currentRequestId, type EngineContext, refuseForeignLink, undoing } from './context.js';
import { closeDevice, isWhole, openDevice, restoreLinks } from './devices.js';
import { failPoint } from './fail-points.js';
import { findVolume, refuseInUse, refuseOwnFiles, refuseSecondUse } from './lookup.js';
import type { SavedVolume, VolumeRecord } from './records.js';
import { attachedPath } from './saved-state.js';
import { refuseServed, refuseServedPath } from './stacking.js';
import { describeAttached } from './status.js';
import { saveRecord } from './tracking.js';
import type { AttachedVolume } from './types.js';
import { Volume } from './volume.js';

export interface AttachParams {
  origin: string;
  name?: string | undefined;
  workers?: number | undefined;
  readOnly?: boolean | undefined;
  raw?: boolean | undefined;
}

/** A worker has many small transfers in hand: one more than there are processors makes each slower, and the whole, too. */
export const DEFAULT_WORKERS = Math.max(2, Math.min(8, cpus().length));
const EBUSY = 16;

/** Attaches an origin; `attached` is the answer that the keeper has, too. Everything is undone when a step fails. */
export async function attachVolume(
  context: EngineContext,
  params: AttachParams,
  onAttention: (id: string) => void,
): Promise<{ volume: Volume; attached: AttachedVolume }> {
  const { origin, name, link } = checkAttach(context, params);
  const raw = params.raw === true;
  return undoing(context, async (undo) => {
    const workers = Math.min(params.workers ?? DEFAULT_WORKERS, MAX_WORKERS);
    await context.pool.grow(workers);
    const { keeper } = context;
    const opened = await keeper.call('openOrigin', { path: origin, readOnly: params.readOnly === true, raw });
    undo.add('close the origin', () => keeper.call('closeFds', { fds: [opened.originFd, opened.memoryFd] }));
    const fds = {
      origin: libc.duplicateFrom(keeper.pid, opened.originFd),
      memory: libc.duplicateFrom(keeper.pid, opened.memoryFd),
      fuse: -1,
    };
    undo.add('close the duplicates', () => [fds.origin, fds.memory].forEach(libc.close));
    const id = `volume-${name}`;
    const device = { id, fuseFd: -1, target: '', node: '', links: [link] };
    const idle = { snapshot: null, pending: null, detaching: null };
    const record: VolumeRecord = { id, name, origin, raw, opened, workers, device, ...idle };
    const volume = new Volume(record, fds, context.pool, () => onAttention(id));
    volume.announce();
    undo.add('forget the volume', () => context.pool.removeVolume(id));
    const up = await openDevice(context, undo, {
      id,
      readOnly: opened.readOnly,
      partitionScan: true,
      logicalSectorBytes: opened.logicalSectorBytes,
      links: [link],
      serve: (fd) => {
        fds.fuse = fd;
        volume.serve();
      },
    });
    record.device = up.record;
    context.volumes.set(id, volume);
    undo.add('forget that it is attached', () => {
      context.volumes.delete(id);
      saveAttached(context);
    });
    saveAttached(context);
    failPoint('attached');
    const attached = describeAttached(record);
    await keeper.call('putVolume', { volume: record, done: { requestId: currentRequestId(), result: attached } });
    return { volume, attached };
  });
}

/** Everything that can be refused before anything is opened. */
function checkAttach(context: EngineContext, params: AttachParams): { origin: string; name: string; link: string } {
  refuseServedPath(resolve(params.origin), context.volumes.values());
  const origin = resolveOrigin(params.origin);
  const name = params.name ?? basename(params.origin);
  if (!VOLUME_NAME.test(name) || name === '.' || name === '..') {
    throw new CowbirdError(
      'EINVAL',
      `"${name}" is no volume name ([A-Za-z0-9._-], 1 to 64 characters): give one with --name`,
    );
  }
  const link = `/dev/cowbird/${name}`;
  if (attachedRecords(context).some((record) => record.name === name)) {
    throw new CowbirdError('EEXIST', `A volume named ${name} is attached already: give another name with --name`);
  }
  refuseSecondUse(context, origin);
  refuseServed(origin, context.volumes.values());
  refuseOwnFiles(origin, ownFiles(context));
  try {
    refuseForeignLink(link);
  } catch (error) {
    if (errnoOfError(error) === EBUSY) {
      throw new CowbirdError('EEXIST', `${link} exists already: give another name with --name`);
    }
    throw error;
  }
  return { origin, name, link };
}

function resolveOrigin(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (errnoOfError(error) === 2) throw new CowbirdError('ENOENT', `${path} does not exist`);
    throw error;
  }
}

/** What must not lie on a volume: the program, its interpreter and libraries, its state. */
function ownFiles(context: EngineContext): string[] {
  const libraries = new Set<string>();
  for (const line of readFileSync('/proc/self/maps', 'utf8').split('\n')) {
    const path = line.slice(line.indexOf('/'));
    if (line.includes('/') && !path.startsWith('/dev/') && !path.startsWith('/memfd:') && !path.endsWith(' (deleted)'))
      libraries.add(path);
  }
  return [process.execPath, fileURLToPath(import.meta.url), context.paths.stateDir, context.paths.runDir, ...libraries];
}

/** Detaches a volume: refused while it is tracked, mounted or open. */
export async function detachVolume(context: EngineContext, reference: string): Promise<string> {
  const volume = findVolume(context, reference);
  if (volume === undefined)
    throw new CowbirdError('ENOENT', `No volume ${reference} is attached: \`cowbird list\` shows what is`);
  const { snapshot, name, device } = volume.record;
  if (snapshot !== null) {
    throw new CowbirdError(
      'EBUSY',
      `${name} is tracked as minor ${snapshot.minor}: end that first with \`cowbird destroy ${snapshot.minor}\``,
    );
  }
  await refuseInUse(context, device.node);
  await removeVolume(context, volume, true);
  return name;
}

/**
 * Takes a volume down, wholly. `forget`: it is not attached again at the next start. Told to the keeper first, so that a new
 * engine goes on with it; an error leaves the volume attached.
 */
export async function removeVolume(context: EngineContext, volume: Volume, forget: boolean): Promise<void> {
  const { record, fds } = volume;
  // A new engine that goes on with it keeps the number of the call.
  const detaching = record.detaching ?? { requestId: currentRequestId(), forget };
  const { requestId } = detaching;
  record.detaching = detaching;
  await saveRecord(context, volume);
  failPoint('detaching');
  try {
    await closeDevice(context, record.device, fds.fuse);
  } catch (error) {
    record.detaching = null;
    if (isWhole(record.device)) restoreLinks(record.device);
    await saveRecord(context, volume);
    throw error;
  }
  await context.pool.removeVolume(record.id);
  context.volumes.delete(record.id);
  // The mapping stays where it is, empty: a view that somebody still has must never touch unmapped memory.
  libc.fallocate(fds.memory, libc.FALLOC_FL_PUNCH_HOLE + libc.FALLOC_FL_KEEP_SIZE, 0, volume.memory.sizes.totalBytes);
  libc.close(fds.origin);
  libc.close(fds.memory);
  if (forget) saveAttached(context);
  const { opened, device } = record;
  const done = forget ? { requestId, result: {} } : null;
  await context.keeper.call('dropVolume', { id: record.id, done });
  await context.keeper.call('closeFds', { fds: [opened.originFd, opened.memoryFd, device.fuseFd] });
}

/** Writes what is attached, for the next start. */
export function saveAttached(context: EngineContext): void {
  const volumes: SavedVolume[] = attachedRecords(context).map((record) => ({
    name: record.name,
    origin: record.origin,
    workers: record.workers,
    readOnly: record.opened.readOnly,
    raw: record.raw,
  }));
  writeDurably(attachedPath(context.paths.stateDir), JSON.stringify(volumes, null, 2));
}

/** Writes a file of ours so that it is the old one or the new one, whatever happens: aside, fsync, rename, fsync. */
export function writeDurably(path: string, text: string | Uint8Array): void {
  const directory = join(path, '..');
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const aside = `${path}.new`;
  writeFileSync(aside, text, { mode: 0o600, flush: true });
  renameSync(aside, path);
  const fd = libc.open(directory, libc.O_RDONLY + libc.O_DIRECTORY);
  try {
    libc.fsync(fd);
  } finally {
    libc.close(fd);
  }
}
