/**
 * Opening and removing COW files, which are named by a path that others may have changed since: a user who may write a folder can
 * put a link to somebody else's file into it. So whatever is changed is first looked at through the descriptor that changes it.
 */
import { closeSync, constants, fstatSync, fsyncSync, lstatSync, openSync, type Stats, unlinkSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { deviceNumber, deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import { setImmutable } from '../sys/fsfile.js';
import type { StoreFile } from './helper-calls.js';

const ENOENT = 2;
const ELOOP = 40;
/** A named pipe in place of the file does not make us wait for its writer. */
const CAREFUL = constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** Inode numbers alone repeat: two file systems that are fresh have the same ones. */
export function isSameFile(stats: Stats, { dev, ino, on }: StoreFile): boolean {
  if (!stats.isFile() || stats.ino !== ino) return false;
  return on === undefined ? stats.dev === dev : isOnVolume(deviceNumber(stats.dev), on);
}

function isOnVolume(number: string, node: string): boolean {
  return deviceNumbersOn(node).some((device) => device.number === number && device.startBytes !== null);
}

function otherFile(file: StoreFile, what: string): CowbirdError {
  const message = `${file.path} is another file than the one that was set up (${what}, expected inode ${file.ino})`;
  return new CowbirdError('EUCLEAN', message, { outcome: 'failed' });
}

/** @throws {CowbirdError} EUCLEAN when this is not the very file that was recorded. */
export function requireSameFile(stats: Stats, file: StoreFile): void {
  if (!isSameFile(stats, file)) throw otherFile(file, `inode ${stats.ino} of device ${deviceNumber(stats.dev)}`);
}

/** Opens a COW file by its path and makes sure that it is the very file that was recorded. */
export function openStore(file: StoreFile, flags: number): number {
  const fd = openCarefully(file, flags);
  try {
    requireSameFile(fstatSync(fd), file);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openCarefully(file: StoreFile, flags: number): number {
  try {
    return openSync(file.path, flags | CAREFUL);
  } catch (error) {
    if (errnoOfError(error) === ELOOP) throw otherFile(file, 'a symbolic link');
    throw error;
  }
}

export function withStore<T>(file: StoreFile, flags: number, action: (fd: number) => T): T {
  const fd = openStore(file, flags);
  try {
    return action(fd);
  } finally {
    closeSync(fd);
  }
}

/** The file's immutable attribute is lifted for the action, and set again where it was asked to stay. */
export function whileMutable<T>(file: StoreFile, action: (fd: number) => T): T {
  withStore(file, constants.O_RDONLY, (fd) => setImmutable(fd, false));
  return withStore(file, constants.O_RDWR, action);
}

/** Whether that very file is still there. */
export function isStore({ file }: { file: StoreFile }): { present: boolean } {
  try {
    return { present: isSameFile(lstatSync(file.path), file) };
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return { present: false };
    throw error;
  }
}

/**
 * Removes the name of a file, durably. In the folder that has it at this moment: somebody who puts a link in place of a folder
 * above cannot make it a name in another one that goes.
 */
export function removeName(file: StoreFile): void {
  const folder = openSync(dirname(file.path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    const path = `/proc/self/fd/${folder}/${basename(file.path)}`;
    requireSameFile(lstatSync(path), file);
    unlinkSync(path);
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

export function unlinkStore({ file }: { file: StoreFile }): null {
  whileMutable(file, () => null);
  removeName(file);
  return null;
}
