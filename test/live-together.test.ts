/** Live backups of several disks in use: every version of one run is of the same moment. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { stopTracking } from '../src/live/tracking.js';
import { fill, Lab, MIB, run, succeeds, until } from './lab.js';
import { grief, MARGIN_MS, TIMEOUT_SECONDS, writeMs } from './live-grief.js';
import { type LiveDisk, mountedDisk } from './live-lab.js';
import { lastRecord, orderedWriter } from './ordered-writer.js';
import { CANNOT_TRACK, trackerPlace } from './tracking-lab.js';

/** The last record in each version, looked at in a throw-away copy. */
async function recordIn({ lab, type }: LiveDisk, version: string): Promise<number> {
  const [copy, at] = [lab.path('copy.img'), lab.path('look')];
  await cowbird.restore(version, copy);
  mkdirSync(at, { recursive: true });
  await run('mount', '-o', `loop${type === 'xfs' ? ',nouuid' : ''}`, copy, at);
  try {
    return lastRecord(join(at, 'records'));
  } finally {
    await run('umount', at);
    await until(`${copy} is unmounted`, async () => (await run('losetup', '-j', copy)) === '');
    await run('rm', copy);
  }
}

/** An attached volume whose tracking, where a backup begins it, ends with the test. */
async function trackedVolume(lab: Lab): Promise<string> {
  const volume = await lab.attached('volume', 24 * MIB);
  const runDir = trackerPlace(lab);
  lab.onEnd(async () => void stopTracking(volume, runDir));
  return volume;
}

async function togetherIds(repositories: readonly string[]): Promise<Array<string | null | undefined>> {
  const lists = await Promise.all(repositories.map((repository) => cowbird.listVersions(repository)));
  return lists.map(({ versions }) => versions.at(-1)?.togetherId);
}

test('disks in use, and an image file, get versions of one moment', { skip: CANNOT_TRACK }, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const disks = [await mountedDisk(lab, 'ext4', false, 'a'), await mountedDisk(lab, 'xfs', true, 'b')];
  await fill(lab.image('file', 0), 3);
  const stop = await orderedWriter(
    lab,
    disks.map(({ at }) => join(at, 'records')),
  );
  const pairs = [
    ...disks.map(({ node, repository }) => ({ source: node, repository })),
    { source: lab.path('file'), repository: lab.path('repo-file') },
  ];
  const log = lab.path('hooks');
  const hooks = { preFreeze: `echo pre $COWBIRD_DEVICES >> ${log}`, postThaw: `echo post >> ${log}` };
  const live = { freezeTimeoutSeconds: 30 };
  const records: number[][] = [];
  for (let version = 1; version <= 3; version++) {
    const { id, backups } = await cowbird.backupTogether(pairs, { client, live, ...(version === 2 ? { hooks } : {}) });
    assert.deepEqual(
      backups.map(({ engine, warnings }) => [engine, version === 2 ? [] : warnings]),
      [
        ['live', []],
        ['live', []],
        ['scan', []],
      ],
    );
    for (const { reason, passes, freezeMs } of backups.slice(0, 2)) {
      assert.match(reason, version === 1 ? /in use$/ : /^the kernel lists/);
      assert.ok(passes > 1 && (freezeMs ?? 0) > 0, `${passes} passes, frozen for ${freezeMs} ms`);
    }
    assert.deepEqual(await togetherIds(pairs.map(({ repository }) => repository)), [id, id, id]);
  }
  await stop();
  assert.equal(readFileSync(log, 'utf8'), `pre ${disks.map(({ node }) => node).join(' ')}\npost\n`);
  for (let version = 1; version <= 3; version++) {
    const found: number[] = [];
    for (const disk of disks) found.push(await recordIn(disk, `${disk.repository}@${version}`));
    assert.equal(Math.abs((found[0] ?? 0) - (found[1] ?? 0)), 1, `records ${found} in version ${version}`);
    records.push(found);
  }
  assert.ok((records[0]?.[0] ?? 0) < (records[2]?.[0] ?? 0), `the writer went on: ${records.join('; ')}`);
  for (const { repository } of pairs) assert.deepEqual((await cowbird.verify(repository)).damage, []);
});

