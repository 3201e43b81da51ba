/** What the tests of the tracker share: devices of their own, direct writes, and a tracker's place that is taken down. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { removePins } from '../src/live/kernel-map.js';
import { pinFolder, trackingFolder } from '../src/live/places.js';
import { examineTracking } from '../src/live/support.js';
import * as libc from '../src/sys/libc.js';
import { CANNOT, type Lab, run, succeeds } from './lab.js';

const lacking = CANNOT === false ? examineTracking().find(({ status }) => status !== 'ok') : undefined;
/** Why the tracker cannot be tested here; false where it can. */
export const CANNOT_TRACK: string | false = CANNOT !== false ? CANNOT : (lacking?.detail ?? false);

export const BLOCK = 4096;

/** The run directory of a lab, taken down whatever the test leaves there. */
export function trackerPlace(lab: Lab): string {
  const runDir = lab.path('run');
  mkdirSync(runDir, { recursive: true });
  lab.onEnd(async () => {
    const pins = pinFolder(runDir);
    if (existsSync(pins)) {
      for (const name of readdirSync(pins)) removePins(join(pins, name));
      rmdirSync(pins);
    }
    // A test that failed may still have files open there: then it goes when they do.
    await succeeds('umount', '-q', '--lazy', trackingFolder(runDir));
  });
  return runDir;
}

/** A loop device over a sparse file of its own. */
export async function loopDevice(
  lab: Lab,
  sizeBytes: number,
  name = 'disk.img',
  ...options: string[]
): Promise<string> {
  const node = (await run('losetup', '-f', '--show', '--direct-io=on', ...options, lab.image(name, sizeBytes))).trim();
  lab.onEnd(() => succeeds('losetup', '-d', node));
  return node;
}

/** A zram disk of its own; undefined where there are none. */
export async function zramDevice(lab: Lab, sizeBytes: number): Promise<string | undefined> {
  const control = '/sys/class/zram-control';
  if (!existsSync(control)) return undefined;
  const number = execFileSync('cat', [join(control, 'hot_add')], { encoding: 'utf8' }).trim();
  lab.onEnd(async () => {
    writeFileSync(`/sys/block/zram${number}/reset`, '1');
    writeFileSync(join(control, 'hot_remove'), number);
  });
  writeFileSync(`/sys/block/zram${number}/disksize`, String(sizeBytes));
  return `/dev/zram${number}`;
}

const O_WRONLY = 1;

/** Writes past the page cache: what is asked for reaches the device as it is, in one request. */
export class DirectWriter {
  readonly #fd: number;
  readonly #memory = libc.mapPages(1_048_576);

  constructor(lab: Lab, node: string) {
    this.#fd = libc.open(node, O_WRONLY + libc.O_DIRECT);
    lab.onEnd(async () => libc.close(this.#fd));
    new Uint8Array(this.#memory.bytes).fill(0x5a);
  }

  /** Returns whether the device took it. */
  write(offset: number, lengthBytes: number): boolean {
    return libc.fast.pwrite(this.#fd, this.#memory.address, lengthBytes, offset) === lengthBytes;
  }

  blocks(first: number, count: number): void {
    if (!this.write(first * BLOCK, count * BLOCK)) throw new Error(`write of ${count} blocks at ${first} failed`);
  }
}
