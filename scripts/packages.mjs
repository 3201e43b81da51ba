/** Debian packages: which are needed for the demo, the tests and the bench, by the programs that are needed from them. */
import { accessSync, constants, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { ADMIN_PATHS, environment, Interrupted, pause, STATE, say } from './children.mjs';

const MULTIARCH = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' };

/** Where Debian has a library of this machine's architecture. */
function libraryPath(name) {
  return join('/usr/lib', MULTIARCH[process.arch] ?? '', name);
}

export const PACKAGES = {
  demo: [
    { package: 'e2fsprogs', programs: ['mkfs.ext4', 'e2fsck', 'debugfs', 'chattr'] },
    { package: 'mount', programs: ['mount', 'umount', 'losetup'] },
    { package: 'util-linux', programs: ['blkid', 'findmnt', 'fstrim', 'fsfreeze'] },
  ],
  test: [
    { package: 'btrfs-progs', programs: ['mkfs.btrfs'] },
    { package: 'busybox-static', files: ['/var/lib/dpkg/info/busybox-static.list'] },
    { package: 'cpio', programs: ['cpio'] },
    { package: 'dmsetup', programs: ['dmsetup'] },
    { package: 'fdisk', programs: ['sfdisk'] },
    { package: 'fio', programs: ['fio'] },
    { package: 'kmod', programs: ['depmod', 'modprobe'] },
    { package: 'libbpf1', files: [libraryPath('libbpf.so.1')] },
    { package: 'libbpf-dev', files: ['/usr/include/bpf/bpf_helpers.h'] },
    { package: 'procps', programs: ['ps'] },
    { package: 'qemu-system-x86', programs: ['qemu-system-x86_64'] },
    { package: 'systemd', programs: ['systemd-analyze'] },
    { package: 'util-linux', programs: ['addpart', 'blkdiscard', 'setpriv', 'unshare'] },
    { package: 'xfsprogs', programs: ['mkfs.xfs', 'xfs_repair', 'xfs_io'] },
    { package: 'zsh', programs: ['zsh'] },
    { package: 'zstd', programs: ['zstd'] },
  ],
  bench: [
    { package: 'coreutils', programs: ['cp', 'dd', 'sync', 'truncate'] },
    { package: 'diffutils', programs: ['cmp'] },
    { package: 'fio', programs: ['fio'] },
    { package: 'gcc', programs: ['gcc'] },
    { package: 'libbpf1', files: [libraryPath('libbpf.so.1')] },
    { package: 'libc6-dev', files: ['/usr/include/stdio.h'] },
    { package: 'linux-perf', programs: ['perf'] },
    { package: 'qemu-system-common', programs: ['qemu-storage-daemon'] },
    { package: 'qemu-utils', programs: ['qemu-img'] },
    { package: 'rsync', programs: ['rsync'] },
  ],
};

/** For which purposes' packages a purpose asks. */
const ASKED = { demo: ['demo'], test: ['demo', 'test'], bench: ['demo', 'bench'] };

/** There while an installation is under way: a half-configured package may have its programs in place already. */
const UNDER_WAY = join(STATE, 'packages-under-way');
const ATTEMPTS = 2;
const RETRY_AFTER_MS = 3000;

/** Whether a program is on the path, or where the administrator's programs are. */
export function hasProgram(name) {
  const folders = [...(process.env.PATH ?? '').split(delimiter), ...ADMIN_PATHS];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** The packages whose programs are not all on this machine. */
export function missingPackages(purpose, has = hasProgram) {
  const wanted = ASKED[purpose].flatMap((name) => PACKAGES[name]);
  const isThere = ({ programs = [], files = [] }) => programs.every((name) => has(name)) && files.every(existsSync);
  const missing = wanted.filter((entry) => !isThere(entry));
  return [...new Set(missing.map((entry) => entry.package))];
}

/** Why nothing can be installed here, when that is so. */
function whyNot() {
  if (process.env.COWBIRD_SETUP === 'no-apt') return 'COWBIRD_SETUP=no-apt asks for no installation';
  if (!hasProgram('apt-get')) return 'there is no apt-get here';
  if (process.getuid() !== 0) return 'installing needs root';
  return undefined;
}

async function install(children, packages) {
  const apt = (args, more) =>
    children.run('apt-get', ['-q', '-y', '-o', 'DPkg::Lock::Timeout=300', ...args], {
      env: environment({ DEBIAN_FRONTEND: 'noninteractive', DEBCONF_NONINTERACTIVE_SEEN: 'true' }),
      stdout: 'ignore',
      ...more,
    });
  await apt(['update']);
  const what = ['install', '--no-install-recommends', ...packages];
  await apt([...what, '--download-only']);
  // Only this step changes the system: short, and never stopped half-way.
  writeFileSync(UNDER_WAY, '');
  try {
    await apt(what, { whole: true });
  } catch (error) {
    if (error instanceof Interrupted) rmSync(UNDER_WAY);
    throw error;
  }
  rmSync(UNDER_WAY);
}

/** After an installation that was killed, or that failed. */
async function repair(children) {
  say('an installation of packages did not come to its end: dpkg --configure -a');
  const env = environment({ DEBIAN_FRONTEND: 'noninteractive' });
  await children.run('dpkg', ['--configure', '-a'], { env, stdout: 'ignore', whole: true });
  rmSync(UNDER_WAY);
}

/** Installs what is missing for a purpose; where it cannot, says so, and goes on. */
export async function installPackages(children, purpose) {
  const missing = missingPackages(purpose);
  if (missing.length === 0 && !existsSync(UNDER_WAY)) return;
  const reason = whyNot();
  if (reason !== undefined) {
    if (missing.length > 0) say(`missing Debian packages, and ${reason}; going on without: ${missing.join(' ')}`);
    return;
  }
  if (missing.length > 0) say(`installing these Debian packages: ${missing.join(' ')}`);
  mkdirSync(STATE, { recursive: true });
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    try {
      if (existsSync(UNDER_WAY)) await repair(children);
      if (missing.length > 0) await install(children, missing);
      break;
    } catch (error) {
      if (error instanceof Interrupted) throw error;
      say(error.message);
      if (attempt < ATTEMPTS) await pause(RETRY_AFTER_MS);
    }
  }
  const still = missingPackages(purpose);
  if (still.length > 0) say(`these Debian packages could not be installed; going on without: ${still.join(' ')}`);
}
