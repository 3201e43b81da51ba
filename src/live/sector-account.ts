/**
 * Whether every sector that the kernel's statistics of a disk count as written is one that the tracker knows of: seen to complete,
 * known by the note of a request whose end was missed, or still noted.
 *
 * A note is of a request that is under way, which the statistics do not count yet, or of one whose end was missed, which they do. Which
 * of the two is told only by a moment at which nothing is under way; then
 *
 *     seen + noted − counted
 *
 * is the same whenever it is asked for, unless a request was missed both when it began and when it ended (less), or completes
 * without being counted (more). At other moments notes explain nothing: `seen − counted` is no more than the above, so it
 * can raise a doubt without cause, and never hides one.
 */
import { pause } from './pause.js';

/** Where a request was to write, in sectors; it may have. */
export interface Note {
  /** Address of the request, and when it was allocated: the same for as long as it is under way. */
  key: string;
  first: number;
  count: number;
}

/** What is known at one moment; undefined when something completed meanwhile. */
export interface Reading {
  /** By the kernel's statistics: sectors written and discarded. */
  counted: number;
  /** Writes that the driver has. */
  underWay: number;
  /** Seen to complete, or recovered by notes that have been overwritten. */
  seen: number;
  notes: readonly Note[];
}

export type ReadSectors = () => Reading | undefined;

const ATTEMPTS = 20;
const READINGS_PER_ATTEMPT = 10;
/** A driver may be done with a write some time before it is counted: what rests on notes must be the same this much later. */
export const CONFIRM_MS = 2;
/** How long a start waits until it is known of every note whether it is of a request that is under way. */
const SETTLE_MS = 1000;
/** Nothing can reach it: a doubt from the beginning. */
const UNKNOWN = Number.MAX_SAFE_INTEGER;

const sectorsOf = (notes: Iterable<Note>): number => {
  let sum = 0;
  for (const { count } of notes) sum += count;
  return sum;
};

/** The surplus that a user's continuity is measured against. Too high is a doubt without cause; it is never too low. */
export function surplusAtStart(read: ReadSectors): number {
  const deadline = performance.now() + SETTLE_MS;
  let least = UNKNOWN;
  /** Notes that were there in every reading: of requests that are under way for long, or of such as were missed. */
  let lasting: Map<string, Note> | undefined;
  do {
    const reading = readSteady(read);
    if (reading !== undefined) {
      const exact = exactSurplus(read, reading);
      if (exact !== undefined) return exact;
      least = Math.min(least, reading.seen - reading.counted);
      const present = new Map(reading.notes.map((note) => [note.key, note]));
      const before: Map<string, Note> = lasting ?? present;
      lasting = new Map([...present].filter(([key]) => before.has(key)));
      if (lasting.size === 0) break;
    }
    pause(1);
  } while (performance.now() < deadline);
  return least === UNKNOWN ? UNKNOWN : least + sectorsOf(lasting?.values() ?? []);
}

/** Why a disk's sectors do not add up any more; undefined when they do. */
export function sectorDoubt(read: ReadSectors, before: number): string | undefined {
  let least = UNKNOWN;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (attempt > 0) pause(1);
    const reading = readSteady(read);
    if (reading === undefined) continue;
    const exact = exactSurplus(read, reading);
    least = exact ?? Math.min(least, reading.seen - reading.counted);
    // What was seen to complete is counted a moment later, or (zram) the other way round: a difference that is none stays.
    if (least === before) break;
  }
  if (least === before) return undefined;
  if (least === UNKNOWN) return 'the disk was too busy to find out whether the tracker saw everything';
  return least < before
    ? `the kernel finished writes of ${before - least} sectors without running the tracker for them`
    : 'the kernel does not count all sectors that are written (queue/iostats)';
}

function readSteady(read: ReadSectors): Reading | undefined {
  for (let i = 0; i < READINGS_PER_ATTEMPT; i++) {
    const reading = read();
    if (reading !== undefined) return reading;
  }
  return undefined;
}

/** Undefined while something is under way. */
function exactSurplus(read: ReadSectors, reading: Reading): number | undefined {
  if (reading.underWay > 0) return undefined;
  const noted = sectorsOf(reading.notes);
  const surplus = reading.seen + noted - reading.counted;
  if (noted === 0) return surplus;
  pause(CONFIRM_MS);
  const again = read();
  const isSame =
    again !== undefined &&
    again.underWay === 0 &&
    again.counted === reading.counted &&
    again.seen === reading.seen &&
    sectorsOf(again.notes) === noted;
  return isSame ? surplus : undefined;
}
