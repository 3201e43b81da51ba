/**
 * Kernels for guests: Debian's own, by the name of their package, unpacked beside the checkout and never installed.
 *
 * What was unpacked is kept under the name and version of its package; a half-unpacked one has another name until it is whole.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../lab.js';

/** The current kernel of the machine's own Debian release. */
export const DEFAULT_KERNEL = 'linux-image-amd64';
const PACKAGE_NAME = /^linux-image-[a-z0-9.+-]+$/;

export interface GuestKernel {
  /** As `uname -r` will say. */
  release: string;
  /** The bootable image. */
  imagePath: string;
  /** Has `lib/modules/RELEASE`, with the lists that modprobe wants. */
  modulesRoot: string;
}

/**
 * The kernel of a package, downloaded if it is not there yet. `cache`: an existing folder of the caller.
 *
 * @throws what apt-get or dpkg-deb said.
 */
export async function guestKernel(packageName: string, cache: string): Promise<GuestKernel> {
  if (!PACKAGE_NAME.test(packageName)) throw new Error(`${packageName} is not the name of a package with a kernel`);
  const name = await realPackage(packageName);
  const version = /^ {2}Candidate: (\S+)$/m.exec(await run('apt-cache', 'policy', name))?.[1];
  if (version === undefined || version === '(none)') throw new Error(`There is no package ${name} to be had`);
  const folder = join(cache, `${name}_${version.replaceAll(/[^\w.+~-]/g, '_')}`);
  if (!existsSync(folder)) await unpack(name, cache, folder);
  const [release] = readdirSync(join(folder, 'lib', 'modules'));
  if (release === undefined) throw new Error(`${name} has no modules`);
  return { release, imagePath: join(folder, 'boot', `vmlinuz-${release}`), modulesRoot: folder };
}

/** The package that a meta-package stands for. */
async function realPackage(name: string): Promise<string> {
  const depends = await run('apt-cache', 'depends', '--important', name);
  return /^ {2}Depends: (linux-image-\d\S*)$/m.exec(depends)?.[1] ?? name;
}

async function unpack(name: string, cache: string, folder: string): Promise<void> {
  const work = mkdtempSync(join(cache, 'unpacking-'));
  try {
    await run('sh', '-c', 'cd "$0" && exec apt-get -qq -o APT::Sandbox::User=root download "$1"', work, name);
    const file = readdirSync(work).find((entry) => entry.endsWith('.deb'));
    if (file === undefined) throw new Error(`apt-get brought nothing for ${name}`);
    const root = join(work, 'root');
    mkdirSync(root);
    await run('dpkg-deb', '-x', join(work, file), root);
    const [release] = readdirSync(join(root, 'lib', 'modules'));
    if (release === undefined) throw new Error(`${name} has no modules`);
    await run('depmod', '-b', root, release);
    renameSync(root, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
