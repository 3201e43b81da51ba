/** Bits on their way: from the kernel's map of a disk to its users, and from the disk's blocks to those of a partition. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { BLOCK_BYTES, BlockBitmap, countBits } from './bitmap.js';
import { type DeviceView, diskBlocks, isUnaligned } from './device-view.js';
import { type KernelMap, PAGE_BLOCKS, PAGE_BYTES } from './kernel-map.js';
import { pinFolder, trackingFolder } from './places.js';
import type { Note } from './sector-account.js';
import { openPending, type PageRange, type PendingUser } from './user-set.js';

const BITS_PER_WORD = 32;
const SECTORS_PER_BLOCK = BLOCK_BYTES / 512;

/** Where a disk's files are. */
export class DiskPlaces {
  readonly folder: string;
  readonly lock: string;
  readonly pins: string;

  constructor(runDir: string, key: string) {
    this.folder = join(trackingFolder(runDir), key);
    this.lock = `${this.folder}.lock`;
    this.pins = join(pinFolder(runDir), key);
  }

  userFolder(user: string, number: string): string {
    return join(this.folder, createHash('sha256').update(`${number} ${user}`).digest('hex').slice(0, 16));
  }
}

export function pagesOf(view: Pick<DeviceView, 'startSector' | 'sizeBytes'>): PageRange {
  const { first, count } = diskBlocks(view);
  const firstPage = Math.floor(first / PAGE_BLOCKS);
  return { first: firstPage, count: Math.ceil((first + count) / PAGE_BLOCKS) - firstPage };
}

/** Moves what the kernel's map has to every user of it, but for notes that are named. Under the disk's lock. */
export function distribute(map: KernelMap, places: DiskPlaces, without: ReadonlySet<string> = new Set()): void {
  const users = openPending(places.folder, map.mapId, map.pageCount);
  try {
    const seen = new Uint32Array(PAGE_BYTES / 4);
    // Notes first: one that goes meanwhile has left its mark, which then is read.
    for (const note of map.notes()) if (!without.has(note.key)) addNote(note, users);
    for (let page = 0; page < map.pageCount; page++) {
      if (!map.beginPage(page)) continue;
      if (map.readPage(page, seen)) {
        addToUsers(users, page, seen);
        map.clearPage(page, seen);
      }
      map.endPage(page);
    }
  } finally {
    for (const { file } of users) file.close();
  }
}

/** A note stays in the kernel: it may be of a write whose end was missed, and then counts for every version. */
function addNote({ first, count }: Note, users: readonly PendingUser[]): void {
  const firstBlock = Math.floor(first / SECTORS_PER_BLOCK);
  const lastBlock = Math.ceil((first + count) / SECTORS_PER_BLOCK) - 1;
  for (let page = Math.floor(firstBlock / PAGE_BLOCKS); page * PAGE_BLOCKS <= lastBlock; page++) {
    const start = page * PAGE_BLOCKS;
    const bits = new BlockBitmap(PAGE_BLOCKS);
    const from = Math.max(firstBlock - start, 0);
    bits.setRange(from, Math.min(lastBlock - start, PAGE_BLOCKS - 1) - from + 1);
    addToUsers(users, page, bits.words);
  }
}

function addToUsers(users: readonly PendingUser[], page: number, bits: Uint32Array): void {
  for (const { first, count, file } of users) if (page >= first && page < first + count) file.add(page, bits);
}

/** Adds a page of the disk's bits to a view's; returns how many are new. Blocks of others are left out. */
export function addPage(
  into: BlockBitmap,
  view: Pick<DeviceView, 'startSector'>,
  page: number,
  bits: Uint32Array,
): number {
  const first = Math.floor((view.startSector * 512) / BLOCK_BYTES);
  const unaligned = isUnaligned(view);
  let added = 0;
  for (const [i, word] of bits.entries()) {
    if (word === 0) continue;
    const block = page * PAGE_BLOCKS + i * BITS_PER_WORD - first;
    if (!unaligned && block >= 0 && block % BITS_PER_WORD === 0 && block + BITS_PER_WORD <= into.blockCount) {
      const at = block / BITS_PER_WORD;
      const before = into.words[at] ?? 0;
      into.words[at] = before | word;
      added += countBits(word & ~before);
      continue;
    }
    for (let bit = 0; bit < BITS_PER_WORD; bit++) {
      if (((word >>> bit) & 1) === 0) continue;
      if (into.set(block + bit)) added++;
      // A block of the disk then is the end of one block of the view and the beginning of the next.
      if (unaligned && into.set(block + bit - 1)) added++;
    }
  }
  return added;
}
