/** Block devices and loop devices: sizes, claims, and the loop driver's ioctls (linux/fs.h, linux/loop.h). */
import { fstatSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { errnoOfError, SystemError } from './errors.js';
import * as libc from './libc.js';

const BLKSSZGET = 0x1268;
const BLKGETSIZE64 = 0x80081272;
const BLKROGET = 0x125e;

/** Size of a block device in bytes. */
export function blockDeviceSizeBytes(fd: number): number {
  const out = Buffer.alloc(8);
  libc.ioctl(fd, BLKGETSIZE64, out, 'BLKGETSIZE64');
  return Number(out.readBigUInt64LE());
}

/** Logical sector size of a block device in bytes. */
export function logicalSectorBytes(fd: number): number {
  const out = Buffer.alloc(4);
  libc.ioctl(fd, BLKSSZGET, out, 'BLKSSZGET');
  return out.readUInt32LE();
}

/** Whether the kernel lets nobody write to the device. */
export function isReadOnlyDevice(fd: number): boolean {
  const out = Buffer.alloc(4);
  libc.ioctl(fd, BLKROGET, out, 'BLKROGET');
  return out.readUInt32LE() !== 0;
}

/** A device number as `major:minor`, the way sysfs and mountinfo write it. */
export function deviceNumber(dev: number): string {
  return `${majorOf(dev)}:${minorOf(dev)}`;
}

// Linux's 32-bit user-space encoding (sysmacros.h); a dev_t here is below 2^32.
function majorOf(dev: number): number {
  return Math.floor(dev / 256) % 4096;
}

function minorOf(dev: number): number {
  return (dev % 256) + Math.floor(dev / 1_048_576) * 256;
}

const LOOP_CONFIGURE = 0x4c0a;
const LOOP_CLR_FD = 0x4c01;
const LOOP_SET_STATUS64 = 0x4c04;
const LOOP_GET_STATUS64 = 0x4c05;
const LOOP_CTL_GET_FREE = 0x4c82;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_PARTSCAN = 8;
const LO_FLAGS_DIRECT_IO = 16;
const EBUSY = 16;
const EIO = 5;
const SECTOR_BYTES = 512;

export interface LoopOptions {
  readOnly: boolean;
  partitionScan: boolean;
  logicalSectorBytes: number;
}

/**
 * Binds the lowest free loop device to an open file, with direct I/O. Returns its node, `/dev/loop3`.
 *
 * Kernels before 6.17 take the size from the inode in memory, and FUSE has none there before somebody asks for it: on such a
 * kernel (Debian 12 has 6.1) a device bound without this look has no sectors at all.
 *
 * struct loop_config: u32 fd, u32 block_size, struct loop_info64 (232 bytes), u64 reserved[8]. loop_info64 has lo_flags at
 * byte 52 and lo_file_name at byte 56.
 */
export function bindLoop(backingFd: number, backingName: string, options: LoopOptions): string {
  const config = Buffer.alloc(304);
  config.writeUInt32LE(backingFd, 0);
  config.writeUInt32LE(options.logicalSectorBytes, 4);
  const flags =
    LO_FLAGS_DIRECT_IO + (options.readOnly ? LO_FLAGS_READ_ONLY : 0) + (options.partitionScan ? LO_FLAGS_PARTSCAN : 0);
  config.writeUInt32LE(flags, 8 + 52);
  config.write(backingName.slice(-63), 8 + 56, 63, 'utf8');
  const sizeBytes = fstatSync(backingFd).size;
  const control = libc.open('/dev/loop-control', libc.O_RDWR);
  try {
    // Another process may take the number between the two calls: then the next free one is asked for.
    for (let attempt = 0; attempt < 64; attempt++) {
      const number = libc.ioctlNumber(control, LOOP_CTL_GET_FREE, 0, 'LOOP_CTL_GET_FREE');
      const node = `/dev/loop${number}`;
      const fd = libc.open(node, libc.O_RDWR);
      try {
        libc.ioctl(fd, LOOP_CONFIGURE, config, `LOOP_CONFIGURE ${node}`);
        requireSize(fd, node, sizeBytes);
        return node;
      } catch (error) {
        if (errnoOfError(error) !== EBUSY) throw error;
      } finally {
        libc.close(fd);
      }
    }
    throw new SystemError('LOOP_CONFIGURE', EBUSY, 'no free loop device after 64 tries');
  } finally {
    libc.close(control);
  }
}

/** Lets a loop device end when its last opener closes it: for one that is mounted. */
export function setAutoClear(node: string): void {
  const fd = libc.open(node, libc.O_RDONLY);
  try {
    writeAutoClear(fd, node, true);
  } finally {
    libc.close(fd);
  }
}

/**
 * Takes back what {@link releaseLoop} did to a device with openers, if it is still bound to this file: it no longer ends with the last
 * of them. While it is open here it cannot.
 */
export function keepLoop(node: string, backingFile: string): void {
  const fd = libc.open(node, libc.O_RDONLY);
  try {
    if (isBoundLoop(node, backingFile)) writeAutoClear(fd, node, false);
  } finally {
    libc.close(fd);
  }
}

function writeAutoClear(fd: number, node: string, wanted: boolean): void {
  const info = Buffer.alloc(232);
  libc.ioctl(fd, LOOP_GET_STATUS64, info, `LOOP_GET_STATUS64 ${node}`);
  const flags = info.readUInt32LE(52);
  const isSet = Math.floor(flags / LO_FLAGS_AUTOCLEAR) % 2 === 1;
  if (isSet === wanted) return;
  info.writeUInt32LE(flags + (wanted ? LO_FLAGS_AUTOCLEAR : -LO_FLAGS_AUTOCLEAR), 52);
  libc.ioctl(fd, LOOP_SET_STATUS64, info, `LOOP_SET_STATUS64 ${node}`);
}

/** Whether a loop device ends with its last opener. */
export function isAutoClear(node: string): boolean {
  return readOptional(`/sys/block/${node.slice('/dev/'.length)}/loop/autoclear`)?.trim() === '1';
}

/** A device of another size would end writes early, or lose the end of the volume: it is given back. */
function requireSize(fd: number, node: string, sizeBytes: number): void {
  const deviceBytes = blockDeviceSizeBytes(fd);
  if (deviceBytes === sizeBytes - (sizeBytes % SECTOR_BYTES)) return;
  libc.ioctlNumber(fd, LOOP_CLR_FD, 0, `LOOP_CLR_FD ${node}`);
  throw new SystemError('LOOP_CONFIGURE', EIO, `${node} has ${deviceBytes} bytes, its file ${sizeBytes}`);
}

/**
 * Ends a loop device, if it is bound to this file: its number may be somebody else's by now. With openers left the kernel ends
 * it when the last one closes.
 */
export function releaseLoop(node: string, backingFile: string): void {
  const fd = libc.open(node, libc.O_RDONLY);
  try {
    if (isBoundLoop(node, backingFile)) libc.ioctlNumber(fd, LOOP_CLR_FD, 0, `LOOP_CLR_FD ${node}`);
  } finally {
    libc.close(fd);
  }
}

/** Largest request the block layer may send, so that one request of the user is one request of FUSE. */
export function setMaxRequestKib(node: string, kib: number): void {
  writeFileSync(`/sys/block/${node.slice('/dev/'.length)}/queue/max_sectors_kb`, String(kib));
}

/** Every bound loop device with its backing file, from sysfs: opens nothing. */
export function boundLoops(): Array<{ node: string; backingFile: string }> {
  const found: Array<{ node: string; backingFile: string }> = [];
  for (const name of readdirSync('/sys/block')) {
    if (!name.startsWith('loop')) continue;
    const node = `/dev/${name}`;
    const backingFile = backingFileOf(node);
    if (backingFile !== undefined) found.push({ node, backingFile });
  }
  return found;
}

/** Whether the loop device has this backing file, now. */
export function isBoundLoop(node: string, backingFile: string): boolean {
  return backingFileOf(node) === backingFile;
}

/** The backing file of a loop device; undefined where it has none. */
export function backingFileOf(node: string): string | undefined {
  return readOptional(`/sys/block/${node.slice('/dev/'.length)}/loop/backing_file`)?.replace(/\n$/, '');
}

function readOptional(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENXIO'))
      return undefined;
    throw error;
  }
}

