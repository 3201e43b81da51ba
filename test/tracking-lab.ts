/** What the tests of the tracker share: devices of their own, direct writes, and a tracker's place that is taken down. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import koffi from 'koffi';
import { KernelMap } from '../src/live/kernel-map.js';
import { pinFolder, removePins, trackingFolder } from '../src/live/places.js';
import { examineTracking } from '../src/live/support.js';
import { mapPinnedArray, openPinned } from '../src/sys/bpf.js';
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

/** Pins of the one disk that is tracked in a run directory. */
export function pinsOf(runDir: string): string {
  const [name, ...others] = readdirSync(pinFolder(runDir));
  if (name === undefined || others.length > 0) throw new Error(`not one disk: ${[name, ...others].join(', ')}`);
  return join(pinFolder(runDir), name);
}

/** Blocks that the kernel has notes of. Where no write is under way: those whose end it did not show to the tracker. */
export function notedBlocks(runDir: string): number[] {
  const map = KernelMap.open(pinsOf(runDir));
  if (!(map instanceof KernelMap)) throw new Error(map.reason);
  const notes = map.notes();
  map.close();
  const perBlock = BLOCK / 512;
  return notes.flatMap(({ first, count }) =>
    Array.from(
      { length: Math.ceil((first + count) / perBlock) - Math.floor(first / perBlock) },
      (_, i) => Math.floor(first / perBlock) + i,
    ),
  );
}

/** `struct cpu`: 20 words, two for each processor, of which the first counts what completes. */
const CPU_WORDS = 20;
const SECTORS_WORD = 2;
const RECOVERED_WORD = 3;

/** Sectors whose end was missed, and that were known by their notes. */
export function recoveredSectors(runDir: string): number {
  return withCpus(runDir, (words) => {
    let sum = 0;
    for (let at = RECOVERED_WORD; at < words.length; at += 2 * CPU_WORDS) sum += Number(words[at]);
    return sum;
  });
}

/** What was missed, in words. */
export function recovered(runDir: string): string {
  return `${recoveredSectors(runDir)} sectors recovered, ${notedBlocks(runDir).length} blocks noted`;
}

/** As if the tracker had not been run when this many sectors completed: fewer than it saw. Below 0: as if it had. */
export function forgetSectors(runDir: string, count: number): void {
  withCpus(runDir, (words) => {
    let rest = BigInt(count);
    for (let at = SECTORS_WORD; at < words.length; at += 2 * CPU_WORDS) {
      const seen = words[at] ?? 0n;
      const part = rest < seen ? rest : seen;
      Atomics.sub(words, at, part);
      rest -= part;
    }
    if (rest !== 0n) throw new Error(`${rest} sectors more than were seen`);
  });
}

function withCpus<T>(runDir: string, action: (words: BigUint64Array<ArrayBufferLike>) => T): T {
  const cpus = mapPinnedArray(join(pinsOf(runDir), 'map_cpus'));
  if (cpus === undefined) throw new Error('the map of processors is not pinned');
  const count = Math.floor(cpus.bytes.byteLength / (16 * CPU_WORDS)) * 2 * CPU_WORDS;
  try {
    return action(new BigUint64Array(cpus.bytes, 0, count));
  } finally {
    libc.unmap(cpus);
  }
}

/** `struct note`, in words: address, first sector, bytes, start. */
const NOTE_WORDS = 4;

/** Leaves a note in the kernel, as of a request at this address that it was not shown the end of. */
export function plantNote(runDir: string, address: bigint, note: { first: number; count: number }): void {
  const notes = mapPinnedArray(join(pinsOf(runDir), 'map_requests'));
  if (notes === undefined) throw new Error('the map of requests is not pinned');
  try {
    const words = new BigUint64Array(notes.bytes);
    const placeOf = (wanted: bigint): number => words.findIndex((word, i) => i % NOTE_WORDS === 0 && word === wanted);
    const known = placeOf(address);
    const at = known < 0 ? placeOf(0n) : known;
    if (at < 0) throw new Error('there is no place for a note');
    const perBlock = BLOCK / 512;
    words.set([address, BigInt(note.first * perBlock), BigInt(note.count * BLOCK), 1n], at);
  } finally {
    libc.unmap(notes);
  }
}

/** The same of a bio, on a disk without requests. */
export function plantBio(runDir: string, address: bigint, { first, count }: { first: number; count: number }): void {
  const library = koffi.load('libbpf.so.1');
  const update = library.func('bpf_map_update_elem', 'int', [
    'int',
    koffi.pointer('uint8_t'),
    koffi.pointer('uint8_t'),
    'uint64_t',
  ]);
  const fd = openPinned(join(pinsOf(runDir), 'map_bios'));
  if (fd === undefined) throw new Error('the map of bios is not pinned');
  try {
    const range = new BigUint64Array([BigInt((first * BLOCK) / 512), BigInt(count * BLOCK)]);
    const key = new BigUint64Array([address]);
    const failed: number = update(fd, new Uint8Array(key.buffer), new Uint8Array(range.buffer), 0);
    if (failed !== 0) throw new Error(`bpf_map_update_elem: ${failed}`);
  } finally {
    libc.close(fd);
  }
}

/** Addresses of the requests that the kernel has notes of now. */
export function notedAddresses(runDir: string): bigint[] {
  const map = KernelMap.open(pinsOf(runDir));
  if (!(map instanceof KernelMap)) throw new Error(map.reason);
  const notes = map.notes();
  map.close();
  return notes.map(({ key }) => BigInt(key.split(' ')[0] ?? ''));
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
