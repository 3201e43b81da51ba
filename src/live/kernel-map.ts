/**
 * The map of one disk inside the kernel: made, pinned, found again, read, and asked whether it is sound. `bpf/tracker.bpf.c` is
 * the other side.
 *
 * Order of effects when it is made: maps pinned, described in `state` with `ready` = 0, programs attached and their links pinned,
 * `ready` = 1. Whoever finds it not ready while holding the disk's lock has found the remains of a killed process, and removes them:
 * links first, which detaches the programs.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BpfObject, entriesOfHash, recursionMisses } from '../sys/bpf.js';
import { assert } from '../sys/errors.js';
import { close, type Mapping, unmap } from '../sys/libc.js';
import { BLOCK_BYTES } from './bitmap.js';
import type { DeviceView, DiskKind } from './device-view.js';
import {
  allProgramsOf,
  DEVICE_BYTES,
  describe,
  KINDS,
  MAPS,
  NOTES,
  type Opened,
  openPins,
  PROGRAMS,
  pinName,
  STATE,
  setReady,
  TEXT_BYTES,
} from './kernel-map-pins.js';
import { noteCount, possibleCpus } from './kernel-map-sizes.js';
import { pause } from './pause.js';
import { CONFIRM_MS, type Note, type Reading, sectorDoubt, surplusAtStart } from './sector-account.js';

/** From `dist/src/live`, and in the npm package as in the repository. */
export const OBJECT_PATH = fileURLToPath(new URL('../../../bpf/tracker.bpf.o', import.meta.url));

/** Blocks, and bytes, of a page of the map: the unit in which it is read. */
export const PAGE_BLOCKS = 32_768;
export const PAGE_BYTES = PAGE_BLOCKS / 8;
const PAGE_WORDS = PAGE_BYTES / 4;

/** In the order of `struct state`: what each counter says once it has grown. */
const COUNTERS = [
  'a command was passed through to the disk (SG_IO, nvme), and what it changed is not known',
  'a write beyond the end of the disk as it was when tracking started',
  'an operation that this version of Cowbird does not know (zones?)',
  'a write that was under way when tracking started ended only now',
  'more writes were under way at once than can be noted',
  'a processor that was not there when tracking started',
] as const;

/** `struct cpu`, in 64-bit words: depth, covered, sectors, recovered, 16 events. */
const CPU_WORDS = 20;
const COVERED_WORD = 1;
const SECTORS_WORD = 2;
const RECOVERED_WORD = 3;
/** In the `stat` file of a disk in sysfs: sectors written, and discarded; writes, discards and flushes that are over. */
const SECTOR_FIELDS = [6, 13] as const;
/** Disks without requests count as they like; these count sectors written, each when its bio ends. */
const COUNTING_BIO_DISK = /^zram\d/;
const ENDED_FIELDS = [4, 11, 15] as const;
/** `struct note`, in 64-bit words: address, first sector, bytes, start. */
const NOTE_WORDS = 4;
const NOTE = { address: 0, first: 1, bytes: 2, start: 3 } as const;
/** Of the hash of bios. */
const BIOS_MAX = 16_384;
const COMPLETE = 0;
const QUEUE = 1;

/** In `summary`, where the programs only ever write 1. */
const BEING_READ = 2;

const SECTOR_BYTES = 512;
const MISS_ATTEMPTS = 20;

/** What the counters said when a user began to rely on the map. */
export type Baseline = readonly number[];

export class KernelMap {
  readonly mapId: string;
  /** ISO 8601. */
  readonly since: string;
  readonly device: string;
  readonly diskBytes: number;
  readonly kind: DiskKind;
  readonly pageCount: number;
  readonly #mappings: readonly Mapping[];
  readonly #programFds: readonly number[];
  readonly #linkFds: readonly number[];
  readonly #words: Uint32Array;
  readonly #summary: Uint32Array;
  readonly #counters: BigUint64Array;
  readonly #cpus: BigUint64Array;
  readonly #diskFolder: string;
  /** Its statistics count what the tracker counts. */
  readonly #counts: boolean;
  /** None on disks without requests: these have a hash of bios. */
  readonly #notes: BigUint64Array;
  readonly #biosFd: number | undefined;
  readonly #noteHalves: Uint32Array;

