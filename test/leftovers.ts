/**
 * Clears away what a test run left that was killed outright (SIGKILL, the end of its container): daemons, mounts, loop devices,
 * tracking of disks, folders. One FUSE file without a server is enough to fail everybody's mkfs.btrfs and mkfs.xfs, which look at
 * the backing file of every loop device.
 *
 * Everything of a laboratory has its folder's name in it, and that is all this looks for. It runs only while no process has a
 * laboratory (the lock of `lab.ts`). Programs with a time limit do what could wait for a file system.
 */
import { closeSync, openSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { listOptional, removeDeadLinks } from '../src/engine/stale.js';
import { pinFolder, removeEmptyPlaces, removePins } from '../src/live/places.js';
import { boundLoops } from '../src/sys/blkdev.js';
import { LOCK_EX, tryFlock } from '../src/sys/libc.js';
import { ownMounts } from '../src/sys/mounts.js';
import { LAB_PREFIX, LOCK_PATH, run, succeeds } from './lab.js';

/** A stack is a few deep (file, loop device, file system, once more); a pass takes at least its top. */
const PASSES_MAX = 8;
const GONE_WAIT_MS = 10_000;
const POLL_MS = 50;

/** Removes everything of laboratories whose folders begin with `prefix`; returns what it did, in words. */
export async function clearLeftovers(prefix: string): Promise<string[]> {
  const done: string[] = [];
  await endDaemons(prefix, done);
  for (const { folder, runDir } of labsOf(prefix)) {
    for (const name of listOptional(pinFolder(runDir))) {
      removePins(join(pinFolder(runDir), name));
      done.push(`tracking of ${folder}: ${name}`);
    }
  }
  for (let pass = 1; pass <= PASSES_MAX && (await takeTop(prefix, pass === PASSES_MAX, done)); pass++);
  for (const { folder, runDir } of labsOf(prefix)) {
    removeEmptyPlaces(runDir);
    rmSync(folder, { recursive: true, force: true });
    done.push(folder);
  }
  removeDeadLinks(done);
  return done;
}

function labsOf(prefix: string): Array<{ folder: string; runDir: string }> {
  const parent = realpathSync(tmpdir());
  const names = readdirSync(parent).filter((name) => join(parent, name).startsWith(prefix));
  return names.map((name) => ({ folder: join(parent, name), runDir: join(parent, name, 'run') }));
}

/**
 * Unmounts and unbinds what nothing is on; true while there was something. `lazily` only for what is in use by a stranger: a loop
 * device on a file whose mount went that way could not be told by its name any more.
 */
async function takeTop(prefix: string, lazily: boolean, done: string[]): Promise<boolean> {
  const mounts = ownMounts()
    .filter(({ mountPoint }) => mountPoint.startsWith(prefix))
    .reverse();
  for (const { mountPoint, fsType } of mounts) {
    // What a killed backup left frozen could not be unmounted.
    if (!fsType.startsWith('fuse')) await succeeds('fsfreeze', '--unfreeze', mountPoint);
    if (await succeeds('umount', ...(lazily ? ['--lazy'] : []), mountPoint)) done.push(mountPoint);
  }
  const loops = boundLoops().filter(({ backingFile }) => backingFile.startsWith(prefix));
  for (const { node, backingFile } of loops) {
    await run('losetup', '--detach', node);
    done.push(`${node} on ${backingFile}`);
  }
  return mounts.length + loops.length > 0;
}

async function endDaemons(prefix: string, done: string[]): Promise<void> {
  const ofLab = new RegExp(`(^|\0)COWBIRD_RUN_DIR=${prefix.replace(/[^A-Za-z0-9/]/g, '\\$&')}`);
  const isOurs = (pid: string): boolean => ofLab.test(readOptional(`/proc/${pid}/environ`));
  const pids = readdirSync('/proc').filter(
    (name) => /^\d+$/.test(name) && Number(name) !== process.pid && isOurs(name),
  );
  for (const pid of pids) {
    const command = readOptional(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim();
    try {
      process.kill(Number(pid), 'SIGKILL');
      done.push(`process ${pid} (${command})`);
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
    }
  }
  for (const until = Date.now() + GONE_WAIT_MS; pids.some(isOurs); ) {
    if (Date.now() > until) throw new Error(`processes do not end although they were killed: ${pids.filter(isOurs)}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function readOptional(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    // It ended meanwhile, or is one that even root may not look into: none of ours.
    if (error instanceof Error && 'code' in error && ['ENOENT', 'ESRCH', 'EACCES'].includes(String(error.code)))
      return '';
    throw error;
  }
}

async function main(): Promise<void> {
  if (process.getuid?.() !== 0) return;
  const fd = openSync(LOCK_PATH, 'a', 0o600);
  try {
    if (!tryFlock(fd, LOCK_EX)) return;
    for (const what of await clearLeftovers(LAB_PREFIX))
      console.error(`Left by tests that were killed, cleared: ${what}`);
  } finally {
    closeSync(fd);
  }
}

if (realpathSync(process.argv[1] ?? '.') === fileURLToPath(import.meta.url)) await main();
