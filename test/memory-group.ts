/** A memory cgroup of version 1 for one test, and writeback through a volume from within it. */
import { existsSync, mkdirSync, readFileSync, realpathSync, rmdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { ownMounts } from '../src/sys/mounts.js';
import { program } from './harness.js';
import { type Lab, MIB, run, until } from './lab.js';

const LOOK_MS = 50;
const MOVE_MS_MAX = 2_000;

export class MemoryGroup {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  /** Undefined where the kernel has no memory controller of version 1. It is mounted for the test where it is not. */
  static async create(lab: Lab, limitBytes: number): Promise<MemoryGroup | undefined> {
    const top = await hierarchy(lab);
    if (top === undefined) return undefined;
    const own = join(top, /^\d+:memory:(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1] ?? '/');
    const group = new MemoryGroup(join(existsSync(own) ? own : top, basename(lab.folder)));
    mkdirSync(group.folder);
    lab.onEnd(() => group.#remove());
    writeFileSync(join(group.folder, 'memory.limit_in_bytes'), `${limitBytes}`);
    return group;
  }

  number(file: string): number {
    return Number(readFileSync(join(this.folder, file), 'utf8'));
  }

  take(pid: number): void {
    writeFileSync(join(this.folder, 'cgroup.procs'), `${pid}`);
  }

  get pids(): number[] {
    return readFileSync(join(this.folder, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
  }

  /** Within the time that a program may take to notice. */
  async untilLeftBy(...pids: number[]): Promise<void> {
    await until('they have left the group', () => !this.pids.some((pid) => pids.includes(pid)), MOVE_MS_MAX);
  }

  /** Overwrites files with buffered writes, from within the group, until it is stopped. */
  writer(lab: Lab, files: string[]): () => Promise<void> {
    const write = 'dd if=/dev/zero of="$f" bs=256k count=400 conv=notrunc status=none || exit';
    const loop = `echo $$ > "$0/cgroup.procs"; while :; do for f; do ${write}; done; done`;
    return program(lab, 'sh', ['-c', loop, this.folder, ...files]);
  }

  async #remove(): Promise<void> {
    await until('the group is removed', () => {
      for (const pid of this.pids) writeFileSync(join(dirname(this.folder), 'cgroup.procs'), `${pid}`);
      rmdirSync(this.folder);
      return true;
    });
  }
}

async function hierarchy(lab: Lab): Promise<string | undefined> {
  const found = ownMounts().find(({ fsType, superOptions }) => fsType === 'cgroup' && superOptions.includes('memory'));
  if (found !== undefined) return found.mountPoint;
  const at = lab.path('cgroup');
  mkdirSync(at);
  try {
    await run('mount', '-t', 'cgroup', '-o', 'memory', 'cowbird-test', at);
  } catch {
    return undefined;
  }
  lab.onEnd(() => run('umount', at));
  return at;
}

/** Watches what reaches a volume's device for a while: the longest time without progress, and how much it was. */
export async function watchWriteback(node: string, ms: number): Promise<{ longestMs: number; writtenBytes: number }> {
  const path = `/sys/block/${basename(realpathSync(node))}/stat`;
  // Sectors written: Documentation/block/stat.rst.
  const written = (): number => Number(readFileSync(path, 'utf8').trim().split(/\s+/)[6]) * 512;
  const start = written();
  const end = Date.now() + ms;
  let last = { bytes: start, at: Date.now() };
  let longestMs = 0;
  while (Date.now() < end) {
    await pause(LOOK_MS);
    longestMs = Math.max(longestMs, Date.now() - last.at);
    if (written() !== last.bytes) last = { bytes: written(), at: Date.now() };
  }
  return { longestMs, writtenBytes: last.bytes - start };
}

/** Ends every request of a lab's volumes with an error: what waits for them can be taken down. */
export function abortVolumes(lab: Lab): void {
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [, , device = '', , mountPoint = ''] = line.split(' ');
    const abort = `/sys/fs/fuse/connections/${device.split(':')[1]}/abort`;
    if (mountPoint.startsWith(`${lab.path('run/fuse')}/`) && existsSync(abort)) writeFileSync(abort, '1');
  }
}

export const LIMIT_BYTES = 64 * MIB;
