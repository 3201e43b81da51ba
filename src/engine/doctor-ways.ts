/**
 * Which of the three ways of seeing writes this machine has, with what each needs of kernel and packages. What a way lacks is
 * named in the order in which it would be met; nothing is loaded, mounted or opened for writing to find out.
 */
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';
import { examineTracking } from '../live/support.js';
import { errnoOfError } from '../sys/errors.js';
import type { DoctorCheck } from './types.js';

/** Something that a way needs: whether it is there, and what to do where it is not. */
interface Need {
  what: string;
  isThere: boolean;
  fix: string;
}

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
    liveWay(),
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

/** What it needs in particular has lines of its own. */
function liveWay(): DoctorCheck {
  const name = 'way: live';
  const lacking = examineTracking().filter(({ status }) => status !== 'ok');
  if (lacking.length === 0)
    return { name, status: 'ok', detail: 'mounted disks are tracked and backed up in place (eBPF)' };
  const fix = [...new Set(lacking.map((check) => check.fix ?? check.name))].join('; ');
  return { name, status: 'warning', detail: `not here: see ${lacking.map((check) => check.name).join(', ')}`, fix };
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

function hasProgram(name: string): boolean {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  return folders.some((folder) => folder !== '' && existsSync(join(folder, name)));
}

function readOptional(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ([2, 13].includes(errnoOfError(error))) return undefined;
    throw error;
  }
}
