/** Whether this machine can track changes in the kernel, and what to do where it cannot: for `doctor` and for refusals alike. */
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { hasTypedTracepoint, LIBBPF_FIX, libbpfProblem } from '../sys/bpf.js';
import { CowbirdError, messageOf } from '../sys/errors.js';

/** bpf_loop(). */
const KERNEL = [5, 17] as const;
const TRACEPOINTS = ['block_rq_issue', 'block_rq_complete', 'block_bio_queue', 'block_bio_complete'];
const CAP_SYS_ADMIN = 21n;
const LOCKDOWN = '/sys/kernel/security/lockdown';

/** One thing that live backups need. */
export interface SupportCheck {
  name: string;
  /** A machine that lacks it can do everything else. */
  status: 'ok' | 'warning';
  detail: string;
  fix?: string;
}

/** What is looked at, so that a test can say how a machine is. */
export interface Machine {
  kernel: string;
  hasBtf: boolean;
  isRealtime: boolean;
  /** The kernel's list of file systems. */
  fileSystems: string;
  /** Effective capabilities. */
  capabilities: bigint;
  lockdown: string;
  libbpf: string | undefined;
  /** Why the tracepoint cannot be used; undefined where it can. */
  tracepoint: string | undefined;
}

function thisMachine(): Machine {
  const libbpf = libbpfProblem();
  const hasBtf = existsSync('/sys/kernel/btf/vmlinux');
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return {
    kernel: release(),
    hasBtf,
    isRealtime: existsSync('/sys/kernel/realtime'),
    fileSystems: readFileSync('/proc/filesystems', 'utf8'),
    capabilities: BigInt(`0x${effective}`),
    lockdown: existsSync(LOCKDOWN) ? readFileSync(LOCKDOWN, 'utf8') : '',
    libbpf,
    tracepoint: libbpf === undefined && hasBtf ? tracepointProblem() : 'not looked for',
  };
}

function tracepointProblem(): string | undefined {
  try {
    const missing = TRACEPOINTS.filter((name) => !hasTypedTracepoint(name));
    return missing.length === 0 ? undefined : `no ${missing.join(', ')}`;
  } catch (error) {
    return messageOf(error);
  }
}

/** Every check of live backups, in the order in which a person would see to them. */
export function examineTracking(machine: Machine = thisMachine()): SupportCheck[] {
  const [major = 0, minor = 0] = machine.kernel.split('.').map(Number);
  const isNewEnough = major > KERNEL[0] || (major === KERNEL[0] && minor >= KERNEL[1]);
  const check = (name: string, isOk: boolean, ok: string, detail: string, fix: string): SupportCheck =>
    isOk ? { name, status: 'ok', detail: ok } : { name, status: 'warning', detail: `no live backups: ${detail}`, fix };
  const isAllowed = ((machine.capabilities >> CAP_SYS_ADMIN) & 1n) === 1n;
  return [
    check(
      'live: kernel',
      isNewEnough && !machine.isRealtime,
      `${machine.kernel} has bpf_loop`,
      machine.isRealtime ? `${machine.kernel} is a real-time kernel (PREEMPT_RT)` : `${machine.kernel} has no bpf_loop`,
      machine.isRealtime
        ? 'a kernel without PREEMPT_RT, or `cowbird attach`'
        : 'Linux 5.17 or later, or `cowbird attach`',
    ),
    check(
      'live: BTF',
      machine.hasBtf,
      'types of this kernel are known',
      '/sys/kernel/btf/vmlinux is not there',
      'a kernel with CONFIG_DEBUG_INFO_BTF=y: those of Debian, Ubuntu, Fedora and RHEL have it',
    ),
    check('live: libbpf', machine.libbpf === undefined, 'libbpf 1 is installed', machine.libbpf ?? '', LIBBPF_FIX),
    check(
      'live: tracepoint',
      machine.tracepoint === undefined,
      'block_rq_complete and block_bio_complete can be used',
      `the block layer's tracepoints cannot be used (${machine.tracepoint ?? ''})`,
      'what is missing above first; then a kernel with CONFIG_BLOCK, CONFIG_TRACEPOINTS and CONFIG_BPF_SYSCALL',
    ),
    check(
      'live: bpffs',
      /^nodev\s+bpf$/m.test(machine.fileSystems),
      'can be mounted on /sys/fs/bpf, and is when it is needed',
      'this kernel has no bpf file system',
      'a kernel with CONFIG_BPF_SYSCALL=y',
    ),
    check(
      'live: capability',
      isAllowed && !machine.lockdown.includes('[confidentiality]'),
      'programs may be loaded',
      isAllowed ? 'the kernel is locked down (confidentiality)' : 'without CAP_SYS_ADMIN',
      isAllowed ? 'boot with lockdown=integrity or none' : 'run as root, in a container with CAP_SYS_ADMIN',
    ),
  ];
}

/** @throws {CowbirdError} ENOTSUP with the first thing that is missing, and what to do. */
export function requireTracking(): void {
  const missing = examineTracking().find(({ status }) => status !== 'ok');
  if (missing !== undefined)
    throw new CowbirdError('ENOTSUP', `${missing.detail}${missing.fix === undefined ? '' : `; to do: ${missing.fix}`}`);
}