test('a disk whose image is a file on the other one is frozen before that one, whichever is named first', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const lower = await mountedDisk(lab, 'ext4', false, 'lower');
  const image = join(lower.at, 'upper.img');
  await run('truncate', '-s', '32M', image);
  const upper = (await run('losetup', '-f', '--show', image)).trim();
  lab.onEnd(() => succeeds('losetup', '-d', upper));
  lab.onEnd(async () => void stopTracking(upper, trackerPlace(lab)));
  await run('mkfs.ext4', '-q', upper);
  const at = await lab.mount(upper, 'mnt-upper');
  const pairs = [
    { source: lower.node, repository: lower.repository },
    { source: upper, repository: lab.path('repo-upper') },
  ];
  for (const [i, inOrder] of [pairs, [...pairs].reverse()].entries()) {
    const stop = await lab.writer(at);
    const live = { freezeTimeoutSeconds: 5 };
    const { backups } = await cowbird.backupTogether(inOrder, { client, live });
    assert.ok(await stop(), 'no write has failed');
    assert.deepEqual(
      backups.map(({ version }) => version),
      [i + 1, i + 1],
    );
  }
  // The thaw of the upper one writes to the lower one, which is still frozen then.
  lab.onEnd(() => succeeds('fsfreeze', '-u', lower.at));
  const stacked = {
    lab,
    node: pairs.map(({ source }) => source).join(),
    repository: pairs.map(({ repository }) => repository).join(),
  };
  for (const how of ['killed', 'stopped']) {
    const { child, ended, said } = await grief(stacked, how);
    for (const mounted of [at, lower.at]) {
      const waitedMs = await writeMs(mounted);
      assert.ok(waitedMs < TIMEOUT_SECONDS * 1000 + MARGIN_MS, `${how}: ${mounted} after ${waitedMs} ms`);
    }
    child.kill('SIGCONT');
    await ended;
    assert.match(said(), how === 'killed' ? /^frozen\n/ : /ETIMEDOUT/);
  }
  const { backups } = await cowbird.backupTogether(pairs, { client });
  assert.deepEqual(
    backups.map(({ version }) => version),
    [3, 3],
  );
});

test('where one disk cannot be backed up none is, and nothing is left', { skip: CANNOT_TRACK }, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const disks = [await mountedDisk(lab, 'ext4', false, 'a'), await mountedDisk(lab, 'ext4', false, 'b')];
  const pairs = disks.map(({ node, repository }) => ({ source: node, repository }));
  const noneHas = (): void => {
    for (const { repository } of pairs) assert.ok(!existsSync(repository), repository);
  };
  await assert.rejects(cowbird.backupTogether(pairs, { client, hooks: { preFreeze: 'false' } }), { code: 'ECANCELED' });
  noneHas();
  // A repository on a disk that is frozen with it would wait for itself.
  const [first, second] = pairs;
  const across = [first, { source: second?.source ?? '', repository: `${disks[0]?.at}/repository` }];
  await assert.rejects(
    cowbird.backupTogether(
      across.flatMap((pair) => pair ?? []),
      { client },
    ),
    { code: 'EINVAL' },
  );
  noneHas();
  assert.ok(!existsSync(`${disks[0]?.at}/repository`));
  // A volume is snapshotted by the daemon: that is another freeze.
  const volume = await trackedVolume(lab);
  const mixture = [first, { source: volume, repository: lab.path('repo-volume') }].flatMap((pair) => pair ?? []);
  await assert.rejects(cowbird.backupTogether(mixture, { client }), { code: 'EINVAL', message: /--engine live/ });
  noneHas();
  await lab.mkfs(volume, 'ext4');
  await lab.mount(volume, 'mnt-volume');
  const { backups } = await cowbird.backupTogether(mixture, { client, engine: 'live' });
  assert.deepEqual(
    backups.map(({ engine, version }) => [engine, version]),
    [
      ['live', 1],
      ['live', 1],
    ],
  );
});

test('an attached volume that is mounted read-only cannot be frozen, and is read by engine live', {
  skip: CANNOT_TRACK,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const volume = await trackedVolume(lab);
  await lab.mkfs(volume, 'ext4');
  const at = await lab.mount(volume);
  await fill(join(at, 'payload'), 4);
  const repository = lab.path('repository');
  const first = await cowbird.backup(volume, repository, { client });
  await run('mount', '-o', 'remount,ro', at);
  // Its tracking would have to be ended by a mount that is none any more.
  const second = await cowbird.backup(lab.path('volume'), repository, { client });
  assert.deepEqual([first.engine, second.engine, second.version, second.warnings], ['driver', 'live', 2, []]);
  assert.ok(readFileSync(join(repository, 'image')).equals(readFileSync(volume)), 'all that is used is there');
  await assert.rejects(cowbird.backup(volume, repository, { client, engine: 'driver' }), {
    code: 'EINVAL',
    message: /mounted read-only.*engine live/,
  });
  await run('mount', '-o', 'remount,rw', at);
  const third = await cowbird.backup(volume, repository, { client });
  assert.deepEqual([third.engine, third.version], ['driver', 3]);
  assert.match(third.reason, /^contents were compared/);
});
