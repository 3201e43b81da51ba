/**
 * Folders of devices in the run directory, `cowbird-device-<pid>-XXXXXX`: each has the FUSE file that a loop device stands on.
 * The name is the mark of a loop device of ours, and says which process serves it.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { boundLoops, releaseLoop } from '../sys/blkdev.js';
import { errnoOfError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { ownMounts } from '../sys/mounts.js';

export const DEVICE_FOLDER = 'cowbird-device-';
/** Its program's name, which is in the command line of a process that serves a device. */
const PROGRAM = 'device-main';
const GONE: readonly number[] = [2, 3];

/** A folder for the device of this process. */
export function makeDeviceFolder(runDir: string): string {
  return mkdtempSync(join(runDir, `${DEVICE_FOLDER}${process.pid}-`));
}

/** The FUSE file in a folder. */
export function deviceFile(folder: string): string {
  return join(folder, 'device');
}

/** Whether the process is still there that serves, or served, a device on this file of ours. */
export function isServed(file: string): boolean {
  const pid = pidOf(basename(dirname(file)));
  return pid !== undefined && isServing(pid);
}

function pidOf(folder: string): string | undefined {
  return new RegExp(`^${DEVICE_FOLDER}(\\d+)-`).exec(folder)?.[1];
}

/** Takes away what devices left whose process was killed; what is still mounted stays until it is unmounted. */
export function sweepDevices(runDir: string): void {
  for (const name of readdirSync(runDir)) {
    const pid = pidOf(name);
    if (pid === undefined || isServing(pid)) continue;
    removeDevice(join(runDir, name));
  }
}

/** Takes the device of a folder away, but for one that is mounted. */
export function removeDevice(folder: string): void {
  const file = deviceFile(folder);
  const bound = boundLoops().filter(({ backingFile }) => backingFile === file);
  if (bound.some(({ node }) => ownMounts().some(({ source }) => source === node))) return;
  for (const { node } of bound) releaseLoop(node, file);
  if (ownMounts().some(({ mountPoint }) => mountPoint === file)) libc.umount(file, libc.MNT_DETACH);
  rmSync(folder, { recursive: true, force: true });
}

/** Another process may have the number by now: then something stays that does no harm. */
function isServing(pid: string): boolean {
  try {
    const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    return line === '' ? isEnding(pid) : line.includes(PROGRAM);
  } catch (error) {
    if (GONE.includes(errnoOfError(error))) return false;
    throw error;
  }
}

const PF_EXITING = 0x4;

/**
 * Whether a process without a command line is ending: its memory goes before its files, with which it has the repository's lock, and
 * those are all its threads' (proc_pid_stat(5): state, flags).
 */
function isEnding(pid: string): boolean {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const [state, , , , , , flags] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const isExiting = (Number(flags) & PF_EXITING) !== 0;
  return isExiting && (state !== 'Z' || readdirSync(`/proc/${pid}/task`).length > 1);
}