/**
 * The device numbers that make up a disk: itself, its partitions, and what is stacked on them (holders), from sysfs.
 * A file system on any of these is a file system on the disk.
 */
export function deviceNumbersOn(node: string): Array<{ number: string; name: string; startBytes: number | null }> {
  const rdev = statSync(node).rdev;
  const found: Array<{ number: string; name: string; startBytes: number | null }> = [];
  const visit = (name: string, startBytes: number | null): void => {
    const base = `/sys/class/block/${name}`;
    const number = readOptional(`${base}/dev`)?.trim();
    if (number === undefined || found.some((entry) => entry.number === number)) return;
    found.push({ number, name, startBytes });
    for (const entry of readdirSync(base)) {
      if (!entry.startsWith(name)) continue;
      const start = readOptional(`${base}/${entry}/start`);
      if (start !== undefined) visit(entry, startBytes === null ? null : startBytes + Number(start) * 512);
    }
    for (const holder of listOptional(`${base}/holders`)) visit(holder, null);
  };
  const name = sysfsName(rdev);
  if (name !== undefined) visit(name, 0);
  return found;
}

/** The kernel's name of a block device number, such as `loop3` or `sda1`. */
export function sysfsName(rdev: number): string | undefined {
  const uevent = readOptional(`/sys/dev/block/${deviceNumber(rdev)}/uevent`);
  return uevent === undefined ? undefined : /^DEVNAME=(.*)$/m.exec(uevent)?.[1];
}

function listOptional(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw error;
  }
}
