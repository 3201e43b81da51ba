/** The files of a repository on a disk. */
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { assert, CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { lockHolders } from '../sys/lock-holders.js';
import { PageFile } from '../sys/page-file.js';
import type { FileWitness, Lock, OpenMode, RepositoryFiles, WritableFile } from './files.js';
import { LOCK } from './layout.js';

/** statfs(2)'s f_type of Btrfs, bcachefs and ZFS. */
const COPY_ON_WRITE: ReadonlySet<number> = new Set([0x9123_683e, 0xca45_1a4e, 0x2fc1_2fc1]);

/** The process that serves a version (backup/device-main.ts). */
const DEVICE_PROGRAM = 'device-main';

export class DiskFiles implements RepositoryFiles {
  readonly path: string;

  /** `path` is absolute; it need not exist. */
  constructor(path: string) {
    this.path = path;
  }

  open(name: string, mode: OpenMode): WritableFile {
    return PageFile.open(this.#at(name), mode);
  }

  witness(name: string): FileWitness | undefined {
    const stats = optional(() => statSync(this.#at(name), { bigint: true }));
    if (stats === undefined) return undefined;
    return {
      inode: String(stats.ino),
      sizeBytes: Number(stats.size),
      mtimeNs: String(stats.mtimeNs),
      ctimeNs: String(stats.ctimeNs),
    };
  }

  list(folder: string): string[] | undefined {
    return optional(() => readdirSync(this.#at(folder)).sort());
  }

  makeFolder(folder: string): void {
    mkdirSync(this.#at(folder), { recursive: true, mode: 0o700 });
  }

  rename(from: string, to: string): void {
    renameSync(this.#at(from), this.#at(to));
  }

  unlink(name: string): void {
    unlinkSync(this.#at(name));
  }

  fsyncFolder(folder: string): void {
    const fd = openSync(this.#at(folder), constants.O_RDONLY + constants.O_DIRECTORY);
    try {
      fsyncSync(fd);
    } catch (error) {
      // Some network file systems have no fsync of folders: what they do to names is as durable as it gets.
      if (!['EINVAL', 'ENOTSUP', 'ENOSYS'].includes(codeOf(errnoOfError(error)))) throw error;
    } finally {
      closeSync(fd);
    }
  }

  other(path: string): RepositoryFiles {
    return new DiskFiles(path);
  }

  freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.path);
    return bavail * bsize;
  }

  isCopyOnWrite(): boolean {
    return COPY_ON_WRITE.has(statfsSync(this.path).type);
  }

  /**
   * Makes the directory, with its parent's entry durable, where there is none. True: it did.
   *
   * @throws {CowbirdError} ENOENT where the parent is missing too: a typing mistake must not make a tree of directories.
   */
  create(): boolean {
    if (optional(() => statSync(this.path)) !== undefined) return false;
    const parent = join(this.path, '..');
    if (optional(() => statSync(parent)) === undefined)
      throw new CowbirdError('ENOENT', `${parent}, where the repository is to be made, does not exist: make it first`);
    mkdirSync(this.path, { mode: 0o700 });
    new DiskFiles(parent).fsyncFolder('');
    return true;
  }

  /** Removes the directory where nothing was put into it. To be called by who has made it, with the lock. */
  removeEmpty(): void {
    if (readdirSync(this.path).some((name) => name !== LOCK)) return;
    unlinkSync(this.#at(LOCK));
    rmdirSync(this.path);
  }

  tryLock(exclusive: boolean): Lock | undefined {
    const fd = this.#openLock(exclusive);
    // Nobody can write here, so there is nobody to be kept away.
    if (fd === undefined) return { release: () => undefined };
    let isLocked: boolean;
    try {
      isLocked = libc.tryFlock(fd, exclusive ? libc.LOCK_EX : libc.LOCK_SH);
    } catch (error) {
      closeSync(fd);
      const code = codeOf(errnoOfError(error));
      throw new CowbirdError(code, `${this.path} cannot be locked (${code}): its file system has no flock(2)`, {
        cause: error,
      });
    }
    // Between opening and locking it may have been removed with its directory, and both made anew.
    const isStill = fstatSync(fd).nlink > 0;
    if (isLocked && isStill) return { release: () => closeSync(fd) };
    closeSync(fd);
    return isStill ? undefined : this.tryLock(exclusive);
  }

  #openLock(exclusive: boolean): number | undefined {
    const path = this.#at(LOCK);
    try {
      return openSync(path, constants.O_RDWR + constants.O_CREAT, 0o600);
    } catch (error) {
      const code = codeOf(errnoOfError(error));
      if (code === 'ENOENT')
        throw new CowbirdError(
          'ENOENT',
          `${this.path} does not exist: \`cowbird backup SOURCE ${this.path}\` makes it`,
        );
      if (code === 'ENOTDIR') throw new CowbirdError('ENOTDIR', `${this.path} is no directory, so it is no repository`);
      if (!['EROFS', 'EACCES', 'EPERM'].includes(code)) throw error;
      if (exclusive)
        throw new CowbirdError(
          code,
          `${this.path} cannot be written: check who owns it and how its file system is mounted`,
        );
      return optional(() => openSync(path, constants.O_RDONLY));
    }
  }

  lockHolder(): string {
    const inode = this.witness(LOCK)?.inode;
    const holders = inode === undefined ? [] : lockHolders(inode, readFileSync('/proc/locks', 'utf8'));
    if (holders.length === 0) return 'a process that cannot be seen from here (another container or machine)';
    const names = holders.map(({ pid, command, started }) => `process ${pid} (${command}, started ${started})`);
    const isServed = holders.some(({ command }) => command.startsWith(DEVICE_PROGRAM));
    const way = isServed ? ', which is a version as a device or mounted: `cowbird umount` ends that' : '';
    return names.join(' and ') + way;
  }

  #at(name: string): string {
    assert(!name.startsWith('/') && !name.includes('..'), `${name} is a name in the repository`);
    return join(this.path, name);
  }
}

/** Undefined where there is no such file. */
function optional<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (codeOf(errnoOfError(error)) === 'ENOENT') return undefined;
    throw error;
  }
}
