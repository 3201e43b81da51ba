/**
 * Which disk a device belongs to, what identifies it, and whether its writes can be seen at all.
 *
 * Requests name sectors of the whole disk, so a disk has one map, and a partition is a view of a part of it. All from sysfs, which
 * can be read while any file system is frozen.
 */
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { release } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { deviceNumber } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import { BLOCK_BYTES } from './bitmap.js';

const SECTOR_BYTES = 512;
const SECTORS_PER_BLOCK = BLOCK_BYTES / SECTOR_BYTES;

/** How the kernel drives a disk: with requests, or handing bios on. */
export type DiskKind = 'request' | 'bio';

export interface DeviceView {
  /** `/dev/loop3`, by the kernel's own name. */
  node: string;
  /** Folder of the disk in sysfs. */
  disk: string;
  diskName: string;
  major: number;
  minor: number;
  kind: DiskKind;
  /** Names the disk in pins and folders: number and sequence number. */
  key: string;
  /** What the disk is, in a token. */
  diskIdentity: string;
  diskBytes: number;
  /** What this view is, in a token. */
  identity: string;
  startSector: number;
  sizeBytes: number;
}

/**
 * The disk and the part of it that a device node stands for, as they are now.
 *
 * @throws {CowbirdError} ENOENT, ENOTBLK, ENODEV.
 */
export function viewOf(device: string): DeviceView {
  const stats = statSync(device, { throwIfNoEntry: false });
  if (stats === undefined)
    throw new CowbirdError('ENOENT', `${device} does not exist; the tracking of a disk that is gone has ended with it`);
  if (!stats.isBlockDevice())
    throw new CowbirdError('ENOTBLK', `${device} is no block device: only disks and partitions can be tracked`);
  const view = viewOfNumber(deviceNumber(stats.rdev));
  if (view === undefined) throw new CowbirdError('ENODEV', `${device}: there is no such disk any more`);
  return view;
}

/** The same by `major:minor`; undefined when there is no such device. */
export function viewOfNumber(number: string): DeviceView | undefined {
  const link = `/sys/dev/block/${number}`;
  if (read(link, 'dev') === undefined) return undefined;
  const folder = realpathSync(link);
  const isPartition = read(folder, 'partition') !== undefined;
  const disk = isPartition ? dirname(folder) : folder;
  const diskNumber = read(disk, 'dev') ?? '';
  const [major = 0, minor = 0] = diskNumber.split(':').map(Number);
  const sequence = read(disk, 'diskseq') ?? '0';
  const startSector = isPartition ? Number(read(folder, 'start')) : 0;
  // The same backing file from another place on is another disk; the sequence number stays.
  const offset = read(disk, 'loop/offset');
  const place = offset === undefined || offset === '0' ? '' : ` at ${offset}`;
  const diskIdentity = `${basename(disk)} ${diskNumber} #${sequence}${place}`;
  return {
    node: join('/dev', /^DEVNAME=(.*)$/m.exec(read(folder, 'uevent') ?? '')?.[1] ?? basename(folder)),
    disk,
    diskName: basename(disk),
    major,
    minor,
    kind: hasQueue(disk) ? 'request' : 'bio',
    key: `${major}_${minor}_${sequence}`,
    diskIdentity,
    diskBytes: Number(read(disk, 'size')) * SECTOR_BYTES,
    identity: isPartition ? `${diskIdentity} from sector ${startSector}` : diskIdentity,
    startSector,
    sizeBytes: Number(read(folder, 'size')) * SECTOR_BYTES,
  };
}

/** First block of the disk that a view touches, and how many: one more than the view has where it begins within a block. */
export function diskBlocks(view: Pick<DeviceView, 'startSector' | 'sizeBytes'>): { first: number; count: number } {
  const first = Math.floor(view.startSector / SECTORS_PER_BLOCK);
  const end = Math.ceil((view.startSector + view.sizeBytes / SECTOR_BYTES) / SECTORS_PER_BLOCK);
  return { first, count: end - first };
}

/** Whether blocks of the view begin within blocks of the disk. */
export function isUnaligned(view: Pick<DeviceView, 'startSector'>): boolean {
  return view.startSector % SECTORS_PER_BLOCK !== 0;
}

/**
 * Bio-based drivers that end the very bio they were given: its end can be told. Others pass it on to another disk under another
 * name (md, NVMe multipath, bcache).
 */
