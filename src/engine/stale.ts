/**
 * What a daemon that was killed left behind: FUSE files without a server and loop devices on them. Only names under the run
 * directory's own FUSE folder are touched, so other instances are safe. A loop device whose file system is still mounted
 * stays; the message says what to do.
 */
import { lstatSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { backingFileOf, boundLoops, releaseLoop } from '../sys/blkdev.js';
import { messageOf } from '../sys/errors.js';
import { MNT_DETACH, umount } from '../sys/libc.js';
import { ownMounts } from '../sys/mounts.js';

/** Clears away what it can; returns what it did, in words. */
export function cleanUpStale(fuseDir: string): string[] {
  const messages: string[] = [];
  const attempt = (what: string, action: () => void): void => {
    try {
      action();
      messages.push(`Cleared ${what}, left by a daemon that was killed`);
    } catch (error) {
      messages.push(`Could not clear ${what}: ${messageOf(error)}`);
    }
  };
  for (const { node, backingFile } of boundLoops()) {
    if (!backingFile.startsWith(`${fuseDir}/`)) continue;
    const mounted = ownMounts().filter((entry) => entry.source === node);
    if (mounted.length > 0) {
      messages.push(
        `${node} of a dead daemon is mounted on ${mounted.map((entry) => entry.mountPoint).join(', ')}: umount it, it only gives errors`,
      );
      continue;
    }
    attempt(`loop device ${node}`, () => releaseLoop(node, backingFile));
  }
  for (const { mountPoint } of ownMounts().filter((entry) => entry.mountPoint.startsWith(`${fuseDir}/`))) {
    attempt(`FUSE file ${mountPoint}`, () => umount(mountPoint, MNT_DETACH));
  }
  removeDeadLinks(messages);
  return messages;
}

/** Links of ours under /dev whose loop device is bound to nothing of ours any more. */
export function removeDeadLinks(messages: string[]): void {
  const candidates = [
    ...listOptional('/dev')
      .filter((name) => /^(cowbird|datto|elastio-snap)\d+$/.test(name))
      .map((name) => `/dev/${name}`),
    ...listOptional('/dev/cowbird').map((name) => join('/dev/cowbird', name)),
  ];
  for (const link of candidates) {
    if (!isDeadLink(link)) continue;
    rmSync(link, { force: true });
    messages.push(`Removed the dead link ${link}`);
  }
}

/** Where a link leads. udev makes relative ones, also in the place of ours, where a rule gives a volume its name. */
export function targetOf(link: string): string {
  return resolve(dirname(link), readlinkSync(link));
}

/** Where a daemon, whichever, mounts its FUSE files. */
const FUSE_FILE = /\/fuse\/(volume|snapshot)-[^/]+$/;

/**
 * A symbolic link to a loop device that has no backing file: nothing that anybody could use; or one of which no daemon is behind, for the
 * number is somebody else's by now. One that its owner removes in the meantime is none.
 */
export function isDeadLink(link: string): boolean {
  if (lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return false;
  try {
    const target = targetOf(link);
    return /^\/dev\/loop\d+$/.test(target) && !FUSE_FILE.test(backingFileOf(target) ?? '');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return false;
    throw error;
  }
}

/** Names in a directory; none where there is no such directory. */
export function listOptional(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw error;
  }
}
