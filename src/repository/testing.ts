/**
 * A disk that loses power: the files of a repository in memory, with what is durable kept apart from what is not.
 *
 * Fault model. At a cut, of everything that was not made durable any part may be there: of a write any of its sectors, of
 * holes any page, of truncations, names, renames and removals any of them, whatever their order. What was made durable is
 * there. A disk can also fail with an error at one effect, or be full.
 */
import type { FileWitness, Lock, OpenMode, ReadableFile, RepositoryFiles, WritableFile } from './files.js';
import { Contents, PAGE_BYTES } from './testing-contents.js';

const SECTOR_BYTES = 512;

/** Numbers from a seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) % 2 ** 32;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class PowerCut extends Error {
  override readonly name = 'PowerCut';
}

type FileChange = (contents: Contents, keeps: () => boolean) => void;

class Inode {
  readonly id: number;
  durable = new Contents();
  current = new Contents();
  pending: FileChange[] = [];
  stamp = 0;

  constructor(id: number) {
    this.id = id;
  }

  copy(): Inode {
    const other = new Inode(this.id);
    other.durable = this.durable.copy();
    other.current = this.current.copy();
    other.pending = [...this.pending];
    other.stamp = this.stamp;
    return other;
  }
}

type NameChange = { folder: string; apply(names: Map<string, number>): void };

export class SimulatedDisk {
  /** Effects so far. */
  effects = 0;
  /** The effect at which the power goes; 0 for never. */
  cutAt = 0;
  /** The effect that fails with EIO; 0 for none. */
  failAt = 0;
  /** Pages that fit. */
  capacityPages = Number.POSITIVE_INFINITY;
  isDead = false;
  inodes = new Map<number, Inode>();
  durableNames = new Map<string, number>();
  names = new Map<string, number>();
  pendingNames: NameChange[] = [];
  /** Of each open file: without a name, too, it takes its space until it is closed. */
  readonly open = new Map<object, Inode>();
  #nextInode = 1;
  clock = 1;
  /** By inode: blocks whose sectors cannot be read. */
  readonly unreadable = new Map<number, Set<number>>();

  /** The same disk once more, for another fate. */
  copy(): SimulatedDisk {
    const other = new SimulatedDisk();
    other.inodes = new Map([...this.inodes].map(([id, inode]) => [id, inode.copy()]));
    other.durableNames = new Map(this.durableNames);
    other.names = new Map(this.names);
    other.pendingNames = [...this.pendingNames];
    other.#nextInode = this.#nextInode;
    other.clock = this.clock;
    for (const [id, blocks] of this.unreadable) other.unreadable.set(id, new Set(blocks));
    other.capacityPages = this.capacityPages;
    return other;
  }

  /** Called before each effect; `takesEffect` is what it leaves undurable. */
  effect(takesEffect: () => void): void {
    this.alive();
    this.effects++;
    const isCut = this.effects === this.cutAt;
    if (this.effects === this.failAt) throw Object.assign(new Error('simulated failure'), { code: 'EIO' });
    takesEffect();
    if (isCut) {
      this.isDead = true;
      throw new PowerCut(`at effect ${this.effects}`);
    }
  }

  alive(): void {
    if (this.isDead) throw new PowerCut('the machine is off');
  }

  newInode(): Inode {
    const inode = new Inode(this.#nextInode++);
    this.inodes.set(inode.id, inode);
    return inode;
  }

  usedPages(): number {
    const inodes = [...this.names.values()].flatMap((id) => this.inodes.get(id) ?? []);
    return [...new Set([...inodes, ...this.open.values()])].reduce((sum, { current }) => sum + current.pages.size, 0);
  }

  /** Power goes and comes back: what was not durable is there in part, as `random` says. */
  reboot(random: () => number): void {
    // Nothing, everything, or any part of it.
    this.open.clear();
    const share = [0, 1, random()][Math.floor(random() * 3)] ?? 0;
    const keeps = (): boolean => random() < share;
    for (const inode of this.inodes.values()) {
      for (const change of inode.pending) change(inode.durable, keeps);
      inode.pending = [];
      inode.current = inode.durable.copy();
    }
    for (const { apply } of this.pendingNames) if (keeps()) apply(this.durableNames);
    this.pendingNames = [];
    this.names = new Map(this.durableNames);
    this.isDead = false;
    this.cutAt = 0;
    this.failAt = 0;
    this.effects = 0;
  }

  /** From now on these blocks of a file cannot be read, each until it is written. */
  spoil(name: string, ...blocks: number[]): void {
    this.unreadable.set(this.names.get(name) ?? -1, new Set(blocks));
  }

  /** Turns one bit of a file over, as a disk that rots. */
  flip(name: string, offset: number, bit: number): void {
    const inode = this.inodes.get(this.names.get(name) ?? -1);
    if (inode === undefined) throw new RangeError(`no ${name}`);
    for (const contents of [inode.current, inode.durable]) {
      const byte = Buffer.alloc(1);
      contents.read(byte, offset);
      contents.write(Buffer.of((byte[0] ?? 0) ^ (1 << bit)), offset);
    }
  }
}

