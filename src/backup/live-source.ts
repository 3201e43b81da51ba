/**
 * The source of engine `live`: a disk that is read while it is in use, again and again, until what was read is one moment of it.
 *
 * What must hold, and why the version is the disk at the freeze:
 *
 *   L1  tracking goes on before the used blocks are asked for and the first block is read; a block that is used later is
 *       written later, and so is in the map
 *   L2  the map's bits are taken before what they stand for is read: what changes during or after the read is in the next take
 *   L3  the disk is read past the page cache only
 *   L4  the last take and the last reads are made while every file system on the disk stands still; the take after them, still
 *       before the thaw, is empty; and the thaw finds them frozen
 *
 * Passes go on while each is less than half of the one before, down to 2 MiB. What is left then, at most 64 MiB, is read into memory
 * right before the freeze, and what was written meanwhile once more, so that the freeze reads what its own flush wrote. A
 * rest that is larger and does not shrink any more is a failure.
 */
import { BLOCK_BYTES, BlockBitmap, countBits } from '../live/bitmap.js';
import { RestBuffer } from '../live/rest-buffer.js';
import type { Standstill } from '../live/standstill.js';
import type { LiveTracking } from '../live/tracking.js';
import { makeBits } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import type { Pass } from '../repository/source.js';
import { CowbirdError } from '../sys/errors.js';
import type { PageFile } from '../sys/page-file.js';

/** What may be left for the freeze. */
export const REST_BYTES_MAX = 64 * 1_048_576;
const REST_BLOCKS_MAX = REST_BYTES_MAX / BLOCK_BYTES;
/** Not worth another pass. */
const SMALL_BLOCKS = 512;
/** Right before the freeze: not worth another flush. */
const SMALL_AHEAD_BLOCKS = 128;
/** A pass that leaves more than this of the one before does not shrink. */
const SHRINKS = 0.9;
const STUCK_PASSES_MAX = 3;
const PASSES_MAX = 50;
const FREEZES_MAX = 3;

export interface LiveParts {
  path: string;
  file: PageFile;
  sizeBytes: number;
  tracking: LiveTracking;
  standstill: Standstill;
  /** Undefined: all are to be copied. */
  used: Uint8Array | undefined;
  /** Called after a freeze in which all was read. @throws where that was not one of the whole disk: L4. */
  requireFrozen: () => void;
  /** Called while everything stands still, after the rest was read. */
  onFrozen: (() => void) | undefined;
}

/** What came of a freeze; `others`: of several disks another one did not get what it wanted. */
type Attempt = 'whole' | 'too much' | 'written' | 'others';

/** The passes of one backup. */
export class LivePasses {
  readonly #parts: LiveParts;
  readonly #pending: BlockBitmap;
  /** Written since the last reading into memory. */
  readonly #since: BlockBitmap;
  readonly #late: BlockBitmap;
  readonly #rest = new RestBuffer(REST_BYTES_MAX);
  #leftBlocks = Number.POSITIVE_INFINITY;
  #stuck = 0;
  #freezes = 0;
  /** Everything that is pending is in memory, as it was when its bits were taken. */
  #isAhead = false;
  #isDone = false;
  /** Readings so far: the first, each pass, and the one during the freeze. */
  count = 1;
  /** How long the file systems stood still. */
  freezeMs = 0;
  /** What was read during the freeze. */
  restBytes = 0;
  /** When the disk was what was read of it. */
  instant: Date | undefined;
  /** Of the post-thaw hook, in words. */
  readonly problems: string[] = [];

  constructor(parts: LiveParts) {
    this.#parts = parts;
    const { blockCount } = parts.tracking;
    // Written once now, so that no memory has to be found for it while everything stands still.
    const memory = (): ArrayBufferLike => makeBits(regionCount(parts.sizeBytes)).fill(0xff).fill(0).buffer;
    this.#pending = new BlockBitmap(blockCount, memory());
    this.#since = new BlockBitmap(blockCount, memory());
    this.#late = new BlockBitmap(blockCount, memory());
  }