  private constructor(opened: Opened) {
    const { state, mappings } = opened;
    const text = (at: number, lengthBytes: number): string =>
      Buffer.from(state.bytes, at, lengthBytes).toString('utf8').replace(/\0+$/, '');
    const view = new DataView(state.bytes);
    this.mapId = text(STATE.mapId, TEXT_BYTES);
    this.since = text(STATE.since, TEXT_BYTES);
    this.device = text(STATE.device, DEVICE_BYTES);
    this.diskBytes = Number(view.getBigUint64(STATE.diskBytes, true));
    this.kind = KINDS[view.getUint32(STATE.kind, true)] ?? 'bio';
    const words = view.getUint32(STATE.words, true);
    this.pageCount = Math.ceil((words * 2) / PAGE_WORDS);
    this.#words = new Uint32Array(opened.dirty.bytes, 0, words * 2);
    this.#summary = new Uint32Array(opened.summary.bytes);
    this.#counters = new BigUint64Array(state.bytes, STATE.counters, COUNTERS.length);
    this.#cpus = new BigUint64Array(opened.cpus.bytes, 0, view.getUint32(STATE.cpus, true) * 2 * CPU_WORDS);
    const [diskName = ''] = this.device.split(' ');
    this.#diskFolder = join('/sys/block', diskName);
    this.#counts = this.kind === 'request' || COUNTING_BIO_DISK.test(diskName);
    this.#mappings = mappings;
    this.#programFds = opened.programFds;
    this.#linkFds = opened.linkFds;
    this.#notes = new BigUint64Array(opened.notes?.bytes ?? new ArrayBuffer(0));
    this.#noteHalves = new Uint32Array(this.#notes.buffer);
    this.#biosFd = opened.biosFd;
  }

