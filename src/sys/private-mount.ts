/**
 * A mount that only this process sees, and that ends with it: in a mount namespace of its own, over a directory that there is
 * on every machine. So whoever is killed, and when, leaves no directory and no mount.
 */
import { realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { errnoOfError } from './errors.js';
import * as libc from './libc.js';
import { ownMounts } from './mounts.js';

const MS_REC_PRIVATE = 0x44000;

export interface PrivateMount {
  /** The block device. */
  node: string;
  fsType: string;
  /** MS_… of mount(2). */
  flags: number;
  /** The file system's own. */
  options: string;
}

/**
 * Mounts a device for the length of an action, which is given the mount point. The process keeps its namespace: it is to end soon.
 *
 * @throws {SystemError} of unshare(2), mount(2) or umount(2); what the action throws.
 */
export function withPrivateMount({ node, fsType, flags, options }: PrivateMount, use: (at: string) => void): void {
  const at = realpathSync(tmpdir());
  libc.unshareMounts();
  libc.mount('none', '/', '', MS_REC_PRIVATE, '');
  leaveOthers(at);
  libc.mount(node, at, fsType, flags, options);
  try {
    use(at);
  } finally {
    libc.umount(at);
  }
}

/** ENOENT, EINVAL: another mount lies over it. */
const HIDDEN = [2, 22];

/** A file system that somebody unmounts meanwhile must not stay mounted because of this namespace. */
function leaveOthers(mountPoint: string): void {
  for (const other of ownMounts().reverse()) {
    const isNeeded = other.mountPoint === '/' || `${mountPoint}/`.startsWith(`${other.mountPoint}/`);
    if (!other.source.startsWith('/dev/') || isNeeded) continue;
    try {
      libc.umount(other.mountPoint, libc.MNT_DETACH);
    } catch (error) {
      if (!HIDDEN.includes(errnoOfError(error))) throw error;
    }
  }
}