const BIO_DRIVERS = [/^zram\d/, /^dm-\d/, /^ram\d/];
/** These were written page by page past bios until then. */
const PAGE_WISE = [/^zram\d/, /^ram\d/];
const NO_PAGE_WISE_KERNEL = [6, 3] as const;

/** Why the writes to this disk cannot all be seen, with what to do; undefined when they can. */
export function whyUntrackable(view: DeviceView, kernel = release()): string | undefined {
  const { disk, diskName } = view;
  if (view.sizeBytes === 0) return `${view.node} has no medium`;
  if (read(disk, 'diskseq') === undefined)
    return `${diskName} has no sequence number, by which a change of medium is noticed: needs Linux 5.15 or later`;
  if (read(disk, 'queue/dax') === '1')
    return `${diskName} can be mapped into memory (DAX), where writes go past the block layer: back it up with --engine scan`;
  const zoned = read(disk, 'queue/zoned') ?? 'none';
  if (zoned !== 'none')
    return `${diskName} is zoned (${zoned}): zones are reset by requests that name no range; back it up with --engine scan`;
  if (view.kind === 'request' && read(disk, 'queue/iostats') === '0')
    return `${diskName} keeps no statistics, by which it is checked that no write was missed: echo 1 > /sys/block/${diskName}/queue/iostats`;
  if (view.kind === 'request') return undefined;
  if (!BIO_DRIVERS.some((pattern) => pattern.test(diskName)))
    return `${diskName} passes requests on to other disks under other names: back it up with --engine scan`;
  if (isBefore(kernel, NO_PAGE_WISE_KERNEL) && PAGE_WISE.some((pattern) => pattern.test(diskName)))
    return `${diskName} is written past the block layer in part before Linux 6.3, and this is ${kernel}`;
  return undefined;
}

/**
 * Drivers that give a disk another sequence number whenever it becomes another one, or another medium. With any other driver nothing is
 * known of a disk from one version to the next: nbd keeps the number when another export is connected through netlink, rbd and ZFS
 * volumes can be rolled back underneath.
 */
const CONTINUED = /^(sd[a-z]|hd[a-z]|vd[a-z]|xvd[a-z]|nvme\d|mmcblk\d|dasd[a-z]|pmem\d|zram\d|loop\d)/;
/** Before that a loop device kept its number when it got another file (disk_force_media_change() in block/disk-events.c). */
const LOOP_NUMBER_KERNEL = [6, 5] as const;
/** Disks that can have other contents without a write to them, while nobody has them open, and stay the same disk. */
const REPLACEABLE: ReadonlyArray<[RegExp, string]> = [
  [/^dm-\d/, 'what device mapper shows can be replaced underneath (lvconvert --merge, dmsetup load)'],
  [/^ram\d/, 'a RAM disk can be emptied (blockdev --flushbufs)'],
];

/** Why nothing is known of a disk from one version to the next, though its writes are seen; undefined where it is. */
export function whyNotContinued({ diskName }: Pick<DeviceView, 'diskName'>, kernel = release()): string | undefined {
  const [, why] = REPLACEABLE.find(([pattern]) => pattern.test(diskName)) ?? [];
  if (why !== undefined) return `${why} without a write that is seen`;
  if (!CONTINUED.test(diskName))
    return `${diskName} can get other contents from elsewhere without becoming another disk`;
  if (diskName.startsWith('loop') && isBefore(kernel, LOOP_NUMBER_KERNEL))
    return `a loop device does not become another disk with another file before Linux 6.5, and this is ${kernel}`;
  return undefined;
}

function isBefore(kernel: string, [wantedMajor, wantedMinor]: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = kernel.split('.').map(Number);
  return major < wantedMajor || (major === wantedMajor && minor < wantedMinor);
}

/** How many writes are under way on a disk, as far as its driver says; 0 where it says nothing. */
export function writesUnderWay({ disk }: Pick<DeviceView, 'disk'>): number {
  return Number((read(disk, 'inflight') ?? '').trim().split(/\s+/)[1] ?? 0);
}

function hasQueue(disk: string): boolean {
  return statSync(join(disk, 'mq'), { throwIfNoEntry: false }) !== undefined;
}

function read(folder: string, name: string): string | undefined {
  try {
    return readFileSync(join(folder, name), 'utf8').trim();
  } catch (error) {
    if (error instanceof Error && 'code' in error && ['ENOENT', 'ENXIO', 'ENODEV', 'ENOTDIR'].includes(`${error.code}`))
      return undefined;
    throw error;
  }
}