  /** Loads the programs for a disk and starts them. `folder` is in bpffs, and not there yet. */
  static create(folder: string, disk: DeviceView, objectPath = OBJECT_PATH): KernelMap {
    const blockCount = Math.ceil(disk.diskBytes / BLOCK_BYTES);
    const words = Math.ceil(blockCount / 64);
    const cpus = possibleCpus();
    const notes = noteCount(disk);
    const constants = new DataView(new ArrayBuffer(28));
    const strict = disk.diskName.startsWith('nvme') ? 1 : 0;
    for (const [i, value] of [disk.major, disk.minor, words, strict].entries()) constants.setUint32(i * 4, value, true);
    constants.setBigUint64(16, BigInt(blockCount), true);
    constants.setUint32(24, notes - 1, true);
    const triples: readonly string[] = PROGRAMS[disk.kind];
    const object = new BpfObject(objectPath, {
      constants: new Uint8Array(constants.buffer),
      entries: [
        ['dirty', words],
        ['summary', Math.ceil((words * 2) / PAGE_WORDS)],
        ['cpus', cpus * 2],
        ['requests', notes],
      ],
      leftOut: {
        programs: KINDS.filter((kind) => kind !== disk.kind).flatMap(allProgramsOf),
        maps: KINDS.filter((kind) => kind !== disk.kind).map((kind) => NOTES[kind]),
      },
    });
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      for (const name of MAPS) object.pinMap(name, join(folder, pinName(name)));
      object.pinMap(NOTES[disk.kind], join(folder, pinName(NOTES[disk.kind])));
      for (const triple of triples) object.pinProgram(`${triple}_1`, join(folder, `program_${triple}`));
      describe(folder, disk, { words, cpus, blockCount });
      for (const name of allProgramsOf(disk.kind)) object.attach(name, join(folder, `link_${name}`));
      setReady(folder);
    } finally {
      object.close();
    }
    const made = KernelMap.open(folder);
    assert(made instanceof KernelMap, () => `a map that was just made can be opened: ${JSON.stringify(made)}`);
    return made;
  }

  /** The map that is pinned in a folder; in words, why there is none that can be used. */
  static open(folder: string): KernelMap | { reason: string } {
    const opened = openPins(folder);
    return 'reason' in opened ? opened : new KernelMap(opened);
  }

  /** Copies what is set in a page that may have bits, without clearing it. False when there are none. */
  readPage(page: number, into: Uint32Array): boolean {
    const at = page * PAGE_WORDS;
    const end = Math.min(at + PAGE_WORDS, this.#words.length);
    let any = 0;
    into.fill(0);
    for (let i = at; i < end; i++) {
      const word = this.#words[i] ?? 0;
      if (word === 0) continue;
      into[i - at] = word;
      any |= word;
    }
    return any !== 0;
  }

  /**
   * Whether a page may have bits. To be followed by {@link readPage}, {@link clearPage} and {@link endPage}; for a process that
   * is killed before the last, the page still may.
   */
  beginPage(page: number): boolean {
    if (Atomics.load(this.#summary, page * 2) === 0) return false;
    // An exchange, because no later read may come before it.
    Atomics.exchange(this.#summary, page * 2, BEING_READ);
    return true;
  }

  /** Nothing is left of the page, unless something was set since {@link beginPage}. */
  endPage(page: number): void {
    Atomics.compareExchange(this.#summary, page * 2, BEING_READ, 0);
  }

  /** Clears exactly these bits of a page: what is set meanwhile stays. */
  clearPage(page: number, seen: Uint32Array): void {
    const at = page * PAGE_WORDS;
    for (const [i, word] of seen.entries()) if (word !== 0) Atomics.and(this.#words, at + i, ~word);
  }

  /**
   * Where requests or bios write that are under way, or whose end was missed: may change, or may have. To be asked before the pages
   * are read: a note is marked before it goes.
   */
  notes(): Note[] {
    // What is missed of a disk that counts is a doubt, and needs no notes.
    if (this.#biosFd === undefined || this.#counts) return this.#requestNotes();
    const bios = entriesOfHash(this.#biosFd, { keyWords: 1, valueWords: 2, entriesMax: BIOS_MAX });
    return [...bios].map(([key, [first = 0n, bytes = 0n]]) => ({
      key: `${key} ${first} ${bytes}`,
      first: Number(first),
      count: Number(bytes) / SECTOR_BYTES,
    }));
  }

  #requestNotes(): Note[] {
    const notes: Note[] = [];
    const all = this.#notes;
    for (let at = 0; at < all.length; at += NOTE_WORDS) {
      // Empty ones are told by half of the number: that is many times as fast, and no request has 4 GiB.
      if (this.#noteHalves[2 * (at + NOTE.bytes)] === 0) continue;
      const count = Number(all[at + NOTE.bytes]) / SECTOR_BYTES;
      const first = Number(all[at + NOTE.first]);
      // It may have been emptied in between.
      if (count > 0) notes.push({ key: `${all[at + NOTE.address]} ${all[at + NOTE.start]}`, first, count });
    }
    return notes;
  }

  /** The keys of notes whose requests are over: nothing is under way, and it was the same a moment before. */
  overNotes(): ReadonlySet<string> {
    let keys = this.#keysWhenIdle();
    if (keys.length === 0) return new Set();
    pause(CONFIRM_MS);
    const before = new Set(keys);
    keys = this.#keysWhenIdle();
    return new Set(keys.filter((key) => before.has(key)));
  }

  /** The keys of all notes; none while something is under way. */
  #keysWhenIdle(): string[] {
    const keys = this.notes().map(({ key }) => key);
    return keys.length === 0 || (this.#numbersOf('inflight')[1] ?? 0) > 0 ? [] : keys;
  }

  baseline(): Baseline {
    const unseen = this.#programFds.map((_, i) => this.#unseen(i, 0));
    const surplus = this.#counts ? surplusAtStart(() => this.#readSectors()) : 0;
    return [...this.#counters].map(Number).concat(unseen, surplus);
  }

  /** What happened since a baseline after which the map cannot be trusted. */
  doubtSince(baseline: Baseline): string | undefined {
    for (const [i, text] of COUNTERS.entries()) if (Number(this.#counters[i]) !== baseline[i]) return text;
    for (const i of this.#programFds.keys()) {
      const before = baseline[COUNTERS.length + i] ?? 0;
      const unseen = this.#unseen(i, before);
      if (unseen !== before)
        return `the kernel did not run the tracker for ${unseen - before} requests (recursion_misses)`;
    }
    return this.#counts ? sectorDoubt(() => this.#readSectors(), baseline.at(-1) ?? 0) : undefined;
  }

  close(): void {
    for (const fd of [...this.#programFds, ...this.#linkFds, this.#biosFd]) if (fd !== undefined) close(fd);
    for (const mapping of this.#mappings) unmap(mapping);
  }

  /**
   * The events that no program of a triple saw: those that the first one missed, without those that another one did for it. An event
   * is missed before it is covered, so what is read while events go on is too much, never too little: it is read again until
   * it is no more than what was `expected`.
   */
  #unseen(triple: number, expected: number): number {
    const fd = this.#programFds[triple];
    assert(fd !== undefined, `triple ${triple} is one of this disk's`);
    let least = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < MISS_ATTEMPTS && least > expected; attempt++) {
      if (attempt > 0) pause(1);
      const missed = recursionMisses(fd);
      const unseen = missed - this.#sum(triple === 0 ? COMPLETE : QUEUE, COVERED_WORD);
      if (missed === recursionMisses(fd)) least = Math.min(least, unseen);
    }
    return least;
  }

  /** Undefined when something completed meanwhile. */
  #readSectors(): Reading | undefined {
    const before = this.#numbersOf('stat');
    const seen = this.#seen();
    const notes = this.#requestNotes();
    const underWay = this.#numbersOf('inflight')[1] ?? 0;
    const seenAfter = this.#seen();
    const after = this.#numbersOf('stat');
    const isSteady = [...SECTOR_FIELDS, ...ENDED_FIELDS].every((field) => before[field] === after[field]);
    if (!isSteady || seen !== seenAfter) return undefined;
    const counted = SECTOR_FIELDS.reduce((sum, field) => sum + (before[field] ?? 0), 0);
    return { counted, underWay, seen, notes };
  }

  #seen(): number {
    return this.#sum(COMPLETE, SECTORS_WORD) + this.#sum(COMPLETE, RECOVERED_WORD);
  }

  #numbersOf(name: 'stat' | 'inflight'): number[] {
    return readFileSync(join(this.#diskFolder, name), 'utf8').trim().split(/\s+/).map(Number);
  }

  #sum(kind: number, word: number): number {
    let sum = 0;
    for (let at = kind * CPU_WORDS + word; at < this.#cpus.length; at += 2 * CPU_WORDS) sum += Number(this.#cpus[at]);
    return sum;
  }
}
