/**
 * An engine that serves a volume cannot serve what stands on it, too: its workers would wait for requests that only they take,
 * and not even SIGKILL ends a process whose I/O waits for itself. COW files are kept off such places where they are created.
 *
 * From sysfs and mountinfo alone: no call here asks a file system.
 */
import { statSync } from 'node:fs';
import { belowDisk, belowPath } from '../sys/below.js';
import { deviceNumber } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import type { Volume } from './volume.js';

/** @throws {CowbirdError} EINVAL when the origin stands on a volume, or on a snapshot, that is served here. */
export function refuseServed(origin: string, volumes: Iterable<Volume>): void {
  const stats = statSync(origin);
  const options = { withFiles: false };
  const { numbers } = stats.isFile() ? belowPath(origin, options) : belowDisk(deviceNumber(stats.rdev), options);
  refuseNumbers(origin, numbers, volumes);
}

/**
 * The same by the path alone, links not followed: before anything is asked of a file system that may be one on a volume. It would be this
 * process that waits for its own workers, and one that is killed while it waits is never gone.
 */
export function refuseServedPath(path: string, volumes: Iterable<Volume>): void {
  refuseNumbers(path, belowPath(path, { withFiles: false }).numbers, volumes);
}

function refuseNumbers(origin: string, numbers: ReadonlySet<string>, volumes: Iterable<Volume>): void {
  for (const { record } of volumes) {
    for (const node of [record.device.node, record.snapshot?.device?.node]) {
      if (node === undefined || !numbers.has(deviceNumber(statSync(node).rdev))) continue;
      throw new CowbirdError(
        'EINVAL',
        `${origin} lies on ${record.name} (${node}), which Cowbird serves itself and would wait for: attach it in a daemon of its own (COWBIRD_RUN_DIR, COWBIRD_STATE_DIR)`,
      );
    }
  }
}
