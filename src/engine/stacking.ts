/**
 * What stands on what, from sysfs and mountinfo alone: no call here asks a file system.
 *
 * Volumes of one operation may not stand on each other: with the lower one frozen, or its gate closed, the upper one's
 * writes would never end, and so neither its freeze.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { deviceNumber } from '../sys/blkdev.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import { type MountEntry, mountOf, ownMounts } from '../sys/mounts.js';
import type { StoreFile } from './helper-calls.js';
import type { Volume } from './volume.js';

/** A volume, and the COW file that its workers will write when all is frozen; undefined on the volume itself. */
export interface Standing {
  volume: Volume;
  store: StoreFile | undefined;
}

/** @throws {CowbirdError} EINVAL when the origin or the store of one lies on another one of them. */
export function refuseStacked(members: readonly Standing[]): void {
  const mounts = ownMounts();
  for (const { volume, store } of members) {
    const { record } = volume;
    const origin = record.opened.isFile
      ? mountOf(record.origin, mounts).device
      : deviceNumber(statSync(record.origin).rdev);
    const below = new Set<string>();
    addBelow(origin, mounts, below);
    if (store !== undefined) addBelow(mountOf(store.path, mounts).device, mounts, below);
    for (const { volume: other } of members) {
      if (other === volume || !below.has(deviceNumber(statSync(other.record.device.node).rdev))) continue;
      throw new CowbirdError(
        'EINVAL',
        `${record.name} has its origin or its COW file on ${other.record.name}, whose writes are held meanwhile: take these two one after the other`,
      );
    }
  }
}

/** Adds a device and all that it stands on: slaves, the disk of a partition, the disk below a loop device's file. */
function addBelow(number: string, mounts: readonly MountEntry[], found: Set<string>): void {
  if (found.has(number)) return;
  found.add(number);
  // Without an entry it is no block device: tmpfs, a network file system.
  const folder = optional(() => realpathSync(`/sys/dev/block/${number}`));
  if (folder === undefined) return;
  for (const slave of optional(() => readdirSync(`${folder}/slaves`)) ?? [])
    addBelow(readFileSync(`/sys/class/block/${slave}/dev`, 'utf8').trim(), mounts, found);
  const disk =
    optional(() => readFileSync(`${folder}/partition`)) === undefined ? undefined : basename(dirname(folder));
  if (disk !== undefined) addBelow(readFileSync(`/sys/class/block/${disk}/dev`, 'utf8').trim(), mounts, found);
  const backing = optional(() => readFileSync(`${folder}/loop/backing_file`, 'utf8'))?.replace(/\n$/, '');
  if (backing?.startsWith('/') === true) addBelow(mountOf(backing, mounts).device, mounts, found);
}

function optional<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if ([2, 20].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}
