/**
 * The nine steps through the library: a first image of a mounted volume, then an update with only what changed.
 *
 *     node dist/examples/backup.js DEVICE MOUNTPOINT IMAGE
 *
 * DEVICE is an attached volume (`cowbird attach …` prints it), MOUNTPOINT where it is mounted.
 */
import { createReadStream, createWriteStream, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import {
  destroy,
  getFreeMinor,
  setupSnapshot,
  transitionToIncremental,
  transitionToSnapshot,
  updateImageFromSnapshot,
} from 'cowbird';

export async function backUpTwice(
  device: string,
  mountPoint: string,
  image: string,
  work: () => Promise<void>,
): Promise<number> {
  const minor = await getFreeMinor();
  const first = join(mountPoint, '.cow1');
  const second = join(mountPoint, '.cow2');
  // 1, 2: an instant snapshot, copied while the volume goes on being written.
  const snapshot = await setupSnapshot(device, first, minor);
  try {
    await pipeline(createReadStream(snapshot, { highWaterMark: 1 << 20 }), createWriteStream(image));
    // 3, 4: only marks from here on, until the next backup is due.
    await transitionToIncremental(minor);
    await work();
    // 5, 6: the next snapshot; the file of the sequence before lists what changed.
    await transitionToSnapshot(minor, second);
    const { changedBlocks, errors } = await updateImageFromSnapshot({ snapshot, cowFile: first, image });
    if (errors > 0) throw new Error(`${errors} blocks could not be copied: run the update again`);
    // 7, 8: ready for the next round.
    rmSync(first);
    await transitionToIncremental(minor);
    return changedBlocks;
  } finally {
    // 9: here the series ends; a real backup would leave it and go on from step 4.
    await destroy(minor);
  }
}

const [device, mountPoint, image] = process.argv.slice(2);
if (device !== undefined && mountPoint !== undefined && image !== undefined) {
  const changed = await backUpTwice(
    device,
    mountPoint,
    image,
    () => new Promise((resolve) => setTimeout(resolve, 2_000)),
  );
  console.log(`${changed} blocks changed and were copied`);
}