  readonly nextPass = async (): Promise<Pass | undefined> => {
    if (this.#isDone) return undefined;
    const { standstill, file, tracking } = this.#parts;
    // The pass before has read them.
    this.#pending.words.fill(0);
    await standstill.sync();
    const takenBlocks = tracking.take(this.#pending);
    this.count++;
    if (this.#goesOn(takenBlocks)) return this.#passFrom(file);
    const attempt = await this.#freeze();
    if (attempt === 'whole') {
      this.#parts.requireFrozen();
      this.#isDone = true;
      return this.#passFrom(this.#rest);
    }
    if (attempt !== undefined && this.#freezes >= FREEZES_MAX) throw this.#noMoment(attempt);
    return this.#passFrom(file);
  };

  #passFrom(file: Pass['file']): Pass {
    const { used } = this.#parts;
    if (used !== undefined) {
      const words = new Uint32Array(used.buffer);
      this.#pending.words.forEach((word, at) => {
        if (word !== 0) words[at] = (words[at] ?? 0) | word;
      });
    }
    return { file, blocks: this.#pending.bytes, used };
  }

  /** Whether there is to be one more pass before the freeze. @throws {CowbirdError} EBUSY when that leads nowhere. */
  #goesOn(takenBlocks: number): boolean {
    const before = this.#leftBlocks;
    this.#leftBlocks = takenBlocks;
    this.#stuck = takenBlocks > before * SHRINKS ? this.#stuck + 1 : 0;
    if (takenBlocks <= REST_BLOCKS_MAX)
      return takenBlocks > SMALL_BLOCKS && takenBlocks <= before / 2 && this.count < PASSES_MAX;
    if (this.#stuck >= STUCK_PASSES_MAX || this.count >= PASSES_MAX) {
      const mib = (blocks: number): string => `${Math.ceil((blocks * BLOCK_BYTES) / 1_048_576)} MiB`;
      throw new CowbirdError(
        'EBUSY',
        `${this.#parts.path} is written faster than it can be read: ${mib(takenBlocks)} changed during a pass, ${mib(before)} during the one before, at most ${mib(REST_BLOCKS_MAX)} may be left for the freeze. No version was made; run this again when the disk has less to do`,
        { outcome: 'failed' },
      );
    }
    return true;
  }

  /** One freeze; what it did not read stays in `#pending`. Undefined: there was none yet. */
  async #freeze(): Promise<Attempt | undefined> {
    const { standstill, onFrozen } = this.#parts;
    this.#isAhead = false;
    const own: { attempt: Attempt; aheadBlocks: number } = { attempt: 'others', aheadBlocks: Number.POSITIVE_INFINITY };
    const { outcome, at, freezeMs, problem } = await standstill.attempt({
      ahead: () => {
        const before = own.aheadBlocks;
        own.aheadBlocks = this.#readNew() ?? 0;
        this.#moveToPending(this.#since);
        return own.aheadBlocks > SMALL_AHEAD_BLOCKS && own.aheadBlocks <= before / 2;
      },
      frozen: () => {
        own.attempt = this.#readRest();
        if (own.attempt === 'whole') onFrozen?.();
        return own.attempt === 'whole';
      },
    });
    if (outcome === 'early') return undefined;
    this.#freezes++;
    this.freezeMs += freezeMs;
    this.instant = at;
    if (problem !== undefined) this.problems.push(problem);
    const attempt = outcome === 'not done' && own.attempt === 'whole' ? 'others' : own.attempt;
    // Not before: it looks at the whole of the disk's bits.
    this.#moveToPending(this.#since);
    this.#moveToPending(this.#late);
    return attempt;
  }

  /** What is done while everything stands still. */
  #readRest(): Attempt {
    const { tracking } = this.#parts;
    // Before they are read: what is over by then is read as it is.
    const over = tracking.overNotes();
    const blocks = this.#readNew();
    if (blocks === undefined) return 'too much';
    this.restBytes = blocks * BLOCK_BYTES;
    if (tracking.take(this.#late, over) > 0) return 'written';
    const doubt = tracking.doubt();
    if (doubt !== undefined) throw doubted(this.#parts.path, doubt);
    return 'whole';
  }

  /**
   * Reads into memory what was written since the last time, whose bits stay in `#since`; everything that is left, where that is the
   * first reading or there is no room for both. Returns how many blocks; undefined when they are more than fit.
   */
  #readNew(): number | undefined {
    const { tracking, file, sizeBytes } = this.#parts;
    const count = tracking.take(this.#since);
    if (this.#isAhead && this.#rest.reload(file.handle.fd, this.#since)) return count;
    this.#moveToPending(this.#since);
    this.#isAhead = this.#rest.load(file.handle.fd, this.#pending, sizeBytes);
    return this.#isAhead ? this.#setBlocks() : undefined;
  }

  #moveToPending(from: BlockBitmap): void {
    from.words.forEach((word, at) => {
      if (word === 0) return;
      this.#pending.words[at] = (this.#pending.words[at] ?? 0) | word;
      from.words[at] = 0;
    });
  }

  #setBlocks(): number {
    let count = 0;
    for (const word of this.#pending.words) if (word !== 0) count += countBits(word);
    return count;
  }

  #noMoment(attempt: Attempt): CowbirdError {
    const { path } = this.#parts;
    const why =
      attempt === 'written'
        ? `${path} was written while its file systems were frozen: somebody writes to the disk itself (a database, swap, dd)`
        : attempt === 'too much'
          ? `${path} had more than 64 MiB to be written each time that it was frozen`
          : `Of the disks that were to be frozen together with ${path} one was written meanwhile, or had more than 64 MiB to be written`;
    return new CowbirdError('EBUSY', `${why}. No version was made after ${FREEZES_MAX} attempts`, {
      outcome: 'failed',
    });
  }

  close(): void {
    this.#rest.close();
  }
}

/** The map cannot be believed any more. */
export function doubted(path: string, doubt: string): CowbirdError {
  return new CowbirdError(
    'EIO',
    `What changed on ${path} is not known for sure any more (${doubt}): no version was made. Run this again: it compares contents`,
    { outcome: 'failed' },
  );
}
