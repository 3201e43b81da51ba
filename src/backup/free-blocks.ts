/**
 * The used blocks of a snapshot: all but those that its file system calls free, and those of its own COW file, which are known to
 * read as zeros: a tenth of the volume, and all of it may differ from the snapshot before.
 *
 * Asked of the snapshot itself, never of the volume, which goes on. That is right because the file system was frozen for it:
 * ext4 has emptied its journal into place by then and XFS has written everything that its log has, so that a mount without
 * replay sees the bitmaps and trees as they are. An ext4 whose journal is not empty was not frozen, and is copied wholly.
 *
 * What the list of free blocks does not have is used: what lies behind the end of the file system, free ranges smaller than
 * a block, a log or realtime device of its own. What is on it, and has contents: nothing that a file system reads. Space
 * that is reserved but not written (fallocate) is not on the list.
 */
import { spawn } from 'node:child_process';
import { closeSync, readSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Signature } from '../block/signature.js';
import { makeBits } from '../repository/bits.js';
import { type ReadableFile, readPadded } from '../repository/files.js';
import { regionCount } from '../repository/layout.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';

const TIMEOUT_MS = 60_000;
/** What one call of Node's takes is below 2 GiB; the list for 64 TiB is that large. */
export const TRANSFER_BYTES_MAX = 1_073_741_824;
const STDERR_CHARS_MAX = 2_000;
const EXT_SUPERBLOCK = 1024;
const EXT_FEATURE_INCOMPAT = EXT_SUPERBLOCK + 0x60;
const EXT_NEEDS_RECOVERY = 4;

/** How a snapshot is mounted that must not be written: without replaying its log, beside the volume of the same uuid. */
export const FREE_MOUNT_OPTIONS: Readonly<Record<string, string>> = { ext4: 'noload', xfs: 'norecovery,nouuid' };

/** The kernel's name of a file system that can tell its free blocks. */
export function fsTypeOf(signature: Signature | undefined): 'ext4' | 'xfs' | undefined {
  if (signature?.kind === 'ext') return 'ext4';
  return signature?.kind === 'xfs' ? 'xfs' : undefined;
}

/** The COW file of a snapshot, where it is in the root of the snapshot's own file system. */
export interface OwnCowFile {
  name: string;
  inode: number;
}

/**
 * One bit a block of a snapshot of a frozen file system: set where it is used, and not of `cowFile`.
 *
 * @throws {CowbirdError} with the reason why that cannot be had: then all of it is to be copied.
 */
export async function usedBlocks(
  node: string,
  fsType: 'ext4' | 'xfs',
  snapshot: ReadableFile,
  sizeBytes: number,
  cowFile: OwnCowFile | undefined,
): Promise<Uint8Array> {
  if (fsType === 'ext4') requireEmptyJournal(snapshot);
  const bits = makeBits(regionCount(sizeBytes));
  const fd = libc.memfdCreate('cowbird-free', bits.byteLength);
  try {
    const ofCowFile = cowFile === undefined ? [] : [cowFile.name, String(cowFile.inode)];
    await runChild([node, fsType, String(bits.byteLength), ...ofCowFile], fd);
    const free = Buffer.alloc(bits.byteLength);
    for (let at = 0; at < free.byteLength; ) {
      const count = readSync(fd, free, at, Math.min(free.byteLength - at, TRANSFER_BYTES_MAX), at);
      if (count === 0) throw new CowbirdError('EIO', 'the list of free blocks is short');
      at += count;
    }
    for (let at = 0; at < bits.byteLength; at++) bits[at] = 255 - (free[at] ?? 0);
    return bits;
  } finally {
    closeSync(fd);
  }
}

function requireEmptyJournal(snapshot: ReadableFile): void {
  const head = Buffer.alloc(4096);
  readPadded(snapshot, head, 0);
  if (Math.floor(head.readUInt32LE(EXT_FEATURE_INCOMPAT) / EXT_NEEDS_RECOVERY) % 2 === 1)
    throw new CowbirdError('EINVAL', 'the journal is not empty, so the file system was not frozen');
}

function runChild(args: string[], bitmapFd: number): Promise<void> {
  const program = fileURLToPath(new URL('./free-blocks-main.js', import.meta.url));
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'ignore', 'pipe', bitmapFd] });
    let said = '';
    child.stderr?.on('data', (bytes: Buffer) => {
      said = `${said}${bytes.toString()}`.slice(0, STDERR_CHARS_MAX);
    });
    const fail = (why: string): void => reject(new CowbirdError('EIO', why, { outcome: 'failed' }));
    const timer = setTimeout(() => {
      // One that hangs in the kernel ends when its call returns: nobody waits for that.
      child.kill('SIGKILL');
      child.unref();
      child.stderr?.destroy();
      fail(`the snapshot was not mounted within ${TIMEOUT_MS / 1000} s`);
    }, TIMEOUT_MS);
    child.once('error', (error) => {
      clearTimeout(timer);
      fail(messageOf(error));
    });
    child.once('close', (status, signal) => {
      clearTimeout(timer);
      if (status === 0) resolve();
      else fail(errorLine(said) ?? `its process ended with ${status ?? signal}`);
    });
  });
}

/** The message of an uncaught error. */
function errorLine(text: string): string | undefined {
  return /^\w*Error: (.*)$/m.exec(text)?.[1];
}