class SimulatedFile implements WritableFile {
  readonly handle = undefined;
  readonly #disk: SimulatedDisk;
  readonly #inode: Inode;

  constructor(disk: SimulatedDisk, inode: Inode) {
    this.#disk = disk;
    this.#inode = inode;
    disk.open.set(this, inode);
  }

  sizeBytes(): number {
    return this.#inode.current.sizeBytes;
  }

  pread(bytes: Uint8Array, offset: number): number {
    this.#disk.alive();
    refuseUnreadable(this.#unreadable(), offset, bytes.byteLength);
    return this.#inode.current.read(bytes, offset);
  }

  #unreadable(): Set<number> {
    return this.#disk.unreadable.get(this.#inode.id) ?? new Set();
  }

  nextData(offset: number, end: number): number {
    return this.#inode.current.nextData(offset, end);
  }

  pwrite(bytes: Uint8Array, offset: number): void {
    const copy = Buffer.from(bytes);
    // The disk puts other sectors in their place.
    for (let at = Math.ceil(offset / PAGE_BYTES); (at + 1) * PAGE_BYTES <= offset + bytes.byteLength; at++)
      this.#unreadable().delete(at);
    if (this.#disk.usedPages() + this.#newPages(offset, bytes.byteLength) > this.#disk.capacityPages)
      throw Object.assign(new Error('simulated: no space'), { code: 'ENOSPC' });
    this.#change((contents, keeps) => {
      for (let at = 0; at < copy.byteLength; ) {
        const piece = Math.min(SECTOR_BYTES - ((offset + at) % SECTOR_BYTES), copy.byteLength - at);
        if (keeps()) contents.write(copy.subarray(at, at + piece), offset + at);
        at += piece;
      }
    });
  }

  /** Pages that a write would take, beside those that the file has. */
  #newPages(offset: number, lengthBytes: number): number {
    let count = 0;
    for (let page = Math.floor(offset / PAGE_BYTES); page * PAGE_BYTES < offset + lengthBytes; page++)
      if (!this.#inode.current.pages.has(page)) count++;
    return count;
  }

  punch(offset: number, lengthBytes: number): void {
    this.#change((contents, keeps) => {
      for (let at = offset; at < offset + lengthBytes; ) {
        const piece = Math.min(PAGE_BYTES - (at % PAGE_BYTES), offset + lengthBytes - at);
        if (keeps()) contents.zero(at, at + piece);
        at += piece;
      }
    });
  }

  zero(offset: number, lengthBytes: number): void {
    this.#change((contents, keeps) => {
      for (let at = offset; at < offset + lengthBytes; ) {
        const piece = Math.min(PAGE_BYTES - (at % PAGE_BYTES), offset + lengthBytes - at);
        if (keeps()) contents.write(Buffer.alloc(piece), at);
        at += piece;
      }
    });
  }

  truncate(lengthBytes: number): void {
    this.#change((contents, keeps) => {
      if (keeps()) contents.truncate(lengthBytes);
    });
  }

  #change(change: FileChange): void {
    this.#disk.effect(() => {
      this.#inode.pending.push(change);
      this.#inode.stamp = this.#disk.clock++;
      change(this.#inode.current, () => true);
    });
  }

  fsync(): void {
    this.#disk.effect(() => {
      // Cut here, nothing of it may have become durable.
      if (this.#disk.effects === this.#disk.cutAt) return;
      this.#inode.durable = this.#inode.current.copy();
      this.#inode.pending = [];
    });
  }

  dropCache(): void {
    this.#disk.alive();
  }

  close(): void {
    this.#disk.open.delete(this);
  }
}

