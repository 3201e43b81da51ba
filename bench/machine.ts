/** What the figures were taken on, without the names of hosts or folders. */
import { readFileSync, statSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { sysfsName } from '../src/sys/blkdev.js';
import { VERSION } from '../src/version.js';
import { type Lab, MIB } from './lab.js';
import { CPU_COUNT } from './options.js';
import type { Machine } from './results.js';

export async function describeMachine(lab: Lab): Promise<Machine> {
  const firstLine = async (program: string, ...args: string[]): Promise<string> => {
    const ran = await lab.run(program, args).catch(() => undefined);
    return (ran?.stdout ?? 'none').split('\n')[0]?.trim() ?? '';
  };
  return {
    kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim(),
    architecture: process.arch,
    cpu: cpus()[0]?.model ?? 'unknown',
    cpuCount: CPU_COUNT,
    memoryMib: Math.round(totalmem() / MIB),
    fileSystem: await firstLine('findmnt', '-n', '-o', 'FSTYPE', '-T', lab.folder),
    device: deviceOf(lab.folder),
    versions: {
      cowbird: VERSION,
      node: process.version,
      fio: await firstLine('fio', '--version'),
      qemu: await firstLine('qemu-storage-daemon', '--version'),
      gcc: await firstLine('gcc', '--version'),
    },
  };
}

/** The kind of device that a folder lies on: `vda (virtio), not rotational, scheduler none`. */
function deviceOf(folder: string): string {
  // A file system of its own device number (btrfs, tmpfs) has no device in sysfs.
  const name = sysfsName(statSync(folder).dev);
  if (name === undefined) return 'no single block device';
  const attribute = (path: string): string | undefined => {
    try {
      return readFileSync(`/sys/class/block/${name}/${path}`, 'utf8').trim();
    } catch (error) {
      if (error instanceof Error && 'code' in error) return undefined;
      throw error;
    }
  };
  const rotational = attribute('queue/rotational') ?? attribute('../queue/rotational');
  const scheduler = attribute('queue/scheduler') ?? attribute('../queue/scheduler');
  const inUse = /\[(\S+)\]/.exec(scheduler ?? '')?.[1] ?? scheduler ?? 'unknown';
  return `${name}, ${rotational === '1' ? 'rotational' : 'not rotational'}, scheduler ${inUse}`;
}
