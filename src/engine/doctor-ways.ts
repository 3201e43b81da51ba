/**
 * Which of the three ways of seeing writes this machine has, with what each needs of kernel and packages. What a way lacks is
 * named in the order in which it would be met; nothing is loaded, mounted or opened for writing to find out.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';
import { errnoOfError } from '../sys/errors.js';
import type { DoctorCheck } from './types.js';

/** Something that a way needs: whether it is there, and what to do where it is not. */
interface Need {
  what: string;
  isThere: boolean;
  fix: string;
}

const BPF_KERNEL = [5, 17] as const;

/** One check a way. The interposed one is what Cowbird works by; without it nothing does. */
export function checkWays(): DoctorCheck[] {
  return [
    verdict('way: interposed', 'missing', 'volumes are attached with `cowbird attach` (FUSE and loop devices)', [
      { what: 'root', isThere: process.getuid?.() === 0, fix: 'run as root' },
      { what: 'FUSE', isThere: hasFuse(), fix: 'modprobe fuse' },
      { what: 'loop devices', isThere: existsSync('/dev/loop-control'), fix: 'modprobe loop' },
      {
        what: '/dev/fuse',
        isThere: existsSync('/dev/fuse'),
        fix: 'modprobe fuse, or a container that is given /dev/fuse',
      },
    ]),
    verdict('way: live', 'warning', 'mounted disks can be tracked in place (eBPF)', liveNeeds()),
    verdict('way: device mapper', 'warning', 'volumes of LVM and LUKS can be tracked below', mapperNeeds()),
  ];
}

/** What a machine can do is told also of a way that this version does not go: `name` says which those are. */
function verdict(name: string, without: 'missing' | 'warning', detail: string, needs: readonly Need[]): DoctorCheck {
  const lacking = needs.filter(({ isThere }) => !isThere);
  if (lacking.length === 0) return { name, status: 'ok', detail };
  return {
    name,
    status: without,
    detail: `not here: there is no ${lacking.map(({ what }) => what).join(', no ')}`,
    fix: [...new Set(lacking.map(({ fix }) => fix))].join('; '),
  };
}

function hasFuse(): boolean {
  return /\bfuse$/m.test(readOptional('/proc/filesystems') ?? '');
}

function liveNeeds(): Need[] {
  return [
    {
      what: 'live tracker in this version of Cowbird',
      isThere: existsSync(new URL('../live/', import.meta.url)),
      fix: 'attach the volume: that way works now',
    },
    {
      what: `kernel ${BPF_KERNEL.join('.')} (this one is ${release()})`,
      isThere: isAtLeast(release(), BPF_KERNEL),
      fix: 'a newer kernel',
    },
    {
      what: 'BTF of the kernel (/sys/kernel/btf/vmlinux)',
      isThere: existsSync('/sys/kernel/btf/vmlinux'),
      fix: 'a kernel with CONFIG_DEBUG_INFO_BTF=y',
    },
    { what: 'libbpf', isThere: hasLibrary('libbpf.so.1'), fix: 'apt-get install libbpf1' },
  ];
}

function mapperNeeds(): Need[] {
  const modules = `/lib/modules/${release()}/kernel/drivers/md`;
  const hasSnapshot =
    existsSync('/sys/module/dm_snapshot') ||
    ['dm-snapshot.ko', 'dm-snapshot.ko.xz', 'dm-snapshot.ko.zst'].some((name) => existsSync(join(modules, name)));
  return [
    {
      what: 'tracker on the device mapper in this version of Cowbird',
      isThere: false,
      fix: 'attach the volume: that way works now, on LVM and LUKS too',
    },
    {
      what: 'device mapper',
      isThere: /\bdevice-mapper$/m.test(readOptional('/proc/misc') ?? ''),
      fix: 'modprobe dm-mod',
    },
    { what: 'dm-snapshot', isThere: hasSnapshot, fix: 'a kernel with CONFIG_DM_SNAPSHOT' },
    { what: 'dmsetup', isThere: hasProgram('dmsetup'), fix: 'apt-get install dmsetup' },
  ];
}

/** Programs that a feature calls, beside what is always needed. */
export function checkPackages(): DoctorCheck[] {
  const needed = [
    { feature: 'attach --boot', program: 'systemctl', fix: 'apt-get install systemd' },
    { feature: 'attach --boot', program: 'udevadm', fix: 'apt-get install udev' },
  ];
  return needed.map(({ feature, program, fix }): DoctorCheck => {
    const name = `program: ${program}`;
    if (hasProgram(program)) return { name, status: 'ok', detail: `there, for ${feature}` };
    return { name, status: 'warning', detail: `not there: ${feature} needs it`, fix };
  });
}

function isAtLeast(kernel: string, [wantedMajor, wantedMinor]: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = kernel.split('.').map(Number);
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}

function hasProgram(name: string): boolean {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  return folders.some((folder) => folder !== '' && existsSync(join(folder, name)));
}

/** In a folder of the loader's, or below one (`/usr/lib/x86_64-linux-gnu`). */
function hasLibrary(name: string): boolean {
  return ['/usr/lib', '/usr/lib64', '/lib', '/usr/local/lib'].some(
    (folder) =>
      existsSync(join(folder, name)) || listOptional(folder).some((inner) => existsSync(join(folder, inner, name))),
  );
}

function readOptional(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ([2, 13].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}

function listOptional(path: string): string[] {
  try {
    return readdirSync(path).filter((name) => name.includes('linux-gnu'));
  } catch (error) {
    if ([2, 13, 20].includes(errnoOfError(error))) return [];
    throw error;
  }
}
