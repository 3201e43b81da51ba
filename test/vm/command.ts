/**
 * `npm run test:vm -- [--kernel PACKAGE] [FILE…]`: boots a guest with a stock kernel and runs compiled tests in it, by default
 * `vm/inside` and `vm/inside-more`. FILE is a test as it lies in `test/`, without its ending: `nine-steps`.
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { run } from '../lab.js';
import { type GuestResult, runGuest } from './guest.js';
import { SCRATCH } from './initramfs.js';
import { DEFAULT_KERNEL, guestKernel } from './kernel.js';

/** This file runs from `dist/test/vm`. */
export const CHECKOUT = resolve(fileURLToPath(import.meta.url), '..', '..', '..', '..');
/** Unpacked kernels. */
export const CACHE = join(CHECKOUT, '.cowbird-setup', 'vm');
const SCRATCH_BYTES = 8 * 1_073_741_824;
/** A disk that takes discards of several ranges. */
const NVME_BYTES = 402_653_184;
/** For an attached volume with ext4; loading each of the others takes seconds of a guest. */
const MODULES = ['fuse', 'loop'];
const MORE_MODULES = ['xfs', 'btrfs', 'zram', 'dm-mod', 'nvme', 'nd_e820', 'nd_pmem'];
/** A piece of memory that is a disk, /dev/pmem0. */
const PMEM_OPTIONS = ['memmap=64M!1G'];
const TIMEOUT_MS = 20 * 60_000;
const PROGRAMS = ['qemu-system-x86_64', 'busybox', 'cpio', 'depmod', 'dpkg-deb', 'apt-get', 'mkfs.ext4'];
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Why no guest can be booted here; false where it can. */
export async function whyNoGuest(): Promise<string | false> {
  if (process.arch !== 'x64') return 'guests are x86-64';
  if (process.getuid?.() !== 0) return 'needs root';
  const have = await run('sh', '-c', `PATH="${PATH}" which ${PROGRAMS.join(' ')}; true`);
  const missing = PROGRAMS.filter((name) => !have.includes(`/${name}\n`));
  return missing.length > 0 && `needs ${missing.join(', ')}`;
}

export interface GuestTests {
  kernel: string;
  /** Compiled test files below `dist/test`, without `.js`. */
  files: readonly string[];
  /** Of the kernel, beside those that an attached volume takes. */
  moreModules?: readonly string[];
  kernelOptions?: readonly string[];
  timeoutMs: number;
  onLine: (line: string) => void;
  signal?: AbortSignal;
}

/** Runs tests in a guest; its exit code is that of the tests. */
export async function runGuestTests({
  kernel: name,
  files,
  moreModules = [],
  ...options
}: GuestTests): Promise<GuestResult> {
  mkdirSync(CACHE, { recursive: true });
  const kernel = await guestKernel(name, CACHE);
  const scratch = join(CACHE, `scratch-${process.pid}.img`);
  const nvme = join(CACHE, `nvme-${process.pid}.img`);
  try {
    await run('truncate', '-s', String(NVME_BYTES), nvme);
    await run('truncate', '-s', String(SCRATCH_BYTES), scratch);
    await run('mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=1,nodiscard', scratch);
    const paths = files.map((file) => join(CHECKOUT, 'dist', 'test', `${file}.js`));
    const script = `export PATH=${PATH} HOME=/root TMPDIR=${SCRATCH} LC_ALL=C
for module in ${[...MODULES, ...moreModules].join(' ')}; do modprobe "$module" || echo "guest: no module $module"; done
echo "guest: $(uname -r), node $(node --version)"
cd ${SCRATCH} && status=0
for file in ${paths.join(' ')}; do ${process.execPath} --test-reporter=tap "$file" || status=1; done
exit $status
`;
    return await runGuest({ ...options, kernel, root: 'host', disks: [scratch], nvmeDisks: [nvme], script });
  } finally {
    for (const path of [scratch, nvme]) rmSync(path, { force: true });
  }
}

/** Resolves to the exit code. */
export async function main(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    options: { kernel: { type: 'string', default: DEFAULT_KERNEL } },
    allowPositionals: true,
  });
  const why = await whyNoGuest();
  if (why !== false) {
    process.stderr.write(`No guest can be booted here: ${why}\n`);
    return 1;
  }
  const files = positionals.length === 0 ? ['vm/inside', 'vm/inside-more'] : positionals.map((file) => `${file}.test`);
  const unknown = files.find((file) => !existsSync(join(CHECKOUT, 'dist', 'test', `${file}.js`)));
  if (unknown !== undefined) {
    process.stderr.write(`There is no test ${unknown.replace(/\.test$/, '')}\n`);
    return 2;
  }
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => controller.abort());
  const startedAt = Date.now();
  const onLine = (line: string): void => {
    process.stdout.write(`${line}\n`);
  };
  const { kernel } = values;
  const { signal } = controller;
  const more = { moreModules: MORE_MODULES, kernelOptions: PMEM_OPTIONS };
  const request = { kernel, files, ...more, timeoutMs: TIMEOUT_MS, onLine, signal };
  const { exitCode } = await runGuestTests(request);
  process.stderr.write(`The guest ended with ${exitCode}, after ${Math.round((Date.now() - startedAt) / 1_000)} s\n`);
  return exitCode ?? 1;
}
