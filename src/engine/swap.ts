/** Whether one engine can be swapped for the next without anybody noticing. */
import { release } from 'node:os';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { hasResend } from './doctor.js';
import { refuseUsers } from './lookup.js';
import type { VolumeRecord } from './records.js';

/** The devices that an engine serves. */
export function nodesOf(volumes: readonly VolumeRecord[]): string[] {
  return volumes.flatMap(({ device, snapshot }) =>
    snapshot?.device == null ? [device.node] : [device.node, snapshot.device.node],
  );
}

/**
 * Refuses to end an engine whose requests nobody would send again, as long as it may have some: the nodes are in use.
 *
 * @throws {CowbirdError} EBUSY, with who uses which node, before Linux 6.9.
 */
export async function requireSwappable(nodes: readonly string[], kernelRelease = release()): Promise<void> {
  if (hasResend(kernelRelease)) return;
  for (const node of nodes) {
    try {
      await refuseUsers(node);
    } catch (error) {
      throw new CowbirdError(
        'EBUSY',
        `${messageOf(error)}. Linux ${kernelRelease} does not send requests again that an engine had in hand (6.9 and later do), so that a volume in use may hang; nothing was changed`,
        { cause: error },
      );
    }
  }
}
