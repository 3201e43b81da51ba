/**
 * What a disk in use is used for: the file systems on it that have to stand still, and what is not one.
 *
 * A freeze is one of a whole file system, whatever is mounted of it, and where. Of a disk with partitions all that are mounted
 * read-write are frozen.
 */
import { closeSync, fstatSync, readdirSync, statSync } from 'node:fs';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { mountsOn } from '../engine/lookup.js';
import type { FreezePoint } from '../live/freezer.js';
import { clearRange, makeBits } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import { deviceNumber, deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { freeRanges } from '../sys/fsmap.js';
import * as libc from '../sys/libc.js';
import { type MountEntry, pathOfMount } from '../sys/mounts.js';

/** File systems that have FIFREEZE and, frozen, have everything on their disk. */
const FREEZABLE = new Set(['ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'f2fs', 'jfs', 'nilfs2']);
/** Mount options that put a part of the file system elsewhere, or its writes past the block layer. */
const FOREIGN_PARTS: ReadonlyArray<readonly [RegExp, string]> = [
  [/^(logdev|rtdev|journal_dev|journal_path)=/, 'has a part on another device'],
  [/^dax(=always)?$/, 'is written past the block layer (DAX)'],
];

/** A mounted file system on the disk. */
interface Mounted extends FreezePoint {
  /** Where it begins on the disk. */
  startBytes: number;
  isReadOnly: boolean;
}

/** How a disk is used. Its descriptors stay open until {@link Survey.close}. */
export interface Survey {
  /** File systems that have to be frozen. */
  points: readonly FreezePoint[];
  /** Parts that somebody uses without a file system that is known: `/dev/sda2`. */
  claimed: readonly string[];
  /** Nobody uses it. */
  isFree: boolean;
  /** One bit a block: all but what the file systems call free. Why more than that is set, in words. */
  used(sizeBytes: number): { bits: Uint8Array; problems: string[] };
  /**
   * To be asked when all of these were frozen: nothing else of the disk may have been in use then.
   *
   * @throws {CowbirdError} EBUSY for a file system that was mounted, or made writable, in the meantime, or a part that is in use by now.
   */
  requireSame(): void;
  close(): void;
}

/** @throws {CowbirdError} ENOTSUP for a file system that cannot be frozen, or is not on this disk alone. */
export function surveyDisk(node: string): Survey {
  const parts = deviceNumbersOn(node);
  const entries = mountsOn(node);
  const mounted: Mounted[] = [];
  const close = (): void => {
    for (const { fd } of mounted) closeSync(fd);
  };
  try {
    for (const group of fileSystems(entries)) {
      const [entry] = group;
      if (entry === undefined) continue;
      const part = parts.find(({ number, name }) => number === entry.device || `/dev/${name}` === entry.source);
      requireFreezable(node, entry, part?.startBytes ?? null);
      const { fd, mountPoint } = openMounted(group);
      mounted.push({ fd, mountPoint, startBytes: part?.startBytes ?? 0, isReadOnly: entry.readOnlySuper });
    }
    const claimed = claimedParts(parts, entries);
    return {
      points: mounted.filter(({ isReadOnly }) => !isReadOnly),
      claimed,
      isFree: mounted.length === 0 && claimed.length === 0,
      used: (sizeBytes) => usedBlocks(mounted, sizeBytes),
      // One that nobody used is claimed until the end.
      requireSame: () => (mounted.length + claimed.length > 0 ? requireNoMore(node, mounted, claimed) : undefined),
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

function requireNoMore(node: string, mounted: readonly Mounted[], claimed: readonly string[]): void {
  const frozen = new Set(mounted.flatMap(({ fd, isReadOnly }) => (isReadOnly ? [] : [fstatSync(fd).dev])));
  const now = surveyDisk(node);
  try {
    const places = [
      ...now.points.filter(({ fd }) => !frozen.has(fstatSync(fd).dev)).map(({ mountPoint }) => mountPoint),
      ...now.claimed.filter((part) => !claimed.includes(part)),
    ];
    if (places.length === 0) return;
    throw new CowbirdError(
      'EBUSY',
      `${places.join(', ')} was mounted, made writable or taken into use on ${node} while the backup went on, and did not stand still: no version was made, run this again`,
      { outcome: 'failed' },
    );
  } finally {
    now.close();
  }
}

/** The mounts of each file system. */
function fileSystems(entries: readonly MountEntry[]): MountEntry[][] {
  const groups = new Map<string, MountEntry[]>();
  for (const entry of entries) groups.set(entry.device, [...(groups.get(entry.device) ?? []), entry]);
  return [...groups.values()];
}

function requireFreezable(node: string, entry: MountEntry, startBytes: number | null): void {
  const { mountPoint, source, fsType, superOptions, readOnlySuper } = entry;
  const refuse = (why: string): CowbirdError =>
    new CowbirdError(
      'ENOTSUP',
      `${node} cannot be backed up while it is in use: ${source}, mounted on ${mountPoint}, ${why}`,
    );
  if (startBytes === null)
    throw refuse(`is stacked on it (device mapper or RAID): back up ${source} instead, or unmount that`);
  if (readOnlySuper) return;
  if (!FREEZABLE.has(fsType))
    throw refuse(
      `is a ${fsType}, which cannot be frozen: unmount it, remount it read-only, or back up the other partitions one by one`,
    );
  for (const [option, why] of FOREIGN_PARTS)
    if (superOptions.some((given) => option.test(given))) throw refuse(`${why}: unmount it`);
  if (fsType === 'btrfs' && btrfsDevices(source) !== 1) throw refuse('is on more than one device: unmount it');
}

/** How many devices the btrfs has that this one is of; 0 where that is not told. */
function btrfsDevices(source: string): number {
  const name = source.slice('/dev/'.length);
  const root = '/sys/fs/btrfs';
  for (const uuid of readdirSync(root, { withFileTypes: true })) {
    if (!uuid.isDirectory() || uuid.name === 'features') continue;
    const devices = readdirSync(`${root}/${uuid.name}/devices`);
    if (devices.includes(name)) return devices.length;
  }
  return 0;
}

/** A descriptor in the file system, by the first of its mounts that nothing is mounted over. */
function openMounted(entries: readonly MountEntry[]): { fd: number; mountPoint: string } {
  for (const entry of entries) {
    const path = pathOfMount(entry);
    const fd = openPlace(path);
    if (fd === undefined) continue;
    // The root of a btrfs has a device number of its own, of no disk.
    if (deviceNumber(fstatSync(fd).dev) === entry.device || entry.fsType === 'btrfs')
      return { fd, mountPoint: entry.mountPoint };
    closeSync(fd);
  }
  throw new CowbirdError(
    'EBUSY',
    `The file system mounted on ${entries.map(({ mountPoint }) => mountPoint).join(', ')} cannot be reached there: something else is mounted over it`,
  );
}

function openPlace(path: string): number | undefined {
  try {
    return libc.open(path, libc.O_RDONLY + (statSync(path).isDirectory() ? libc.O_DIRECTORY : libc.O_NONBLOCK));
  } catch (error) {
    // A namespace whose process has ended, or a place that was removed.
    if (['ENOENT', 'ENOTDIR', 'EACCES', 'ENXIO'].includes(codeOf(errnoOfError(error)))) return undefined;
    throw error;
  }
}

/** Parts that are not mounted, and that somebody has all the same: swap, RAID, LVM, a database. */
function claimedParts(parts: ReturnType<typeof deviceNumbersOn>, entries: readonly MountEntry[]): string[] {
  const [disk, ...others] = parts;
  const partitions = others.filter(({ startBytes }) => startBytes !== null);
  return (partitions.length > 0 ? partitions : disk === undefined ? [] : [disk])
    .filter(({ number, name }) => !entries.some(({ device, source }) => device === number || source === `/dev/${name}`))
    .map(({ name }) => `/dev/${name}`)
    .filter(isClaimed);
}

function isClaimed(node: string): boolean {
  try {
    closeSync(libc.open(node, libc.O_RDONLY + libc.O_EXCL + libc.O_NONBLOCK));
    return false;
  } catch (error) {
    if (codeOf(errnoOfError(error)) === 'EBUSY') return true;
    throw error;
  }
}

function usedBlocks(mounted: readonly Mounted[], sizeBytes: number): { bits: Uint8Array; problems: string[] } {
  const bits = makeBits(regionCount(sizeBytes)).fill(0xff);
  const problems: string[] = [];
  for (const { fd, mountPoint, startBytes } of mounted) {
    try {
      for (const { offset, lengthBytes } of freeRanges(fd, fstatSync(fd).dev)) {
        const end = Math.floor((startBytes + offset + lengthBytes) / BLOCK_SIZE_BYTES);
        clearRange(bits, Math.ceil((startBytes + offset) / BLOCK_SIZE_BYTES), end);
      }
    } catch (error) {
      problems.push(
        `unused blocks of ${mountPoint} were copied too: which these are is not known (${messageOf(error)})`,
      );
    }
  }
  return { bits, problems };
}
