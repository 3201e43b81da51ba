/** Limits of this process and of the kernel that a daemon may meet, each with what is needed and how it is raised. */
import { readFileSync } from 'node:fs';
import { boundLoops } from '../sys/blkdev.js';
import { errnoOfError } from '../sys/errors.js';
import { MAX_WORKERS } from '../tracer/layout.js';
import type { DoctorCheck } from './types.js';

/** Request and copy buffer of a worker, with what else it locks. */
const LOCKED_BYTES_PER_WORKER = 2_200_000;
/** Origin, memory, FUSE descriptors and store of a volume, in keeper and engine. */
const DESCRIPTORS_PER_VOLUME = 5;
const VOLUMES_EXPECTED = 100;
const CAP_IPC_LOCK = 14n;
const PAGES_PER_REQUEST = 256;

export function checkLimits(): DoctorCheck[] {
  return [checkLockedMemory(), checkDescriptors(), checkLoopDevices(), checkRequestPages()];
}

/** Buffers that are not locked cost an I/O error when the engine is killed while the kernel copies into them. */
function checkLockedMemory(): DoctorCheck {
  const name = 'limit: locked memory';
  const needed = MAX_WORKERS * LOCKED_BYTES_PER_WORKER;
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  if (((BigInt(`0x${effective}`) >> CAP_IPC_LOCK) & 1n) === 1n)
    return { name, status: 'ok', detail: 'no limit (CAP_IPC_LOCK)' };
  const limit = softLimit('Max locked memory');
  if (limit >= needed) return { name, status: 'ok', detail: `${shown(limit)} bytes` };
  return {
    name,
    status: 'missing',
    detail: `${shown(limit)} bytes without CAP_IPC_LOCK; ${MAX_WORKERS} workers lock ${needed}`,
    fix: 'LimitMEMLOCK=infinity in the unit (`ulimit -l unlimited` in a shell), or give the container CAP_IPC_LOCK',
  };
}

function checkDescriptors(): DoctorCheck {
  const name = 'limit: descriptors';
  const limit = softLimit('Max open files');
  const volumes = Math.floor((limit - 64) / DESCRIPTORS_PER_VOLUME);
  if (volumes >= VOLUMES_EXPECTED) return { name, status: 'ok', detail: `${shown(limit)} open files` };
  return {
    name,
    status: 'warning',
    detail: `${limit} open files: about ${Math.max(0, volumes)} volumes with a snapshot each`,
    fix: 'LimitNOFILE=65536 in the unit, or `ulimit -n 65536` before `cowbird daemon start`',
  };
}

/** The kernel makes loop devices as they are asked for; a container has only those whose nodes it was given. */
function checkLoopDevices(): DoctorCheck {
  const name = 'limit: loop devices';
  const parameter = readOptional('/sys/module/loop/parameters/max_loop')?.trim() ?? '0';
  const inUse = boundLoops().length;
  return { name, status: 'ok', detail: `${inUse} in use; more are made as needed (max_loop ${parameter} at boot)` };
}

function checkRequestPages(): DoctorCheck {
  const name = 'limit: FUSE request';
  const text = readOptional('/proc/sys/fs/fuse/max_pages_limit')?.trim();
  if (text === undefined || Number(text) >= PAGES_PER_REQUEST)
    return { name, status: 'ok', detail: 'requests of 1 MiB' };
  return {
    name,
    status: 'warning',
    detail: `requests of ${text} pages: large ones are cut in pieces, which costs speed`,
    fix: `sysctl fs.fuse.max_pages_limit=${PAGES_PER_REQUEST}`,
  };
}

function softLimit(name: string): number {
  const line = readFileSync('/proc/self/limits', 'utf8')
    .split('\n')
    .find((candidate) => candidate.startsWith(name));
  const value = line?.slice(name.length).trim().split(/\s+/)[0] ?? '0';
  return value === 'unlimited' ? Number.POSITIVE_INFINITY : Number(value);
}

function shown(limit: number): string {
  return limit === Number.POSITIVE_INFINITY ? 'unlimited' : String(limit);
}

function readOptional(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ([2, 13].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}
