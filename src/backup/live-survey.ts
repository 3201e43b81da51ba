/**
 * What a disk in use is used for: the file systems on it that have to stand still, and what is not one.
 *
 * A freeze is one of a whole file system, whatever is mounted of it, and where. Of a disk with partitions all that are mounted
 * read-write are frozen.
 */
import { closeSync, fstatSync, readdirSync, statSync } from 'node:fs';
import { foreignPart, TELLS_PARTS } from '../block/foreign-part.js';
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { mountsOn } from '../engine/lookup.js';
import type { FreezePoint } from '../live/freezer.js';
import { pause } from '../live/pause.js';
import { clearRange, makeBits } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import { deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { freeRanges } from '../sys/fsmap.js';
import * as libc from '../sys/libc.js';
import { coveredError, isOnMount, type MountEntry, pathOfMount } from '../sys/mounts.js';
import { headOfNode } from './node-signature.js';

/** File systems that have FIFREEZE and, frozen, have everything on their disk. */
const FREEZABLE = new Set(['ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'f2fs', 'jfs', 'nilfs2']);
/** Mount options that put a part of the file system elsewhere, or its writes past the block layer. */
const FOREIGN_PARTS: ReadonlyArray<readonly [RegExp, string]> = [
  [/^(logdev|rtdev|journal_dev|journal_path)=/, 'has a part on another device'],
  [/^dax(=always)?$/, 'is written past the block layer (DAX)'],
];

/** Mounted so, a journal is not replayed: what the disk says of free blocks is older than what it holds. */
const WITHOUT_JOURNAL = new Set(['noload', 'norecovery']);
/** How long after the first one the second list of free blocks is asked for. */
const LISTS_APART_MS = 100;

/** A mounted file system on the disk. */
interface Mounted extends FreezePoint {
  entry: MountEntry;
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

/**
 * `readsDisk`: look into the file systems' superblocks, too.
 *
 * @throws {CowbirdError} ENOTSUP for a file system that cannot be frozen, or is not on this disk alone.
 */
export function surveyDisk(node: string, readsDisk = true): Survey {
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
      if (readsDisk && part !== undefined && !entry.readOnlySuper) requireWhole(node, entry, part.startBytes ?? 0);
      const { fd, mountPoint } = openMounted(group);
      mounted.push({ fd, mountPoint, entry, startBytes: part?.startBytes ?? 0, isReadOnly: entry.readOnlySuper });
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
  // All stands still, and nothing is to be waited for.
  const now = surveyDisk(node, false);
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
  const { fsType, superOptions, readOnlySuper, source } = entry;
  const refuse = (why: string): CowbirdError => refusal(node, entry, why);
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

function refusal(node: string, { source, mountPoint }: MountEntry, why: string): CowbirdError {
  return new CowbirdError(
    'ENOTSUP',
    `${node} cannot be backed up while it is in use: ${source}, mounted on ${mountPoint}, ${why}`,
  );
}

/** Reads the superblock through the node that was named: another one may not be there. */
function requireWhole(node: string, entry: MountEntry, startBytes: number): void {
  if (!TELLS_PARTS.has(entry.fsType)) return;
  const why = foreignPart(entry.fsType, headOfNode(node, startBytes));
  if (why !== undefined) throw refusal(node, entry, `${why}: unmount it`);
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
    if (isOnMount(fd, entry)) return { fd, mountPoint: entry.mountPoint };
    closeSync(fd);
  }
  throw coveredError(entries.map(({ mountPoint }) => mountPoint));
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
  for (const part of mounted) {
    try {
      const free = freeBlocks(part);
      // XFS with a reverse map gives a block from one owner to the other in several steps, and calls it free in between. What is free
      // at both times, and was not written meanwhile, is free.
      const still = part.entry.fsType === 'xfs' ? intersected(free, later(part)) : free;
      for (const { start, end } of still) clearRange(bits, start, end);
    } catch (error) {
      problems.push(
        `unused blocks of ${part.mountPoint} were copied too: which these are is not known (${messageOf(error)})`,
      );
    }
  }
  return { bits, problems };
}

interface Blocks {
  start: number;
  /** Excluded. */
  end: number;
}

/** Whole blocks of the disk, ascending. @throws why they are not known. */
function freeBlocks({ fd, startBytes, entry }: Mounted): Blocks[] {
  const option = entry.superOptions.find((given) => WITHOUT_JOURNAL.has(given));
  if (option !== undefined) throw new CowbirdError('EINVAL', `mounted with ${option}, it may be in the journal`);
  const found: Blocks[] = [];
  for (const { offset, lengthBytes } of freeRanges(fd, fstatSync(fd).dev)) {
    const start = Math.ceil((startBytes + offset) / BLOCK_SIZE_BYTES);
    const end = Math.floor((startBytes + offset + lengthBytes) / BLOCK_SIZE_BYTES);
    if (end > start) found.push({ start, end });
  }
  return found;
}

function later(part: Mounted): Blocks[] {
  pause(LISTS_APART_MS);
  return freeBlocks(part);
}

/** What is in both; both ascend. */
export function intersected(left: readonly Blocks[], right: readonly Blocks[]): Blocks[] {
  const found: Blocks[] = [];
  for (let i = 0, k = 0; ; ) {
    const [a, b] = [left[i], right[k]];
    if (a === undefined || b === undefined) return found;
    const [start, end] = [Math.max(a.start, b.start), Math.min(a.end, b.end)];
    if (end > start) found.push({ start, end });
    if (a.end < b.end) i++;
    else k++;
  }
}
