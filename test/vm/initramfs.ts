/**
 * What a guest boots with: busybox, the modules that it takes to get at its root, and a script.
 *
 * `host`: the machine's own root, read-only over 9p, under an overlay that is thrown away: the guest has the machine's node, tools
 * and checkout. `disk`: the first disk is the root, as on a server, and its own init runs.
 */
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { run } from '../lab.js';
import type { GuestKernel } from './kernel.js';

export type GuestRoot = 'host' | 'disk';

const MODULES: Readonly<Record<GuestRoot, readonly string[]>> = {
  host: ['virtio_pci', 'virtio_blk', 'ext4', '9pnet_virtio', '9p', 'overlay'],
  disk: ['virtio_pci', 'virtio_blk', 'ext4', '9pnet_virtio', '9p'],
};

/** The second serial port: what the command says, and nothing of the kernel. Through a pipe: nobody is to think it a terminal. */
const OUTPUT = '/dev/ttyS1';
/** The last line of a guest whose command has ended. */
export const END_LINE = /^guest-exit: (\d+)$/;
/** Where the guest has the first of its disks mounted, for files that are read and written with O_DIRECT. */
export const SCRATCH = '/scratch';

const HEAD = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /new /host
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
stty -F ${OUTPUT} -opost
exec </dev/null >${OUTPUT} 2>&1
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "guest: insmod $module failed"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host || echo 'guest: no root of the host'
`;

const SYSTEM = `for folder in proc sys dev; do mount --rbind "/$folder" "/new/$folder"; done
mkdir -p /new/lib/modules /new/dev/shm /new/dev/pts
mount --bind "/host$(cat /modules/root)/lib/modules" /new/lib/modules
mount -t tmpfs tmpfs /new/run
mount -t tmpfs tmpfs /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t cgroup2 none /new/sys/fs/cgroup
`;

const INIT: Readonly<Record<GuestRoot, string>> = {
  host: `${HEAD}mkdir /over
mount -t tmpfs tmpfs /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new
${SYSTEM}mkdir -p /new${SCRATCH}
[ ! -b /dev/vda ] || mount -t ext4 /dev/vda /new${SCRATCH} || echo 'guest: no scratch disk'
cp /command /new/run/guest-command
(chroot /new /bin/sh /run/guest-command; echo "guest-exit: $?") 2>&1 | cat
sync
poweroff -f
`,
  disk: `${HEAD}mount -t ext4 -o rw /dev/vda /new || echo 'guest: no root disk'
${SYSTEM}cp /command /new/run/guest-command
exec switch_root /new /bin/busybox sh -c '(/bin/busybox sh /run/guest-command; echo "guest-exit: $?") 2>&1 | /bin/busybox cat; /bin/busybox sync; /bin/busybox mount -o remount,ro /; /bin/busybox poweroff -f'
`,
};

/** Writes the initramfs of a guest that will run `script`. Returns its path, in the folder of the caller. */
export async function makeInitramfs(
  kernel: GuestKernel,
  root: GuestRoot,
  script: string,
  folder: string,
): Promise<string> {
  const tree = mkdtempSync(join(folder, 'initramfs-'));
  try {
    mkdirSync(join(tree, 'bin'));
    mkdirSync(join(tree, 'modules'));
    copyFileSync('/bin/busybox', join(tree, 'bin', 'busybox'));
    writeFileSync(join(tree, 'init'), INIT[root]);
    writeFileSync(join(tree, 'command'), script);
    writeFileSync(join(tree, 'modules', 'root'), kernel.modulesRoot);
    chmodSync(join(tree, 'init'), 0o755);
    const order: string[] = [];
    for (const path of await modulePaths(kernel, MODULES[root])) {
      const target = join(tree, 'modules', basename(path));
      if (existsSync(target)) continue;
      copyFileSync(path, target);
      order.push(basename(path));
    }
    writeFileSync(join(tree, 'modules', 'order'), `${order.join('\n')}\n`);
    const path = join(folder, `${basename(tree)}.cpio`);
    await run('sh', '-c', 'cd "$0" && find . | cpio --quiet -o -H newc >"$1"', tree, path);
    return path;
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

/** The files of modules and of what they need, in the order in which they are loaded. A built-in one has none. */
async function modulePaths({ modulesRoot, release }: GuestKernel, names: readonly string[]): Promise<string[]> {
  const paths: string[] = [];
  for (const name of names) {
    const shown = await run('modprobe', '-d', modulesRoot, '-S', release, '--show-depends', name);
    for (const [, path] of shown.matchAll(/^insmod (\S+)/gm)) if (path !== undefined) paths.push(path);
  }
  return paths;
}
