/** Backups of several sources at one instant. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { COWBIRD, requireSound, restored } from './backup-scenarios.js';
import { CANNOT, fill, Lab, MIB, run } from './lab.js';
import { lastRecord, orderedWriter } from './ordered-writer.js';

const KILLS = Number(process.env['COWBIRD_LONG_BACKUP_KILLS'] ?? 8);

const numbersIn = async (repository: string): Promise<number[]> =>
  (await cowbird.listVersions(repository)).versions.map(({ number }) => number);

async function idOf(repository: string): Promise<string | null | undefined> {
  return (await cowbird.listVersions(repository)).versions.at(-1)?.togetherId;
}

test('volumes in use, and an image file, get versions of one instant, also where only one was tracked', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const nodes = [await lab.attached('a', 24 * MIB), await lab.attached('b', 24 * MIB)];
  const [first = '', second = ''] = nodes;
  await fill(lab.image('file', 0), 3);
  const stop = await orderedWriter(lab, nodes);
  await pause(500);
  const repositories = ['a', 'b', 'file'].map((name) => lab.path(`${name}-repository`));
  const sources = [first, second, lab.path('file')];
  const pairs = sources.map((source, i) => ({ source, repository: repositories[i] ?? '' }));
  const requireOneInstant = async (versions: number): Promise<void> => {
    const records = repositories.slice(0, 2).map((repository) => lastRecord(join(repository, 'image')));
    assert.equal(Math.abs((records[0] ?? 0) - (records[1] ?? 0)), 1, `records ${records}`);
    const ids = await Promise.all(repositories.map(idOf));
    assert.match(ids[0] ?? '', /^[0-9a-f]{32}$/);
    assert.deepEqual(ids, [ids[0], ids[0], ids[0]]);
    for (const repository of repositories) {
      assert.equal((await numbersIn(repository)).length, versions);
      assert.deepEqual(readdirSync(join(repository, 'together')), []);
    }
  };
  const begun = await cowbird.backupTogether(pairs, { client });
  assert.deepEqual(
    begun.backups.map(({ engine, warnings }) => [engine, warnings]),
    [
      ['driver', []],
      ['driver', []],
      ['scan', []],
    ],
  );
  await requireOneInstant(1);
  const hooks = { preFreeze: `echo pre >> ${lab.path('hooks')}`, postThaw: `echo post >> ${lab.path('hooks')}` };
  const goneOn = await cowbird.backupTogether(pairs, { client, hooks });
  for (const { reason } of goneOn.backups.slice(0, 2)) assert.match(reason, /^the driver lists/);
  assert.deepEqual(goneOn.backups[2]?.warnings, ['the hooks were not run: no snapshot was taken']);
  assert.equal(readFileSync(lab.path('hooks'), 'utf8'), 'pre\npost\n');
  await requireOneInstant(2);
  // One is not tracked any more: it begins anew, the other one goes on.
  const { devices } = await cowbird.info(undefined, client);
  await cowbird.destroy(devices.find(({ block_device }) => block_device === second)?.minor ?? -1, client);
  const mixed = await cowbird.backupTogether(pairs, { client });
  assert.match(mixed.backups[0]?.reason ?? '', /^the driver lists/);
  assert.match(mixed.backups[1]?.reason ?? '', /^contents were compared: the volume was not tracked/);
  await requireOneInstant(3);
  await stop();
  const twice = [
    { source: first, repository: lab.path('x') },
    { source: lab.path('a'), repository: lab.path('y') },
  ];
  await assert.rejects(cowbird.backupTogether(twice, { client }), { code: 'EINVAL', message: /named twice/ });
  // The hook fails: no snapshot, no version.
  await assert.rejects(cowbird.backupTogether(pairs, { client, hooks: { preFreeze: 'false' } }), { code: 'ECANCELED' });
  for (const repository of repositories) assert.deepEqual(await numbersIn(repository), [1, 2, 3]);
});

test('killed at any moment, all repositories have the version, or none has it', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const mounts: string[] = [];
  const pairs: cowbird.BackupPair[] = [];
  for (const name of ['a', 'b']) {
    const source = await lab.attached(name, 56 * MIB);
    await lab.mkfs(source, 'ext4');
    const at = await lab.mount(source, `${name}-mnt`);
    await fill(join(at, 'payload'), 4);
    mounts.push(at);
    pairs.push({ source, repository: lab.path(`${name}-repository`) });
  }
  const stop = await lab.writer(mounts[0] ?? '', 60);
  const args = ['backup', '--together', '--json', ...pairs.map(({ source, repository }) => `${source}:${repository}`)];
  const startedMs = Date.now();
  await cowbird.backupTogether(pairs, { client });
  await run('env', `COWBIRD_RUN_DIR=${lab.path('run')}`, `COWBIRD_STATE_DIR=${lab.path('state')}`, COWBIRD, ...args);
  const usualMs = (Date.now() - startedMs) / 2;
  for (let kill = 0; kill < KILLS; kill++) {
    const child = spawn(COWBIRD, args, { stdio: 'ignore', env: lab.env });
    const ended = new Promise<void>((done) => child.once('close', () => done()));
    await Promise.race([ended, pause(usualMs * (0.3 + Math.random()))]);
    child.kill('SIGKILL');
    await ended;
    const numbers = await Promise.all(pairs.map(({ repository }) => numbersIn(repository)));
    assert.deepEqual(numbers[0], numbers[1], `kill ${kill}`);
  }
  const last = await cowbird.backupTogether(pairs, { client });
  assert.ok(await stop(), 'the writer went on');
  for (const { repository, version } of last.backups) {
    assert.deepEqual((await cowbird.verify(repository)).damage, []);
    await requireSound(await restored(`${repository}@${version}`), 'ext4');
  }
});
