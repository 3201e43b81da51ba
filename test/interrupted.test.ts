/** Backups that are interrupted while they work on a repository that has versions: exit code 130, and nothing is lost, nor begun anew. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { COWBIRD, mountedVolume } from './backup-scenarios.js';
import { CANNOT, fill, Lab, MIB, run } from './lab.js';
import { mountedDisk } from './live-lab.js';
import { CANNOT_TRACK } from './tracking-lab.js';

const ATTEMPTS = 5;
const INTERRUPTED = 130;
const DEADLINE_MS = 60_000;

interface Busy {
  lab: Lab;
  /** What is backed up, and where it is mounted. */
  source: string;
  at: string;
  repository: string;
  changedMib: number;
}

/** A backup's exit code and words, when it was sent a signal as soon as it began to write the history of version 1. */
async function interrupted(
  { lab, source, repository }: Busy,
  signal: NodeJS.Signals,
): Promise<[number | null, string]> {
  const child = spawn(COWBIRD, ['backup', source, repository, '--whole'], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: lab.env,
  });
  let said = '';
  child.stderr.on('data', (bytes: Buffer) => {
    said += bytes.toString();
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  const deadline = Date.now() + DEADLINE_MS;
  const isWriting = (): boolean => existsSync(join(repository, 'history', '1.cow'));
  while (!isWriting() && child.exitCode === null) {
    assert.ok(Date.now() < deadline, 'the backup is under way');
    await pause(1);
  }
  child.kill(signal);
  return [await ended, said];
}

/** The signal comes in time, or the backup is put back and another one tried. */
async function requireInterruptible(busy: Busy, signal: NodeJS.Signals, listed: RegExp): Promise<void> {
  const { lab, source, at, repository, changedMib } = busy;
  const backup = (): Promise<cowbird.BackupSummary> =>
    cowbird.backup(source, repository, { whole: true, client: lab.client });
  for (let attempt = 1; ; attempt++) {
    rmSync(repository, { recursive: true, force: true });
    assert.equal((await backup()).version, 1);
    await fill(join(at, 'payload'), changedMib);
    const [status, said] = await interrupted(busy, signal);
    if (status === 0 && attempt < ATTEMPTS) continue;
    assert.deepEqual([status, /Interrupted: the repository is whole.*\(EINTR\)/.test(said)], [INTERRUPTED, true], said);
    break;
  }
  assert.ok(!existsSync(join(repository, 'history', '1.cow')), 'what was begun is gone');
  assert.deepEqual(
    (await cowbird.listVersions(repository)).versions.map(({ number }) => number),
    [1],
  );
  assert.deepEqual((await cowbird.verify(repository)).damage, []);
  const next = await backup();
  assert.equal(next.version, 2);
  assert.match(next.reason, listed);
}

async function requireTracked(lab: Lab): Promise<void> {
  const { devices } = await cowbird.info(undefined, lab.client);
  assert.deepEqual(
    devices.map(({ state, error }) => [state, error]),
    [[2, undefined]],
    'it went on to incremental mode',
  );
}

test('SIGINT ends a backup of a volume in use: the versions stay, and its changes are still listed', {
  skip: CANNOT,
}, async (t: TestContext) => {
  const lab = new Lab(t);
  const changedMib = 72;
  const { at } = await mountedVolume(lab, 'disk', 'ext4', 128 * MIB, changedMib);
  const source = lab.link('disk');
  await requireInterruptible(
    { lab, source, at, repository: lab.path('repository'), changedMib },
    'SIGINT',
    /^the driver lists what changed since version 1$/,
  );
  await requireTracked(lab);
});

test('SIGTERM ends a live backup: the versions stay, and its changes are still listed', {
  skip: CANNOT_TRACK,
}, async (t: TestContext) => {
  const lab = new Lab(t);
  const changedMib = 64;
  const { node, at, repository } = await mountedDisk(lab, 'ext4', false);
  await fill(join(at, 'payload'), changedMib);
  await requireInterruptible(
    { lab, source: node, at, repository, changedMib },
    'SIGTERM',
    /^the kernel lists what changed since version 1$/,
  );
  assert.ok(await run('touch', join(at, 'thawed')).then(() => true), 'it is not frozen');
});
