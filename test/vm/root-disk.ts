/**
 * The root disk of a guest that is a server: one ext4 with busybox, node and an installed Cowbird, on the bare disk.
 *
 * Made without a mount (`mke2fs -d`), from a tree of this machine's own files.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from '../lab.js';

const FOLDERS = ['bin', 'dev', 'etc', 'lib/modules', 'load', 'opt', 'proc', 'repo', 'root', 'run', 'sys', 'tmp'];
const INSTALLED = ['bin', 'bpf', 'dist/src', 'package.json'];
/** Where the guest has Cowbird. */
export const COWBIRD = '/opt/cowbird/bin/cowbird';
/** Checksums of what nobody changes: `sha256sum -c` in the guest says whether it is all there. */
export const SUMS = '/etc/sums';

/** What a program loads, and the program. Links are followed: each library lies under the name by which it is asked for. */
async function withLibraries(path: string): Promise<string[]> {
  const listed = await run('ldd', path);
  return [path, ...[...listed.matchAll(/(?:=> |^\s+)(\/\S+) \(0x/gm)].flatMap(([, found]) => found ?? [])];
}

/** Makes the disk from the checkout in `checkout`; `work` is a folder for the tree, removed again. */
export async function makeRootDisk(path: string, mib: number, checkout: string, work: string): Promise<void> {
  const tree = join(work, 'tree');
  try {
    for (const folder of FOLDERS) mkdirSync(join(tree, folder), { recursive: true });
    const put = (from: string, to: string): void => {
      mkdirSync(dirname(join(tree, to)), { recursive: true });
      cpSync(from, join(tree, to), { recursive: true, dereference: true });
    };
    put('/bin/busybox', '/bin/busybox');
    symlinkSync('busybox', join(tree, 'bin', 'sh'));
    const libbpf = await libraryPath('libbpf.so.1');
    for (const file of [...(await withLibraries(process.execPath)), ...(await withLibraries(libbpf))]) put(file, file);
    for (const name of INSTALLED)
      if (existsSync(join(checkout, name))) put(join(checkout, name), join('/opt/cowbird', name));
    for (const name of runtimeModules(checkout))
      put(join(checkout, 'node_modules', name), join('/opt/cowbird/node_modules', name));
    await run('sh', '-c', 'dd if=/dev/urandom of="$0/root/payload" bs=1M count=24 status=none', tree);
    writeFileSync(join(tree, 'etc', 'hostname'), 'guest\n');
    await run(
      'sh',
      '-c',
      'cd "$0" && find . -type f ! -path "./load/*" -print0 | xargs -0 sha256sum >"$1" && mv "$1" "$0$2"',
      tree,
      join(work, 'sums'),
      SUMS,
    );
    await run('truncate', '-s', `${mib}M`, path);
    await run('mkfs.ext4', '-q', '-F', '-b', '4096', '-E', 'lazy_itable_init=0', '-d', tree, path);
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

async function libraryPath(name: string): Promise<string> {
  const found = new RegExp(`^\\s*${name.replaceAll('.', '\\.')} .*=> (\\S+)$`, 'm').exec(
    await run('ldconfig', '-p'),
  )?.[1];
  if (found === undefined) throw new Error(`${name} is not installed`);
  return found;
}

/** Packages that Cowbird needs to run, from the lock file. */
function runtimeModules(checkout: string): string[] {
  const lock: unknown = JSON.parse(readFileSync(join(checkout, 'package-lock.json'), 'utf8'));
  if (typeof lock !== 'object' || lock === null || !('packages' in lock)) throw new Error('The lock file has packages');
  const { packages } = lock;
  if (typeof packages !== 'object' || packages === null) throw new Error('The lock file has packages');
  return Object.entries(packages).flatMap(([key, entry]: [string, unknown]) => {
    const isForTests = typeof entry === 'object' && entry !== null && 'dev' in entry && entry.dev === true;
    const name = key.replace(/^node_modules\//, '');
    return key === '' || isForTests || !existsSync(join(checkout, 'node_modules', name)) ? [] : [name];
  });
}
