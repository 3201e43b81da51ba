/** What the tests of backups share: busy volumes, versions with the digest of their snapshot, file systems that are checked. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, constants, mkdirSync, openSync, readdirSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { digestOf, fill, type Lab, MIB, run, until } from './lab.js';

export const COWBIRD = resolve(fileURLToPath(import.meta.url), '..', '..', '..', 'bin', 'cowbird');
/** Of the file that the load goes to. */
export const PAYLOAD_MIB = 8;
/** Below what is worth a thread of its own: those cost more than all the rest here. Larger volumes are in the other tests. */
const VOLUME_BYTES = 60 * MIB;
const BLOCK_BYTES = 4096;
/** Kills between two versions that are compared. */
const KILLS_A_VERSION = 5;

export type Made = cowbird.BackupSummary & { digest: string };

/** A backup of everything, and the digest of the snapshot that it was made from. */
export async function wholeBackup(lab: Lab, source: string, repository: string): Promise<Made> {
  let digest = '';
  const onSnapshot = async (device: string): Promise<void> => {
    digest = digestOf(device);
  };
  return { ...(await cowbird.backup(source, repository, { whole: true, onSnapshot, client: lab.client })), digest };
}

/** A version in a fresh image beside its repository. */
export async function restored(name: string): Promise<string> {
  const target = `${name.replace('@', '-')}-${randomUUID()}.img`;
  await cowbird.restore(name, target);
  return target;
}

/** Mounts an image, so that its log is replayed, and checks its file system; returns what is in it, where that is wanted. */
export async function requireSound(image: string, type: string, wantsList = false): Promise<string> {
  const at = `${image}-mnt`;
  mkdirSync(at, { recursive: true });
  await run('mount', '-o', `loop${type === 'xfs' ? ',nouuid' : ''}`, image, at);
  const list =
    'cd "$0" && find . -printf "%P %y %s %m\\n" | LC_ALL=C sort && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum';
  const files = wantsList ? run('sh', '-c', list, at) : Promise.resolve('');
  await files.catch(() => undefined).finally(() => run('umount', at));
  // Some mount namespace that was just being made may have it for a moment longer.
  await until(`${image} is unmounted`, async () => (await run('losetup', '-j', image)) === '');
  if (type === 'xfs') await run('xfs_repair', '-n', image);
  else await run('e2fsck', '-fn', image);
  await run('rmdir', at);
  return files;
}

/** A mounted volume of a daemon that others use, too. */
export interface Bench {
  lab: Lab;
  /** Of the volume, and what its files begin with. */
  name: string;
  type: string;
  node: string;
  at: string;
}

export async function mountedVolume(
  lab: Lab,
  name: string,
  type: string,
  sizeBytes: number,
  payloadMib: number,
): Promise<Bench> {
  const node = await lab.attached(name, sizeBytes);
  await lab.mkfs(node, type);
  const at = await lab.mount(node, `${name}-mnt`);
  await fill(join(at, 'payload'), payloadMib);
  return { lab, name, type, node, at };
}

/** One with a writer that goes on until it is stopped. */
export async function busyVolume(
  lab: Lab,
  name: string,
  type: string,
): Promise<Bench & { stop: () => Promise<boolean> }> {
  const bench = await mountedVolume(lab, name, type, VOLUME_BYTES, PAYLOAD_MIB);
  return { ...bench, stop: await lab.writer(bench.at, 40) };
}

/** Overwrites random blocks of a file, each durable. */
export function overwrite(file: string, blocks: number): void {
  const fd = openSync(file, constants.O_WRONLY + constants.O_DSYNC);
  try {
    for (let i = 0; i < blocks; i++) {
      const bytes = Buffer.alloc(BLOCK_BYTES, Math.floor(Math.random() * 256));
      const block = Math.floor((Math.random() * PAYLOAD_MIB * MIB) / BLOCK_BYTES);
      writeSync(fd, bytes, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    }
  } finally {
    closeSync(fd);
  }
}

/** The COW files of backups in the root of a file system. */
export function ownFiles(at: string): string[] {
  return readdirSync(at).filter((name) => name.startsWith('.cowbird'));
}

/** Kills backups of a busy volume at random moments; every few of them a version is made and compared. */
export async function killBackups(t: TestContext, lab: Lab, kills: number): Promise<void> {
  const { node, stop } = await busyVolume(lab, 'killed', 'ext4');
  const repository = lab.path('killed-repository');
  await wholeBackup(lab, node, repository);
  const startedMs = Date.now();
  await run(COWBIRD, 'versions', repository);
  const leastMs = Date.now() - startedMs;
  const start = (): { child: ChildProcess; ended: Promise<void> } => {
    const child = spawn(COWBIRD, ['backup', node, repository, '--whole'], { stdio: 'ignore', env: lab.env });
    return { child, ended: new Promise<void>((done) => child.once('close', () => done())) };
  };
  const begunMs = Date.now();
  await start().ended;
  // On a busy machine the early moments are tried more often than the late ones.
  const usualMs = Math.min(Date.now() - begunMs - leastMs, 2_000);
  const digests = new Map<number, string>();
  let cutOff = 0;
  for (let kill = 1; kill <= kills; kill++) {
    const { child, ended } = start();
    await Promise.race([ended, pause(leastMs + Math.random() * usualMs)]);
    if (child.exitCode === null) cutOff++;
    child.kill('SIGKILL');
    await ended;
    if (kill % KILLS_A_VERSION !== 0) continue;
    const made = await wholeBackup(lab, node, repository);
    assert.equal(digestOf(join(repository, 'image')), made.digest, `version ${made.version}: ${made.reason}`);
    digests.set(made.version, made.digest);
  }
  assert.ok(await stop(), 'the writer went on');
  assert.ok(cutOff > kills / 4, `${cutOff} of ${kills} were cut off`);
  t.diagnostic(`${cutOff} of ${kills} backups were cut off`);
  const [oldest] = digests.keys();
  assert.equal(digestOf(await restored(`${repository}@${oldest}`)), digests.get(oldest ?? 0), `version ${oldest}`);
  assert.deepEqual((await cowbird.verify(repository)).damage, []);
}
