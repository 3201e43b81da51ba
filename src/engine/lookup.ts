/** Finding volumes and their mounts; saying who holds what. */
import { realpathSync, statSync } from 'node:fs';
import { belowPath, isBackedBy } from '../sys/below.js';
import { boundLoops, deviceNumber, deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import {
  allMounts,
  coveredError,
  fuseFiles,
  isReachable,
  type MountEntry,
  type MountIdentity,
  pathOfMount,
} from '../sys/mounts.js';
import { attachedRecords, type EngineContext, withHelper } from './context.js';
import { refuseOpen } from './devices.js';
import { outwait } from './visitors.js';
import type { Volume } from './volume.js';

const EBUSY = 16;

/** The mounts that lie on a node, its partitions, or what is stacked on them, in any namespace. */
export function mountsOn(node: string, mounts: readonly MountEntry[] = allMounts()): MountEntry[] {
  const devices = deviceNumbersOn(node);
  const numbers = new Set(devices.map((device) => device.number));
  const sources = new Set(devices.map((device) => `/dev/${device.name}`));
  return mounts.filter((entry) => numbers.has(entry.device) || sources.has(entry.source));
}

/** The volume itself or a partition of it, by where it begins: what a file system with a COW file is on. */
export function partAt(node: string, startBytes: number): { number: string; node: string } | undefined {
  // A partition's own number comes behind that of the disk; one that begins where the disk does is none.
  const part = deviceNumbersOn(node).find((each) => each.startBytes === startBytes);
  return part === undefined ? undefined : { number: part.number, node: `/dev/${part.name}` };
}

/** The mount by which a COW file on the volume can be looked at: ours, the whole of its own file system, and reached by its path. */
export function storeMount(node: string, startBytes: number, mounts: readonly MountEntry[]): MountEntry | undefined {
  const number = partAt(node, startBytes)?.number;
  return mounts.find(
    (entry) => entry.device === number && entry.pid === 0 && entry.root === '/' && isReachable(entry, mounts),
  );
}

/** Whether a volume is in use for writing: some file system on it is mounted read-write somewhere. */
export function isMountedWritable(entries: readonly MountEntry[]): boolean {
  return entries.some((entry) => !entry.readOnlySuper);
}

/**
 * One mount of each file system that is mounted read-write, by which it can be reached. `mounts`: all of the machine.
 *
 * @throws {CowbirdError} EBUSY for one that other file systems are mounted over, everywhere: its path leads to them.
 */
export function freezeMounts(entries: readonly MountEntry[], mounts: readonly MountEntry[]): MountEntry[] {
  const writable = entries.filter(({ readOnlySuper }) => !readOnlySuper);
  return [...new Set(writable.map(({ device }) => device))].map((number) => {
    const own = writable.filter(({ device }) => device === number);
    const reached = own.find((entry) => isReachable(entry, mounts));
    if (reached !== undefined) return reached;
    throw coveredError(own.map(({ mountPoint }) => mountPoint));
  });
}

/** What a helper is told of a mount, so that it opens no other. */
export function identityOf({ device, id }: MountEntry): MountIdentity {
  return { device, id };
}

/** {@link freezeMounts} of several nodes, by their paths: what has to be frozen. One file system may have parts on several nodes. */
export function freezePoints(nodes: readonly string[], mounts: readonly MountEntry[]): Map<string, MountIdentity> {
  const entries = nodes.flatMap((node) => freezeMounts(mountsOn(node, mounts), mounts));
  return new Map(entries.map((entry) => [pathOfMount(entry), identityOf(entry)]));
}

/** EBUSY, naming the holder, when a node is mounted, open or held by the kernel, and not by a visitor. */
export async function refuseInUse(context: EngineContext, node: string): Promise<void> {
  await refuseUsers(node);
  await refuseClaimed(context, node);
}

/** The same without asking the kernel, which takes a helper: swap, or a device on top of it, is not seen. */
export async function refuseUsers(node: string): Promise<void> {
  const look = (): MountEntry | undefined => {
    const mounts = mountsOn(node);
    return mounts.find(({ pid }) => pid === 0) ?? mounts[0];
  };
  const mount = await outwait(look, { isVisitor: ({ pid }) => pid !== 0 });
  if (mount !== undefined) {
    const where = mount.pid === 0 ? '' : ` in the mount namespace of pid ${mount.pid}`;
    throw new CowbirdError('EBUSY', `${node} is mounted on ${mount.mountPoint}${where}: unmount it first`);
  }
  await refuseOpen(node);
  refuseLoopOn(node);
}

/** A loop device holds its file with no descriptor of anybody's, and claims nothing. */
function refuseLoopOn(node: string): void {
  const names = new Set(deviceNumbersOn(node).map(({ name }) => `/dev/${name}`));
  const loop = boundLoops().find(({ backingFile }) => names.has(backingFile));
  if (loop !== undefined)
    throw new CowbirdError(
      'EBUSY',
      `${node} is behind the loop device ${loop.node}: detach that first with \`losetup -d ${loop.node}\``,
    );
}

/**
 * EBUSY when the kernel itself has a node. For a moment it may: what was mounted in a mount namespace is unmounted only some time after
 * the namespace's last process has ended, and nobody's list of mounts has it in between.
 */
async function refuseClaimed(context: EngineContext, node: string): Promise<void> {
  const isClaimed = await outwait(async () => {
    try {
      await withHelper(context, (helper) => helper.call('probeExclusive', { node }));
      return undefined;
    } catch (error) {
      if (errnoOfError(error) !== EBUSY) throw error;
      return true;
    }
  });
  if (isClaimed !== undefined)
    throw new CowbirdError('EBUSY', `${node} is claimed by the kernel (a file system, swap, or a device on top of it)`);
}

/** A volume by name, node, link, origin or the node of the origin. */
export function findVolume(context: EngineContext, reference: string): Volume | undefined {
  for (const volume of context.volumes.values()) {
    const { name, device, origin } = volume.record;
    if ([name, device.node, origin, ...device.links].includes(reference)) return volume;
  }
  if (!reference.startsWith('/')) return undefined;
  const real = realPath(reference);
  if (real === undefined) return undefined;
  for (const volume of context.volumes.values()) {
    if (real === volume.record.device.node || real === volume.record.origin) return volume;
  }
  return undefined;
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch (error) {
    if ([2, 20].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}

/** The volume that a snapshot command names, or the errno that its users know. */
export function volumeForSnapshot(context: EngineContext, device: string): Volume {
  if (device === '') throw new CowbirdError('EINVAL', 'The device is an empty string: name the volume');
  const volume = findVolume(context, device);
  if (volume !== undefined) return volume;
  const real = realPath(device);
  if (real === undefined) throw new CowbirdError('ENOENT', `${device} does not exist`);
  if (!statSync(real).isBlockDevice())
    throw new CowbirdError('ENOTBLK', `${device} is not a block device, nor an attached image`);
  throw new CowbirdError(
    'EINVAL',
    `${device} is not attached to Cowbird: attach it first with \`cowbird attach ${device}\``,
  );
}

export function findByMinor(context: EngineContext, minor: number): Volume | undefined {
  for (const volume of context.volumes.values()) if (volume.record.snapshot?.minor === minor) return volume;
  return undefined;
}

/** EBUSY when some loop device or attached volume stands on the origin already. */
export function refuseSecondUse(context: EngineContext, origin: string): void {
  const stats = statSync(origin);
  for (const record of attachedRecords(context)) {
    const other = statSync(record.origin);
    const same = stats.isBlockDevice() ? other.isBlockDevice() && other.rdev === stats.rdev : sameFile(other, stats);
    if (same)
      throw new CowbirdError('EBUSY', `${origin} is attached already, as ${record.name} on ${record.device.node}`);
  }
  const served = fuseFiles();
  for (const { node, backingFile } of boundLoops()) {
    if (isServedByUs(context, node)) {
      if (stats.isBlockDevice() && statSync(node).rdev === stats.rdev) {
        throw new CowbirdError('EBUSY', `${origin} is a device that Cowbird serves itself`);
      }
      continue;
    }
    if (stats.isFile() && isBackedBy(backingFile, stats, served)) {
      throw new CowbirdError(
        'EBUSY',
        `${origin} is behind the loop device ${node}: detach that first with \`losetup -d ${node}\``,
      );
    }
  }
}

function isServedByUs(context: EngineContext, node: string): boolean {
  return [...context.volumes.values()].some(
    ({ record }) => record.device.node === node || record.snapshot?.device?.node === node,
  );
}

function sameFile(a: { dev: number; ino: number }, b: { dev: number; ino: number }): boolean {
  return a.dev === b.dev && a.ino === b.ino;
}

/**
 * EBUSY when something that this program needs in order to run lies on the origin: the engine, started again, would have to
 * read itself from the volume that it is to serve.
 */
export function refuseOwnFiles(origin: string, needed: readonly string[]): void {
  const stats = statSync(origin);
  for (const path of needed) {
    const real = realPath(path);
    if (real === undefined) continue;
    const layers = belowPath(real, { withFiles: true });
    const hit = stats.isBlockDevice()
      ? layers.numbers.has(deviceNumber(stats.rdev))
      : layers.files.some((file) => sameFile(file, stats));
    if (hit)
      throw new CowbirdError(
        'EBUSY',
        `${origin} holds ${path}, which Cowbird itself needs: move that to another disk first`,
      );
  }
}
