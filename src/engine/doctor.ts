/** What this machine has and lacks for Cowbird, each with what to do. Reads only; asks no file system of ours. */
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { examineTracking } from '../live/support.js';
import { type MemoryLimit, memoryLimitOf } from '../sys/cgroup.js';
import { messageOf } from '../sys/errors.js';
import { trySetIoFlusher } from '../sys/libc.js';
import { checkLimits } from './doctor-limits.js';
import { checkPackages, checkWays } from './doctor-ways.js';
import type { DoctorCheck } from './types.js';

const RESEND_KERNEL = [6, 9] as const;

/** Every check, in the order in which a person would look. */
export function examineMachine(): DoctorCheck[] {
  return [
    checkRoot(),
    checkDevice('/dev/fuse', 'the fuse module: `modprobe fuse`, or a container that is given /dev/fuse'),
    checkDevice('/dev/loop-control', 'the loop module: `modprobe loop`, or a container that is given loop devices'),
    checkKernel(),
    checkFuseTimeout('default_request_timeout'),
    checkFuseTimeout('max_request_timeout'),
    checkIoFlusher(),
    checkMemoryLimit(memoryLimitOf('self'), trySetIoFlusher()),
    checkTracing(),
    ...examineTracking(),
    ...checkLimits(),
    ...checkWays(),
    ...checkPackages(),
  ];
}

function checkRoot(): DoctorCheck {
  const root = process.getuid?.() === 0;
  if (!root) return { name: 'root', status: 'missing', detail: 'not root', fix: 'run as root' };
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  const hasSysAdmin = ((BigInt(`0x${effective}`) >> 21n) & 1n) === 1n;
  if (hasSysAdmin) return { name: 'root', status: 'ok', detail: 'root with CAP_SYS_ADMIN' };
  return {
    name: 'root',
    status: 'missing',
    detail: 'root without CAP_SYS_ADMIN',
    fix: 'give the container CAP_SYS_ADMIN',
  };
}

function checkDevice(path: string, fix: string): DoctorCheck {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return { name: path, status: 'ok', detail: 'there' };
  } catch (error) {
    return { name: path, status: 'missing', detail: messageOf(error), fix };
  }
}

/** FUSE_NOTIFY_RESEND came with Linux 6.9. */
export function hasResend(kernelRelease = release()): boolean {
  const [major = 0, minor = 0] = kernelRelease.split('.').map(Number);
  return major > RESEND_KERNEL[0] || (major === RESEND_KERNEL[0] && minor >= RESEND_KERNEL[1]);
}

function checkKernel(): DoctorCheck {
  if (hasResend())
    return { name: 'kernel', status: 'ok', detail: `${release()}: the driver may die under a mounted volume` };
  return {
    name: 'kernel',
    status: 'warning',
    detail: `${release()}: no FUSE_NOTIFY_RESEND; requests in hand when the engine dies are never answered, and the volume hangs`,
    fix: 'Linux 6.9 or later',
  };
}

/** What an attached volume lacks on this machine, each as one line: what `doctor` says, for whoever never asked it. */
export function attachWarnings(
  checks = [
    checkKernel(),
    checkFuseTimeout('default_request_timeout'),
    checkFuseTimeout('max_request_timeout'),
    checkMemoryLimit(memoryLimitOf('self', [1]), trySetIoFlusher()),
  ],
): string[] {
  return checks
    .filter(({ status }) => status !== 'ok')
    .map(({ name, detail, fix }) => `${name}: ${detail}${fix === undefined ? '' : `; ${fix}`}`);
}

function checkFuseTimeout(name: string): DoctorCheck {
  const path = `/proc/sys/fs/fuse/${name}`;
  if (!existsSync(path)) return { name, status: 'ok', detail: 'this kernel has no such limit' };
  const value = readFileSync(path, 'utf8').trim();
  if (value === '0') return { name, status: 'ok', detail: 'no limit' };
  return {
    name,
    status: 'warning',
    detail: `${value} s: a volume that pauses longer is aborted`,
    fix: `sysctl fs.fuse.${name}=0`,
  };
}

function checkIoFlusher(): DoctorCheck {
  if (trySetIoFlusher()) return { name: 'io flusher', status: 'ok', detail: 'PR_SET_IO_FLUSHER granted' };
  return {
    name: 'io flusher',
    status: 'warning',
    detail: 'PR_SET_IO_FLUSHER refused: under extreme memory pressure reclaim may wait for the driver',
    fix: 'give the daemon CAP_SYS_RESOURCE',
  };
}

/**
 * The keeper leaves limited groups of version 1 where it can; what is found here it could not leave, or was told to stay in.
 * Origins are opened O_DIRECT, so that no page of theirs counts in the group; what the engine allocates besides still does.
 */
export function checkMemoryLimit(limit: MemoryLimit | undefined, isIoFlusher: boolean): DoctorCheck {
  const name = 'memory group';
  if (limit === undefined) return { name, status: 'ok', detail: 'no memory limit' };
  const { version, file, limitBytes } = limit;
  const consequence =
    version === 1 && !isIoFlusher
      ? 'memory pressure in it may make the driver wait for its own volumes, which then hang until the daemon is gone'
      : 'a kill for memory pauses every volume';
  return {
    name,
    status: 'warning',
    detail: `${file} limits the daemon to ${limitBytes} bytes: ${consequence}`,
    fix: 'start the daemon outside of that group: no MemoryMax=, MemoryHigh= or MemoryLimit= for its unit and slice, no --memory for its container; or give the daemon CAP_SYS_RESOURCE',
  };
}

function checkTracing(): DoctorCheck {
  const path = '/proc/sys/kernel/yama/ptrace_scope';
  const value = existsSync(path) ? readFileSync(path, 'utf8').trim() : '0';
  if (value !== '3') return { name: 'ptrace', status: 'ok', detail: 'descriptors can be handed to a new engine' };
  return {
    name: 'ptrace',
    status: 'missing',
    detail: 'kernel.yama.ptrace_scope is 3: the engine cannot take over descriptors',
    fix: 'sysctl kernel.yama.ptrace_scope=2 needs a reboot when it is 3',
  };
}
