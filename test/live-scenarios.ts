/** What `live.test.ts` and the long run have in common: versions of a busy disk, each against the disk at its freeze. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { stateAt } from './file-writer.js';
import { Lab, MIB, run, until } from './lab.js';
import { type LiveDisk, mountedDisk } from './live-lab.js';

const WRITER = fileURLToPath(new URL('./file-writer.js', import.meta.url));
/** Writes files and random blocks until it is ended. */
function busy({ lab, at, journal }: LiveDisk, seed: number): () => Promise<void> {
  mkdirSync(join(at, 'files'), { recursive: true });
  const fio = ['--name=load', `--filename=${at}/load`, '--rw=randwrite', '--bs=4k', '--size=8m', '--rate=4m'];
  const children = [
    spawn(process.execPath, [WRITER, join(at, 'files'), journal, String(seed)], { stdio: 'ignore' }),
    // Its job is a thread: a process of its own would stay behind.
    spawn('fio', [...fio, '--time_based', '--runtime=600', '--direct=1', '--thread'], {
      stdio: 'ignore',
      cwd: lab.folder,
    }),
  ];
  const ended = children.map((child) => new Promise<void>((resolve) => child.once('exit', () => resolve())));
  const stop = async (): Promise<void> => {
    for (const child of children) child.kill('SIGKILL');
    await Promise.all(ended);
  };
  lab.onEnd(stop);
  return stop;
}

/** A version, and what the disk and the journal were while the file system stood still. */
interface Seen extends cowbird.BackupSummary {
  reference: string;
  journal: string;
}

async function seenBackup(disk: LiveDisk, options: cowbird.BackupOptions): Promise<Seen> {
  const { lab, image, node, repository } = disk;
  const reference = lab.path(`reference-${readdirSync(lab.folder).length}.img`);
  let journal = '';
  const onFrozen = (): void => {
    // The copy first: what is journalled meanwhile was done before, or waits.
    execFileSync('cp', ['--sparse=always', image, reference], { timeout: 20_000 });
    journal = readFileSync(disk.journal, 'utf8');
  };
  const live = { freezeTimeoutSeconds: 30, onFrozen };
  return { ...(await cowbird.backup(node, repository, { ...options, live, client: lab.client })), reference, journal };
}

/** Blocks of the disk, from 0, in which a file differs from a reference. */
function differing(path: string, reference: string, offset: number, sizeBytes: number): number[] {
  const [left, right] = [openSync(path, 'r'), openSync(reference, 'r')];
  const [a, b] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  const found: number[] = [];
  for (let at = 0; at < sizeBytes; at += MIB) {
    readSync(left, a, 0, MIB, at);
    readSync(right, b, 0, MIB, at + offset);
    if (a.equals(b)) continue;
    for (let block = 0; block < MIB; block += 4096)
      if (!a.subarray(block, block + 4096).equals(b.subarray(block, block + 4096))) found.push((at + block) / 4096);
  }
  closeSync(left);
  closeSync(right);
  return found;
}

function isZero(path: string, block: number): boolean {
  const fd = openSync(path, 'r');
  const bytes = Buffer.alloc(4096, 1);
  const count = readSync(fd, bytes, 0, bytes.byteLength, block * 4096);
  closeSync(fd);
  return bytes.subarray(0, count).every((byte) => byte === 0);
}

/** Mounts a throw-away copy, so that its log is replayed; its files are those of the journal; its file system is clean. */
async function requireFiles({ lab, type }: LiveDisk, copy: string, journal: string, what: string): Promise<void> {
  const at = lab.path('look');
  mkdirSync(at, { recursive: true });
  await run('mount', '-o', `loop${type === 'xfs' ? ',nouuid' : ''}`, copy, at);
  try {
    const { files, unsure } = stateAt(journal);
    const found = new Set(readdirSync(join(at, 'files')));
    assert.ok(files.size > 3, `${what}: the writer had written ${files.size} files`);
    for (const [name, contents] of files) {
      if (unsure.has(name)) continue;
      assert.ok(found.has(name), `${what}: ${name} is there`);
      assert.ok(readFileSync(join(at, 'files', name)).equals(contents), `${what}: ${name} has its contents`);
    }
    const others = [...found].filter((name) => !files.has(name) && !unsure.has(name));
    assert.deepEqual(others, [], `${what}: nothing else is there`);
  } finally {
    await run('umount', at);
  }
  await until(`${copy} is unmounted`, async () => (await run('losetup', '-j', copy)) === '');
  if (type === 'xfs') await run('xfs_repair', '-n', copy);
  else await run('e2fsck', '-fn', copy);
}

export interface Configuration {
  type: 'ext4' | 'xfs';
  isPartitioned: boolean;
  versions: number;
}

export function titleOf({ type, isPartitioned, versions }: Configuration): string {
  return `${versions} versions of a busy ${type} on a ${isPartitioned ? 'partition' : 'whole disk'} are the disk at each freeze`;
}

export async function versionsOfBusyDisk(
  t: TestContext,
  { type, isPartitioned, versions }: Configuration,
): Promise<void> {
  const lab = new Lab(t);
  const disk = await mountedDisk(lab, type, isPartitioned);
  const stop = busy(disk, versions * 7 + 1);
  await until('the writer has begun', () => statSync(disk.journal, { throwIfNoEntry: false })?.size !== undefined);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  // By brute force none that differs was missed: every block where the whole disk is copied; else but those left out as unused.
  const isWhole = !isPartitioned;
  const seen: Seen[] = [];
  for (let version = 1; version <= versions; version++) {
    const made = await seenBackup(disk, { whole: isWhole });
    assert.deepEqual([made.version, made.engine, made.warnings], [version, 'live', []]);
    assert.match(made.reason, version === 1 ? /in use$/ : /^the kernel lists/);
    assert.ok(made.passes > 1 && (made.freezeMs ?? 0) > 0, `${made.passes} passes, frozen for ${made.freezeMs} ms`);
    seen.push(made);
  }
  await stop();
  assert.deepEqual((await cowbird.verify(disk.repository)).damage, []);
  for (const { version, reference, journal, bytesRead } of seen) {
    const copy = lab.path('restored.img');
    await cowbird.restore(`${disk.repository}@${version}`, copy);
    const missed = differing(copy, reference, disk.offset, disk.sizeBytes);
    const what = isWhole ? 'is the disk, bit for bit' : 'is the disk, but for zeros where nothing is used';
    const wrong = isWhole ? missed : missed.filter((block) => !isZero(copy, block));
    assert.deepEqual(wrong, [], `version ${version} ${what}`);
    const before = seen[version - 2];
    if (before !== undefined && isWhole) {
      const moved = differing(before.reference, reference, 0, disk.sizeBytes).length * 4096;
      assert.ok(moved > 0 && moved <= bytesRead, `${moved} bytes differ from the version before`);
    }
    await requireFiles(disk, copy, journal, `version ${version}`);
    rmSync(copy);
  }
}
