/** The image that every subject gets a copy of: wholly written with random bytes, ext4 on it, one wholly written file. */
import { mkdirSync, readFileSync, statfsSync } from 'node:fs';
import { basename } from 'node:path';
import { type Lab, MIB, released, unmounted } from './lab.js';
import type { Scale } from './options.js';
import { Refused } from './processes.js';

export const FILE_NAME = 'data';
const COPY_TIMEOUT_MS = 600_000;

/** Random bytes to a file or device, past the page cache. */
export async function fillRandom(lab: Lab, path: string, mib: number): Promise<void> {
  const args = ['if=/dev/urandom', `of=${path}`, 'bs=1M', `count=${mib}`, 'oflag=direct', 'conv=notrunc,fsync'];
  await lab.run('dd', [...args, 'iflag=fullblock', 'status=none'], { timeoutMs: COPY_TIMEOUT_MS });
}

/** Blocks of 4 KiB; no initialization left for later, which would write while something else is measured. */
export async function makeFileSystem(lab: Lab, node: string, ...options: string[]): Promise<void> {
  const eager = 'nodiscard,lazy_itable_init=0,lazy_journal_init=0';
  await lab.run('mkfs.ext4', ['-q', '-F', '-b', '4096', '-E', eager, ...options, node], { timeoutMs: 120_000 });
}

export async function bindPlainLoop(lab: Lab, file: string, direct: boolean): Promise<string> {
  const { stdout } = await lab.run('losetup', ['-f', '--show', `--direct-io=${direct ? 'on' : 'off'}`, file]);
  const node = stdout.trim();
  // The kernel falls back silently where it cannot; then another thing would be measured than is told.
  const isDirect = readFileSync(`/sys/block/${basename(node)}/loop/dio`, 'utf8').trim() === '1';
  if (isDirect !== direct) throw new Error(`${node} over ${file} ${isDirect ? 'uses' : 'does not use'} direct I/O`);
  return node;
}

export async function mountAt(lab: Lab, node: string, name: string, ...options: string[]): Promise<string> {
  const at = lab.path(`mnt-${name}`);
  mkdirSync(at, { recursive: true });
  await lab.run('mount', ['-t', 'ext4', ...options, node, at]);
  return at;
}

/** Makes the master image; returns its path. */
export async function makeMaster(lab: Lab, scale: Scale): Promise<string> {
  const master = lab.path('master.img');
  await fillRandom(lab, master, scale.imageMib);
  const node = await bindPlainLoop(lab, master, true);
  await makeFileSystem(lab, node);
  const at = await mountAt(lab, node, 'master');
  await fillRandom(lab, `${at}/${FILE_NAME}`, scale.fileMib);
  await unmounted(at);
  await released(node);
  return master;
}

/** A copy with no block shared and none left out. */
export async function copyImage(lab: Lab, from: string, to: string): Promise<void> {
  await lab.run('cp', ['--sparse=never', '--reflink=never', from, to], { timeoutMs: COPY_TIMEOUT_MS });
}

/** Refuses to begin what would fill the disk. */
export function requireSpace(lab: Lab, mib: number): void {
  const { bavail, bsize } = statfsSync(lab.folder);
  const freeMib = Math.floor((bavail * bsize) / MIB);
  if (freeMib < mib) throw new Refused(`${lab.folder} needs ${mib} MiB of free space and has ${freeMib}: see --dir`);
}
