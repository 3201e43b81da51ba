/**
 * What one user has of a disk's map: files of bits on a tmpfs, in the disk's blocks, sparse.
 *
 * - `pending-<map>-<first page>-<pages>`: changed since the newest version, not yet handed out. Every process that empties the kernel's map adds to it, for
 *   every user of the disk.
 * - `taken-<mark>`: handed out for the version that is being made, whose token has this mark.
 * - `state.json`: which version is the base (`mark`), which one is being made (`attempt`). Replaced by rename.
 *
 * The bits of a version in the making are not forgotten before the repository says that it has it. So each step is an OR into the
 * place where bits go, then a removal where they were, and a kill between leaves them in both, which is the same set:
 *
 *     kernel's map → pending of every user → bits cleared in the kernel
 *     pending → taken-<attempt> → page punched out of pending
 *     the version is committed: `state.json` says mark = attempt, a new attempt → old `taken` unlinked
 *     the version was not made: taken → pending, `state.json` says a new attempt → old `taken` unlinked
 *
 * An attempt that may or may not have been committed is told by the token of the repository's newest version: its mark is `attempt`, then it
 * was; it is `mark`, then it was not; anything else is a version that this tracking knows nothing of. Marks are never used twice.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { describeIssue, WholeNumber } from '../sys/checks.js';
import { assert, CowbirdError, messageOf } from '../sys/errors.js';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate, fast, ftruncate } from '../sys/libc.js';
import { PAGE_BYTES } from './kernel-map.js';
import { removeFile } from './places.js';

const FORMAT = 1;
const Mark = v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/));

const State = v.strictObject({
  format: v.literal(FORMAT),
  user: v.string(),
  bootId: v.string(),
  device: v.string(),
  /** `major:minor` of the view. */
  number: v.string(),
  startSector: WholeNumber,
  sizeBytes: WholeNumber,
  mapId: v.string(),
  since: v.string(),
  baseline: v.array(v.number()),
  generation: WholeNumber,
  mark: Mark,
  attempt: Mark,
});

/** What a user's folder says of it. */
export type UserState = v.InferOutput<typeof State>;

export function newMark(): string {
  return randomBytes(16).toString('hex');
}

