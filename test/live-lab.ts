/** Disks in use for the tests of live backups. */
import { statSync } from 'node:fs';
import { stopTracking } from '../src/live/tracking.js';
import { type Lab, MIB, run, until } from './lab.js';
import { trackerPlace } from './tracking-lab.js';

export const PARTITION_OFFSET = MIB;

export interface LiveDisk {
  lab: Lab;
  type: string;
  /** The disk, and what is mounted of it. */
  disk: string;
  node: string;
  image: string;
  /** Of the node in the image. */
  offset: number;
  sizeBytes: number;
  at: string;
  journal: string;
  repository: string;
}

/** A loop device, or a partition of one, with a file system that is mounted. Nothing of Cowbird has it. */
export async function mountedDisk(lab: Lab, type: string, isPartitioned: boolean, name = 'disk'): Promise<LiveDisk> {
  const sizeBytes = 120 * MIB;
  const offset = isPartitioned ? PARTITION_OFFSET : 0;
  const image = lab.image(`${name}.img`, sizeBytes + offset);
  const flags = isPartitioned ? ['-P'] : [];
  const disk = (await run('losetup', '-f', '--show', '--direct-io=on', ...flags, image)).trim();
  lab.onEnd(() => run('losetup', '-d', disk));
  let node = disk;
  if (isPartitioned) {
    await run('sh', '-c', 'echo 2048,,L | sfdisk -q --no-reread "$0"', disk);
    node = `${disk}p1`;
    const isThere = (): boolean => statSync(node, { throwIfNoEntry: false })?.isBlockDevice() === true;
    // Kernels without a parser for the table are told what the partition is.
    if (!isThere()) await run('addpart', disk, '1', String(offset / 512), String(sizeBytes / 512));
    await until(`${node} is there`, isThere);
  }
  const runDir = trackerPlace(lab);
  lab.onEnd(async () => {
    for (const tracked of new Set([node, disk])) stopTracking(tracked, runDir);
  });
  await lab.mkfs(node, type);
  const at = await lab.mount(node, `mnt-${name}`);
  const [journal, repository] = [lab.path(`journal-${name}`), lab.path(`repo-${name}`)];
  return { lab, type, disk, node, image, offset, sizeBytes, at, journal, repository };
}
