/** Where a COW file may lie: on its own volume, or on what this daemon does not serve. From a helper only: these calls may wait. */
import { existsSync, lstatSync, realpathSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { belowPath } from '../sys/below.js';
import { deviceNumber, deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import { type MountEntry, mountOf, ownMounts } from '../sys/mounts.js';
import type { CreatedStore, HelperCalls, StoreFile } from './helper-calls.js';

const ON_VOLUME = new Set(['ext2', 'ext3', 'ext4', 'xfs']);

export type StorePlace = Pick<CreatedStore, 'kind' | 'mountPoint' | 'root' | 'startBytes'>;

/** Whether the file will lie on the volume, and refuses the places that would wait for themselves. */
export function placeOf(params: HelperCalls['createStore']['params']): StorePlace {
  const directory = realpathSync(dirname(params.path));
  const mount = mountOf(directory, ownMounts());
  const dev = deviceNumber(statSync(directory).dev);
  const own = deviceNumbersOn(params.node).find(({ number, name }) => isOn(mount, dev, number, name));
  if (own !== undefined) {
    if (!ON_VOLUME.has(mount.fsType)) {
      throw new CowbirdError(
        'EINVAL',
        `A COW file on the volume itself needs ext2, ext3, ext4 or xfs, and ${mount.mountPoint} is ${mount.fsType}: put it on another file system`,
      );
    }
    if (own.startBytes === null) {
      throw new CowbirdError(
        'EINVAL',
        `${mount.mountPoint} lies on ${own.name}, which is stacked on the volume: put the COW file elsewhere`,
      );
    }
    if (mount.readOnlySuper || mount.readOnlyMount) {
      throw new CowbirdError('EINVAL', `${mount.mountPoint} is mounted read-only: remount it read-write`);
    }
    return { kind: 'origin', mountPoint: mount.mountPoint, root: mount.root, startBytes: own.startBytes };
  }
  if (params.onVolumeOnly) {
    throw new CowbirdError(
      'EINVAL',
      `${params.path} is not on the volume ${params.node}; \`cowbird setup-snapshot\` allows that, dbdctl does not`,
    );
  }
  refuseServed(params.path, directory, params.volumeNodes);
  return { kind: 'device', mountPoint: '', root: '', startBytes: 0 };
}

function isOn(mount: MountEntry, dev: string, number: string, name: string): boolean {
  return number === dev || number === mount.device || mount.source === `/dev/${name}`;
}

/** The workers would wait for requests that only they take. */
function refuseServed(path: string, directory: string, volumeNodes: readonly string[]): void {
  const { numbers } = belowPath(directory, { withFiles: false });
  for (const node of volumeNodes) {
    if (numbers.has(deviceNumber(statSync(node).rdev))) {
      throw new CowbirdError(
        'EINVAL',
        `${path} lies on ${node}, a volume that Cowbird serves itself: put the COW file on a file system of a disk that is not attached`,
      );
    }
  }
}

/** A COW file elsewhere, as it is now. @throws {CowbirdError} ENOENT; EINVAL where it lies on what this daemon serves. */
export function findStore({ path, volumeNodes }: HelperCalls['findStore']['params']): StoreFile {
  if (!existsSync(path)) throw new CowbirdError('ENOENT', `${path}, the COW file of the series, does not exist`);
  refuseServed(path, realpathSync(dirname(path)), volumeNodes);
  const stats = lstatSync(path);
  if (!stats.isFile()) throw new CowbirdError('EINVAL', `${path} is no file: the COW file of the series was one`);
  const { dev, ino } = stats;
  return { path, dev, ino };
}