export function readState(folder: string): UserState | undefined {
  let text: string;
  try {
    text = readFileSync(join(folder, STATE_FILE), 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw damaged(folder, messageOf(error));
  }
  const result = v.safeParse(State, parsed);
  if (!result.success) throw damaged(folder, describeIssue(result.issues[0], 'state'));
  return result.output;
}

function damaged(folder: string, why: string): CowbirdError {
  return new CowbirdError('EUCLEAN', `${join(folder, STATE_FILE)} is damaged (${why}): \`cowbird untrack\` removes it`);
}

const STATE_FILE = 'state.json';
const STATE_NEW = 'state.new';

function writeState(folder: string, state: UserState): void {
  writeFileSync(join(folder, STATE_NEW), JSON.stringify(state), { mode: 0o600 });
  renameSync(join(folder, STATE_NEW), join(folder, STATE_FILE));
}

const SEEK_DATA = 3;

/** A sparse file of bits, page by page. */
export class PageFile {
  readonly #fd: number;
  readonly #pageCount: number;

  constructor(path: string, pageCount: number) {
    this.#fd = openSync(path, 'a+', 0o600);
    closeSync(this.#fd);
    this.#fd = openSync(path, 'r+');
    this.#pageCount = pageCount;
    ftruncate(this.#fd, pageCount * PAGE_BYTES);
  }

  /** The first page from `page` on that may have bits; `pageCount` when there is none. */
  next(page: number): number {
    if (page >= this.#pageCount) return this.#pageCount;
    const offset = fast.lseek(this.#fd, page * PAGE_BYTES, SEEK_DATA);
    return offset < 0 ? this.#pageCount : Math.floor(offset / PAGE_BYTES);
  }

  read(page: number, into: Uint8Array): void {
    const count = readSync(this.#fd, into, 0, PAGE_BYTES, page * PAGE_BYTES);
    assert(count === PAGE_BYTES, () => `page ${page} of ${this.#pageCount} is whole, ${count} bytes`);
  }

  /** Adds bits; throws, with nothing removed anywhere, when the tmpfs is full. */
  add(page: number, bits: Uint32Array): void {
    const now = new Uint32Array(bits.length);
    const bytes = new Uint8Array(now.buffer);
    this.read(page, bytes);
    for (const [i, word] of bits.entries()) if (word !== 0) now[i] = (now[i] ?? 0) | word;
    const count = writeSync(this.#fd, bytes, 0, PAGE_BYTES, page * PAGE_BYTES);
    if (count !== PAGE_BYTES)
      throw new CowbirdError('ENOSPC', 'the tmpfs that tracking keeps changed blocks in is full', {
        outcome: 'failed',
      });
  }

  remove(page: number): void {
    fallocate(this.#fd, FALLOC_FL_PUNCH_HOLE + FALLOC_FL_KEEP_SIZE, page * PAGE_BYTES, PAGE_BYTES);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** The pages of a disk's map that a user looks at. */
export interface PageRange {
  first: number;
  count: number;
}

const PENDING = /^pending-([0-9a-f]+)-(\d+)-(\d+)$/;

/** A user's pending bits, opened. */
export interface PendingUser extends PageRange {
  file: PageFile;
}

/** The pending files of every user of a disk who goes by the same map. */
export function openPending(diskFolder: string, mapId: string, pageCount: number): PendingUser[] {
  return readdirSync(diskFolder).flatMap((user) =>
    readdirSync(join(diskFolder, user)).flatMap((name) => {
      const [, map, first, count] = PENDING.exec(name) ?? [];
      if (map !== mapId) return [];
      const file = new PageFile(join(diskFolder, user, name), pageCount);
      return [{ first: Number(first), count: Number(count), file }];
    }),
  );
}

/** The files of one user, opened. */
export class UserSet {
  readonly #folder: string;
  readonly #pageCount: number;
  #state: UserState;
  readonly pending: PageFile;
  #taken: PageFile;

  private constructor(folder: string, state: UserState, pages: PageRange, pageCount: number) {
    this.#folder = folder;
    this.#state = state;
    this.#pageCount = pageCount;
    this.pending = new PageFile(join(folder, `pending-${state.mapId}-${pages.first}-${pages.count}`), pageCount);
    this.#taken = new PageFile(join(folder, `taken-${state.attempt}`), pageCount);
  }

  /** Begins anew: what was there before is gone. The lock of the folder is held. */
  static create(folder: string, state: UserState, pages: PageRange, pageCount: number): UserSet {
    removeBits(folder);
    writeState(folder, state);
    return new UserSet(folder, state, pages, pageCount);
  }

  /** Goes on, after a process that may have been killed anywhere. `mark`: of the newest version's token, one of the two known. */
  static open(folder: string, state: UserState, pages: PageRange, pageCount: number, mark: string): UserSet {
    assert(mark === state.mark || mark === state.attempt, 'the mark is known');
    const set = new UserSet(folder, state, pages, pageCount);
    if (mark === state.attempt) set.commit();
    else set.abandon();
    // Left by one that was killed between its state and its files.
    for (const name of readdirSync(folder))
      if (name.startsWith('taken-') && name !== `taken-${set.#state.attempt}`) removeFile(join(folder, name));
    return set;
  }

  get state(): UserState {
    return this.#state;
  }

  /** Moves a page from pending to taken, and gives its bits; false when it has none. */
  takePage(page: number, bits: Uint32Array): boolean {
    this.pending.read(page, new Uint8Array(bits.buffer, bits.byteOffset, PAGE_BYTES));
    if (bits.every((word) => word === 0)) {
      this.pending.remove(page);
      return false;
    }
    this.#taken.add(page, bits);
    this.pending.remove(page);
    return true;
  }

  commit(): void {
    const { attempt, generation } = this.#state;
    this.#renew({ ...this.#state, mark: attempt, generation: generation + 1, attempt: newMark() });
  }

  abandon(): void {
    const bits = new Uint32Array(PAGE_BYTES / 4);
    for (let page = this.#taken.next(0); page < this.#pageCount; page = this.#taken.next(page + 1)) {
      this.#taken.read(page, new Uint8Array(bits.buffer));
      this.pending.add(page, bits);
    }
    this.#renew({ ...this.#state, attempt: newMark() });
  }

  close(): void {
    this.pending.close();
    this.#taken.close();
  }

  #renew(state: UserState): void {
    const old = join(this.#folder, `taken-${this.#state.attempt}`);
    const taken = new PageFile(join(this.#folder, `taken-${state.attempt}`), this.#pageCount);
    writeState(this.#folder, state);
    this.#taken.close();
    this.#taken = taken;
    this.#state = state;
    removeFile(old);
  }
}

/** Visits each page that is pending or taken, with the bits of both. For looking on, while another process may have the set. */
export function visitPages(folder: string, pageCount: number, visit: (page: number, bits: Uint32Array) => void): void {
  const files = readdirSync(folder)
    .filter((name) => name.startsWith('pending-') || name.startsWith('taken-'))
    .map((name) => new PageFile(join(folder, name), pageCount));
  try {
    const bits = new Uint32Array(PAGE_BYTES / 4);
    const one = new Uint32Array(PAGE_BYTES / 4);
    const nextOf = (page: number): number => Math.min(pageCount, ...files.map((file) => file.next(page)));
    for (let page = nextOf(0); page < pageCount; page = nextOf(page + 1)) {
      bits.fill(0);
      for (const file of files) {
        file.read(page, new Uint8Array(one.buffer));
        for (const [i, word] of one.entries()) if (word !== 0) bits[i] = (bits[i] ?? 0) | word;
      }
      visit(page, bits);
    }
  } finally {
    for (const file of files) file.close();
  }
}

/** Removes the bits of a user, not its lock. */
export function removeBits(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  removeFile(join(folder, STATE_FILE));
  for (const name of readdirSync(folder)) if (name !== 'lock') removeFile(join(folder, name));
}
