/**
 * A machine of its own for a test: QEMU without KVM, a stock kernel, the tools of this machine.
 *
 * Nothing of this machine can be changed from in there: its root is exported read-only. A guest is ended by its pid, whatever
 * happens, and its files lie in one folder that goes with it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { END_LINE, type GuestRoot, makeInitramfs } from './initramfs.js';
import type { GuestKernel } from './kernel.js';

export interface GuestOptions {
  kernel: GuestKernel;
  root: GuestRoot;
  /** What the guest runs, for /bin/sh. */
  script: string;
  /** Raw images, as /dev/vda, /dev/vdb … */
  disks: readonly string[];
  /** Raw images, as /dev/nvme0n1, /dev/nvme1n1 … */
  nvmeDisks?: readonly string[];
  /** On the kernel's command line, beside the others. */
  kernelOptions?: readonly string[];
  timeoutMs: number;
  /** Hears each line of the script's output. */
  onLine?: (line: string) => void;
  signal?: AbortSignal | undefined;
}

export interface GuestResult {
  /** Of the script; undefined: the guest ended without it. */
  exitCode: number | undefined;
  output: string[];
  /** What the kernel said. */
  console: string;
}

const MEMORY_MIB = 2_048;
const CPUS = 2;
/** Without what defends a machine against its programs: emulated, that is a sixth of the time. And little on a slow console. */
const KERNEL_OPTIONS = 'console=ttyS0 panic=-1 oops=panic mitigations=off nokaslr quiet';
const CONSOLE_CHARS_SHOWN = 4_000;

/** Boots a guest, runs its script, and waits until it is off. */
export async function runGuest(options: GuestOptions): Promise<GuestResult> {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-guest-'));
  try {
    const initramfs = await makeInitramfs(options.kernel, options.root, options.script, folder);
    const consolePath = join(folder, 'console');
    const child = spawn('qemu-system-x86_64', qemuArguments(options, initramfs, consolePath), {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    // A test that is ended in the middle ends its guest, too.
    const onExit = (): unknown => child.kill('SIGKILL');
    process.once('exit', onExit);
    const { output, problem } = await follow(child, options).finally(() => process.off('exit', onExit));
    const console = consoleOf(consolePath);
    if (problem !== undefined) throw new Error(`${problem}; the guest said:\n${output.join('\n')}\n${console}`);
    const digits = END_LINE.exec(output.at(-1) ?? '')?.[1];
    if (digits !== undefined) output.pop();
    return { exitCode: digits === undefined ? undefined : Number(digits), output, console };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function qemuArguments(
  { kernel, disks, nvmeDisks = [], kernelOptions = [] }: GuestOptions,
  initramfs: string,
  consolePath: string,
): string[] {
  const drives = disks.flatMap((path) => [
    '-drive',
    `file=${path},format=raw,if=virtio,cache=writeback,discard=unmap,detect-zeroes=off`,
  ]);
  const nvmeDrives = nvmeDisks.flatMap((path, i) => [
    ...['-drive', `id=nvme${i},file=${path},format=raw,if=none,cache=writeback,discard=unmap,detect-zeroes=off`],
    ...['-device', `nvme,serial=cowbird-${i},drive=nvme${i}`],
  ]);
  return [
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', String(CPUS), '-m', String(MEMORY_MIB)],
    ...['-nodefaults', '-no-reboot', '-display', 'none', '-serial', `file:${consolePath}`, '-serial', 'stdio'],
    ...['-kernel', kernel.imagePath, '-initrd', initramfs, '-append', [KERNEL_OPTIONS, ...kernelOptions].join(' ')],
    ...['-virtfs', 'local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap'],
    ...drives,
    ...nvmeDrives,
  ];
}

/** Everything that the guest says until it is off, or why it was not waited for. */
async function follow(
  child: ChildProcess,
  { timeoutMs, onLine, signal }: GuestOptions,
): Promise<{ output: string[]; problem: string | undefined }> {
  const output: string[] = [];
  let problem: string | undefined;
  const end = (why: string): void => {
    problem ??= why;
    child.kill('SIGKILL');
  };
  const timer = setTimeout(() => end(`The guest did not end within ${timeoutMs / 1_000} s`), timeoutMs);
  const onAbort = (): void => end('The guest was ended');
  signal?.addEventListener('abort', onAbort, { once: true });
  if (signal?.aborted === true) onAbort();
  let errors = '';
  child.stderr?.on('data', (bytes: Buffer) => {
    errors += bytes.toString();
  });
  if (child.stdout !== null)
    createInterface({ input: child.stdout }).on('line', (line) => {
      const text = line.replace(/\r$/, '');
      output.push(text);
      if (!END_LINE.test(text)) onLine?.(text);
    });
  const status = await new Promise<string | undefined>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, by) => resolve(code === 0 ? undefined : `ended with ${code ?? by} ${errors.trim()}`));
  });
  clearTimeout(timer);
  signal?.removeEventListener('abort', onAbort);
  return { output, problem: problem ?? (status === undefined ? undefined : `QEMU: ${status}`) };
}

function consoleOf(path: string): string {
  return readFileSync(path, 'utf8').slice(-CONSOLE_CHARS_SHOWN);
}