export class SimulatedFiles implements RepositoryFiles {
  readonly path = '/repository';
  readonly disk: SimulatedDisk;
  /** What `freeBytes` says; a file system may promise more than it has. */
  freeBytesSaid: number | undefined;
  isCopyOnWriteSaid = false;

  constructor(disk: SimulatedDisk) {
    this.disk = disk;
  }

  open(name: string, mode: OpenMode): WritableFile {
    this.disk.alive();
    const id = this.disk.names.get(name);
    let inode = id === undefined ? undefined : this.disk.inodes.get(id);
    if (mode === 'create' && inode === undefined) {
      inode = this.disk.newInode();
      const { id: made } = inode;
      this.#rename(name, (names) => names.set(name, made));
    }
    if (inode === undefined) throw Object.assign(new Error(`no ${name}`), { code: 'ENOENT' });
    const file = new SimulatedFile(this.disk, inode);
    if (mode === 'create') file.truncate(0);
    return file;
  }

  witness(name: string): FileWitness | undefined {
    const inode = this.disk.inodes.get(this.disk.names.get(name) ?? -1);
    if (inode === undefined) return undefined;
    const stamp = String(inode.stamp);
    return { inode: String(inode.id), sizeBytes: inode.current.sizeBytes, mtimeNs: stamp, ctimeNs: stamp };
  }

  list(folder: string): string[] | undefined {
    const prefix = folder === '' ? '' : `${folder}/`;
    const names = [...this.disk.names.keys()]
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length));
    return [...new Set(names.map((name) => name.split('/')[0] ?? ''))].sort();
  }

  makeFolder(): void {
    this.disk.alive();
  }

  other(path: string): RepositoryFiles {
    throw new RangeError(`${path} is not on this disk`);
  }

  rename(from: string, to: string): void {
    const id = this.disk.names.get(from);
    if (id === undefined) throw Object.assign(new Error(`no ${from}`), { code: 'ENOENT' });
    this.#rename(to, (names) => {
      if (names.get(from) === id) names.delete(from);
      names.set(to, id);
    });
    const inode = this.disk.inodes.get(id);
    if (inode !== undefined) inode.stamp = this.disk.clock++;
  }

  unlink(name: string): void {
    if (!this.disk.names.has(name)) throw Object.assign(new Error(`no ${name}`), { code: 'ENOENT' });
    this.#rename(name, (names) => names.delete(name));
  }

  #rename(name: string, apply: (names: Map<string, number>) => void): void {
    this.disk.effect(() => {
      this.disk.pendingNames.push({ folder: folderOf(name), apply });
      apply(this.disk.names);
    });
  }

  fsyncFolder(folder: string): void {
    this.disk.effect(() => {
      if (this.disk.effects === this.disk.cutAt) return;
      for (const change of this.disk.pendingNames) if (change.folder === folder) change.apply(this.disk.durableNames);
      this.disk.pendingNames = this.disk.pendingNames.filter((change) => change.folder !== folder);
    });
  }

  freeBytes(): number {
    return this.freeBytesSaid ?? (this.disk.capacityPages - this.disk.usedPages()) * PAGE_BYTES;
  }

  isCopyOnWrite(): boolean {
    return this.isCopyOnWriteSaid;
  }

  tryLock(): Lock {
    return { release: () => undefined };
  }

  lockHolder(): string {
    return 'nobody';
  }
}

function folderOf(name: string): string {
  return name.includes('/') ? name.slice(0, name.lastIndexOf('/')) : '';
}

function refuseUnreadable(bad: ReadonlySet<number>, offset: number, lengthBytes: number): void {
  for (let at = offset - (offset % PAGE_BYTES); at < offset + lengthBytes; at += PAGE_BYTES)
    if (bad.has(at / PAGE_BYTES)) throw Object.assign(new Error('simulated bad block'), { code: 'EIO' });
}

/** Bytes in memory as a source. Blocks in `bad` cannot be read. */
export function memorySource(bytes: Buffer, bad: ReadonlySet<number> = new Set()): ReadableFile {
  return {
    handle: undefined,
    pread: (into, offset) => {
      const count = Math.max(0, Math.min(into.byteLength, bytes.byteLength - offset));
      refuseUnreadable(bad, offset, count);
      into.set(bytes.subarray(offset, offset + count));
      return count;
    },
    nextData: (offset) => offset,
  };
}
