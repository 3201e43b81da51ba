/**
 * The pins of a disk's map in bpffs, and `struct state`, in which it says what it is: written by whoever makes it, read by whoever finds
 * it. `bpf/tracker.bpf.c` has the same numbers.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { mapPinnedArray, openPinned } from '../sys/bpf.js';
import { assert } from '../sys/errors.js';
import { close, type Mapping, unmap } from '../sys/libc.js';
import type { DeviceView, DiskKind } from './device-view.js';

const MAGIC = 0x4257_4f43;
/** Of `struct state`, `struct cpu`, what the maps mean, and which of them are pinned. A later Cowbird that changes them has another number. */
const LAYOUT = 5;
export const KINDS = ['request', 'bio'] as const satisfies DiskKind[];

/** Offsets in `struct state`. */
export const STATE = {
  magic: 0,
  layout: 4,
  ready: 8,
  kind: 12,
  major: 16,
  minor: 20,
  words: 24,
  cpus: 28,
  blockCount: 32,
  diskBytes: 40,
  device: 48,
  mapId: 112,
  since: 144,
  counters: 176,
} as const;
export const DEVICE_BYTES = 64;
export const TEXT_BYTES = 32;

export const PROGRAMS = { request: ['request'], bio: ['complete', 'queue'] } as const satisfies Record<
  DiskKind,
  string[]
>;
const STEPS = [1, 2, 3] as const;
const programsOf = (triple: string): string[] => STEPS.map((step) => `${triple}_${step}`);
/** Programs that may be missed: what they do not note, the triples see. */
const SINGLES = { request: ['issue'], bio: [] } as const satisfies Record<DiskKind, string[]>;
/** Where they note what is under way. The first can be mapped; the second is a hash, by the bio's address. */
export const NOTES = { request: 'requests', bio: 'bios' } as const satisfies Record<DiskKind, string>;
/** All programs of a disk, those that see first: what was noted before they did would never end. */
export const allProgramsOf = (kind: DiskKind): string[] => [...PROGRAMS[kind].flatMap(programsOf), ...SINGLES[kind]];

export const MAPS = ['.bss', 'dirty', 'summary', 'cpus'] as const;
/** bpffs takes no names with dots. */
export const pinName = (map: string): string => (map === '.bss' ? 'map_state' : `map_${map}`);

export interface Opened {
  state: Mapping;
  dirty: Mapping;
  summary: Mapping;
  cpus: Mapping;
  mappings: Mapping[];
  programFds: number[];
  linkFds: number[];
  /** Of a disk with requests. */
  notes: Mapping | undefined;
  /** Of a disk without: a hash map. */
  biosFd: number | undefined;
}

const GONE = 'the map of changed blocks is not in the kernel any more';

export function openPins(folder: string): Opened | { reason: string } {
  const mappings: Mapping[] = [];
  const fds: number[] = [];
  const giveUp = (reason: string): { reason: string } => {
    for (const fd of fds) close(fd);
    for (const mapping of mappings) unmap(mapping);
    return { reason };
  };
  const map = (name: string): Mapping | undefined => {
    const mapping = mapPinnedArray(join(folder, pinName(name)));
    if (mapping !== undefined) mappings.push(mapping);
    return mapping;
  };
  const open = (name: string): boolean => {
    const fd = openPinned(join(folder, name));
    if (fd !== undefined) fds.push(fd);
    return fd !== undefined;
  };
  const [state, dirty, summary, cpus] = MAPS.map(map);
  if (state === undefined || dirty === undefined || summary === undefined || cpus === undefined) return giveUp(GONE);
  const view = new DataView(state.bytes);
  if (view.getUint32(STATE.magic, true) !== MAGIC || view.getUint32(STATE.layout, true) !== LAYOUT)
    return giveUp('the map in the kernel was made by a version of Cowbird that this one does not know');
  if (view.getUint32(STATE.ready, true) !== 1) return giveUp('tracking was not started completely');
  const kind = KINDS[view.getUint32(STATE.kind, true)] ?? 'bio';
  const triples = PROGRAMS[kind];
  // A descriptor of its link keeps a program attached, whoever removes the pin.
  const isWhole =
    triples.every((triple) => open(`program_${triple}`)) && allProgramsOf(kind).every((name) => open(`link_${name}`));
  if (!isWhole) return giveUp(GONE);
  const notes = kind === 'request' ? map(NOTES.request) : undefined;
  const isNoted = kind === 'request' ? notes !== undefined : open(pinName(NOTES.bio));
  if (!isNoted) return giveUp(GONE);
  const programFds = fds.slice(0, triples.length);
  const biosFd = kind === 'bio' ? fds.pop() : undefined;
  return { state, dirty, summary, cpus, mappings, programFds, linkFds: fds.slice(triples.length), notes, biosFd };
}

/** Writes what the map is, so that it can be read by whoever finds the pins. */
export function describe(
  folder: string,
  disk: DeviceView,
  sizes: { words: number; cpus: number; blockCount: number },
): void {
  const state = mapPinnedArray(join(folder, pinName('.bss')));
  assert(state !== undefined, 'a map that was just pinned is there');
  try {
    const view = new DataView(state.bytes);
    const put = (at: number, value: number): void => view.setUint32(at, value, true);
    put(STATE.magic, MAGIC);
    put(STATE.layout, LAYOUT);
    put(STATE.kind, KINDS.indexOf(disk.kind));
    put(STATE.major, disk.major);
    put(STATE.minor, disk.minor);
    put(STATE.words, sizes.words);
    put(STATE.cpus, sizes.cpus);
    view.setBigUint64(STATE.blockCount, BigInt(sizes.blockCount), true);
    view.setBigUint64(STATE.diskBytes, BigInt(disk.diskBytes), true);
    const bytes = Buffer.from(state.bytes);
    bytes.write(disk.diskIdentity, STATE.device, DEVICE_BYTES, 'utf8');
    bytes.write(randomBytes(TEXT_BYTES / 2).toString('hex'), STATE.mapId, TEXT_BYTES, 'utf8');
    bytes.write(new Date().toISOString(), STATE.since, TEXT_BYTES, 'utf8');
  } finally {
    unmap(state);
  }
}

export function setReady(folder: string): void {
  const state = mapPinnedArray(join(folder, pinName('.bss')));
  assert(state !== undefined, 'a map that was just pinned is there');
  new DataView(state.bytes).setUint32(STATE.ready, 1, true);
  unmap(state);
}
