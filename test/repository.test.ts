/** Repositories for real: the command killed at random moments, locks, page cache, disks. Most of it needs no root. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { backup, listVersions, restore, verify, versionChanges } from '../src/index.js';
import { program } from './harness.js';
import { CANNOT, fill, Lab, MIB, run, succeeds, until } from './lab.js';

const COWBIRD = resolve(fileURLToPath(import.meta.url), '..', '..', '..', 'bin', 'cowbird');
const BLOCK_BYTES = 4096;
const KILLS = Number(process.env['COWBIRD_LONG_BACKUP_KILLS'] ?? 30);
const CHAINS = 2;
const COMMAND_MS_MAX = 60_000;
/** A command that waits has started by then, also on a busy machine, or is still being started. */
const LOOK_MS = 2_000;

interface Outcome {
  status: number | null;
  out: string;
  err: string;
}

/** A command that runs; it ends with the test at the latest. */
function start(lab: Lab, ...args: string[]): { child: ChildProcess; ended: Promise<Outcome> } {
  const child = spawn(COWBIRD, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: COMMAND_MS_MAX,
    killSignal: 'SIGKILL',
  });
  const outcome: Outcome = { status: null, out: '', err: '' };
  child.stdout.on('data', (bytes: Buffer) => {
    outcome.out += bytes.toString();
  });
  child.stderr.on('data', (bytes: Buffer) => {
    outcome.err += bytes.toString();
  });
  const ended = new Promise<Outcome>((done) => child.once('close', (status) => done({ ...outcome, status })));
  lab.onEnd(async () => {
    child.kill('SIGKILL');
    await ended;
  });
  return { child, ended };
}

const cowbird = (lab: Lab, ...args: string[]): Promise<Outcome> => start(lab, ...args).ended;

/** Random bytes over random runs of a file; some runs become zeros. */
function scribble(path: string, runs: number, runBlocks: number): void {
  const blocks = Math.floor(statSync(path).size / BLOCK_BYTES);
  const fd = openSync(path, 'r+');
  try {
    for (let i = 0; i < runs; i++) {
      const bytes = Math.random() < 0.2 ? Buffer.alloc(runBlocks * BLOCK_BYTES) : randomBytes(runBlocks * BLOCK_BYTES);
      writeSync(fd, bytes, 0, bytes.byteLength, Math.floor(Math.random() * (blocks - runBlocks)) * BLOCK_BYTES);
    }
  } finally {
    closeSync(fd);
  }
}

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

function expectFields(value: unknown, fields: Readonly<Record<string, unknown>>): void {
  assert.ok(typeof value === 'object' && value !== null);
  assert.deepEqual(Object.fromEntries(Object.entries(value).filter(([name]) => name in fields)), fields);
}

/** Whether an update or a prune is under way, or was cut off. */
function isOpen(repository: string): boolean {
  const names = readdirSync(repository);
  const history = readdirSync(join(repository, 'history'));
  return names.includes('image.updating') || [...names, ...history].some((name) => name.endsWith('.new'));
}

/** A reader makes good what was cut off. */
async function settled(repository: string): Promise<void> {
  const { versions } = await listVersions(repository);
  const number = versions.at(-1)?.number ?? 0;
  await versionChanges(repository, number, number);
}

/** An image with data and holes. */
function sourceImage(lab: Lab, mib: number, name = 'disk.img'): string {
  const path = lab.image(name, mib * MIB);
  scribble(path, 12, Math.min(256, mib * 16));
  return path;
}

/** Kills backups of one source to one repository, and looks at what is left each time. Returns how many were cut off. */
async function killAgainAndAgain(lab: Lab, name: string): Promise<number> {
  const source = sourceImage(lab, 32, `${name}.img`);
  const repository = lab.path(name);
  await backup(source, repository);
  const startedMs = Date.now();
  assert.equal((await cowbird(lab, 'backup', source, repository)).status, 0);
  const usualMs = Date.now() - startedMs;
  const digests = new Map<number, string>([1, 2].map((number) => [number, digest(source)]));
  let cutOff = 0;
  for (let kill = 0; kill < KILLS / CHAINS; kill++) {
    scribble(source, 8, 100);
    const { child, ended } = start(lab, 'backup', source, repository, '--keep', '4');
    const over = ended.then(() => true);
    // Every third at any moment; the others when something is being written.
    const isAnywhere = kill % 3 === 0;
    const delayMs = isAnywhere ? usualMs * 1.5 * Math.random() : usualMs * 0.2 * Math.random() ** 2;
    while (!isAnywhere && !isOpen(repository) && !(await Promise.race([over, pause(4)])));
    await Promise.race([over, pause(delayMs)]);
    child.kill('SIGKILL');
    await ended;
    if (isOpen(repository)) cutOff++;
    await settled(repository);
    const { versions } = await listVersions(repository);
    const newest = versions.at(-1)?.number ?? 0;
    const what = `kill ${kill} after ${Math.round(delayMs)} ms, version ${newest}`;
    // A version that is there has what the source had when it was made.
    if (!digests.has(newest)) digests.set(newest, digest(source));
    assert.equal(digest(join(repository, 'image')), digests.get(newest), what);
    if (kill % 10 === 9) assert.deepEqual((await verify(repository)).damage, [], what);
  }
  for (const { number } of (await listVersions(repository)).versions) {
    await restore(`${repository}@${number}`, lab.path(`${name}.restored`));
    assert.equal(digest(lab.path(`${name}.restored`)), digests.get(number), `version ${number}`);
  }
  return cutOff;
}

test(`every version is whole after kill -9 at ${KILLS} random moments of backups that also drop old versions`, async (t: TestContext) => {
  const lab = new Lab(t);
  // Side by side: most of the time goes by with waiting.
  const chains = Array.from({ length: CHAINS }, (_, at) => killAgainAndAgain(lab, `chain${at}`));
  const cutOff = (await Promise.all(chains)).reduce((sum, count) => sum + count, 0);
  t.diagnostic(`${cutOff} of ${KILLS} kills left an open update`);
  assert.ok(cutOff >= KILLS / 10, `${cutOff} of ${KILLS} kills left an open update`);
});

test('a backup, its restore and a verify leave next to nothing in the page cache', async (t) => {
  if (!(await succeeds('fincore', '--version'))) return t.skip('needs fincore (util-linux)');
  const lab = new Lab(t);
  const source = sourceImage(lab, 256);
  await run('dd', `if=${source}`, 'iflag=nocache', 'count=0', 'status=none');
  await run('sync', source);
  await run('dd', `if=${source}`, 'iflag=nocache', 'count=0', 'status=none');
  const repository = lab.path('repo');
  await backup(source, repository);
  scribble(source, 40, 16);
  await run('sync', source);
  await run('dd', `if=${source}`, 'iflag=nocache', 'count=0', 'status=none');
  await backup(source, repository);
  await verify(repository);
  await restore(`${repository}@1`, lab.path('restored'));
  const files = [
    source,
    join(repository, 'image'),
    join(repository, 'checksums'),
    join(repository, 'history/1.cow'),
    lab.path('restored'),
  ];
  const cached = await run('fincore', '--bytes', '--noheadings', '--output', 'RES', ...files);
  const bytes = cached.trim().split('\n').map(Number);
  t.diagnostic(`cached bytes of source, image, checksums, delta, restored: ${bytes.join(', ')}`);
  assert.ok(bytes.reduce((sum, count) => sum + count, 0) <= 8 * MIB, cached);
});

test('the commands say on stderr what they did, on stdout nothing, or JSON', async (t) => {
  const lab = new Lab(t);
  const source = sourceImage(lab, 8);
  const repository = lab.path('repo');
  const first = await cowbird(lab, 'backup', source, repository);
  assert.deepEqual([first.status, first.out], [0, '']);
  assert.match(first.err, /^version 1 of .*disk\.img: .* read, .* written, engine scan \(the first version; .*\)\n$/);
  truncateSync(source, 12 * MIB);
  const second = await cowbird(lab, 'backup', source, repository, '--json', '--keep', '2');
  const summary: unknown = JSON.parse(second.out.trimEnd().split('\n').at(-1) ?? '');
  expectFields(summary, { type: 'summary', version: 2, engine: 'scan', freezeMs: 0, bytesWritten: 0 });
  assert.match((await cowbird(lab, 'versions', repository)).out, /^VERSION .*\n1 .*8\.0 MiB.*\n2 .*12 MiB.*image.*\n$/);
  assert.match((await cowbird(lab, 'changes', `${repository}@1..2`)).out, /^4\.0 MiB, 1 extent\n8388608 4194304\n$/);
  const dry = await cowbird(lab, 'prune', repository, '--keep-daily', '1', '--dry-run');
  assert.deepEqual([dry.status, dry.err], [0, '1 would be dropped; kept: 2\n']);
  assert.equal((await cowbird(lab, 'prune', repository)).status, 3);
  const fd = openSync(join(repository, 'history/1.cow'), 'r+');
  writeSync(fd, 'x', 60);
  closeSync(fd);
  const damaged = await cowbird(lab, 'verify', repository);
  assert.equal(damaged.status, 1);
  assert.match(damaged.out, /version 1: .*history\/1\.cow is damaged/);
  assert.match(damaged.err, /1 damaged place; whole: 2\n$/);
  assert.equal((await cowbird(lab, 'restore', `${repository}@1`, lab.path('out'))).status, 1);
  assert.ok(!existsSync(lab.path('out')));
});

test('a restore writes what differs, all of it when told so, and nothing when it is only asked', async (t) => {
  const lab = new Lab(t);
  const source = lab.image('disk.img', 0);
  await fill(source, 8);
  const repository = lab.path('repo');
  await backup(source, repository);
  const expected = digest(source);
  const target = lab.path('target.img');
  const asked = await restore(repository, target, { dryRun: true });
  assert.deepEqual([asked.bytesWritten, existsSync(target)], [8 * MIB, false]);
  assert.equal((await restore(repository, target)).bytesWritten, 8 * MIB);
  const fd = openSync(target, 'r+');
  writeSync(fd, randomBytes(2 * BLOCK_BYTES), 0, 2 * BLOCK_BYTES, 100 * BLOCK_BYTES);
  closeSync(fd);
  const changed = digest(target);
  assert.equal((await restore(repository, target, { dryRun: true })).bytesWritten, 2 * BLOCK_BYTES);
  assert.equal(digest(target), changed, 'nothing was written');
  assert.equal((await restore(repository, target)).bytesWritten, 2 * BLOCK_BYTES);
  assert.equal(digest(target), expected);
  assert.equal((await restore(repository, target, { all: true })).bytesWritten, 8 * MIB);
  assert.equal(digest(target), expected);
});

test('a second user is told who has the repository, and can wait', async (t) => {
  const lab = new Lab(t);
  const source = sourceImage(lab, 4);
  const repository = lab.path('repo');
  await backup(source, repository);
  const endHolder = program(lab, 'flock', ['-x', join(repository, 'lock'), 'sleep', '120']);
  await until('flock has the lock', () =>
    readFileSync('/proc/locks', 'utf8').includes(`:${statSync(join(repository, 'lock')).ino} `),
  );
  assert.equal((await cowbird(lab, 'versions', repository)).status, 0);
  const refused = await cowbird(lab, 'verify', repository);
  assert.equal(refused.status, 3);
  assert.match(refused.err, /is in use by process \d+ \((flock|sleep), started \d{4}-\d\d-\d\d .*\(EBUSY\)/);
  const waiting = cowbird(lab, 'backup', source, repository, '--wait=30');
  assert.equal(await Promise.race([waiting, pause(LOOK_MS, 'waits')]), 'waits');
  await endHolder();
  assert.equal((await waiting).status, 0);
  assert.equal((await listVersions(repository)).versions.length, 2);
});

/** Starts a first backup that takes a while, and resolves when it has begun to write. */
async function longBackup(
  lab: Lab,
): Promise<{ source: string; repository: string; child: ChildProcess; ended: Promise<Outcome> }> {
  const source = lab.image('disk.img', 512 * MIB);
  await fill(source, 160);
  const repository = lab.path('repo');
  const deadlineMs = Date.now() + COMMAND_MS_MAX;
  const started = start(lab, 'backup', source, repository);
  while (!existsSync(join(repository, 'image.updating'))) {
    assert.ok(Date.now() < deadlineMs, 'the backup is under way');
    await pause(2);
  }
  return { source, repository, ...started };
}

test('SIGTERM ends a backup with exit code 130, and a repository that has nothing yet is gone again', async (t) => {
  const lab = new Lab(t);
  const { repository, child, ended } = await longBackup(lab);
  child.kill('SIGTERM');
  const { status, err } = await ended;
  assert.equal(status, 130);
  assert.match(err, /Interrupted: the repository is whole.*\(EINTR\)/);
  assert.ok(!existsSync(repository));
});

test('a source that is written while it is read makes no version', async (t) => {
  const lab = new Lab(t);
  const { source, repository, ended } = await longBackup(lab);
  scribble(source, 1, 1);
  const { status, err } = await ended;
  assert.equal(status, 1);
  assert.match(err, /was written while it was read.*\(EBUSY\)/);
  assert.deepEqual(readdirSync(repository), ['history', 'lock']);
});

test('what cannot be backed up or restored is refused, and nothing is made', async (t) => {
  const lab = new Lab(t);
  const source = sourceImage(lab, 4);
  const repository = lab.path('repo');
  const refusals: ReadonlyArray<readonly [string[], RegExp]> = [
    [['backup', lab.path('none'), repository], /does not exist \(ENOENT\)/],
    [['backup', lab.folder, repository], /neither a block device nor an image file \(ENOTBLK\)/],
    [['backup', lab.image('empty', 0), repository], /is empty.*\(EINVAL\)/],
    [['backup', source, lab.folder], /lies in the repository/],
    [['backup', source, lab.path('a/b')], /does not exist: make it first \(ENOENT\)/],
    [['backup', source, repository, '--engine', 'magic'], /Engine `magic` is not known/],
    [['versions', lab.folder], /is no repository, and not empty/],
    [['restore', repository, lab.path('x')], /repo does not exist/],
  ];
  for (const [args, message] of refusals) {
    const { status, err } = await cowbird(lab, ...args);
    assert.equal(status, 3, args.join(' '));
    assert.match(err, message);
  }
  assert.deepEqual(readdirSync(lab.folder).sort(), ['disk.img', 'empty']);
  await backup(source, repository);
  for (const other of [lab.image('other.img', 4 * MIB), lab.image('small.img', MIB)])
    assert.equal((await cowbird(lab, 'backup', other, repository)).status, 3, other);
  assert.equal((await cowbird(lab, 'restore', repository, join(repository, 'image'))).status, 3);
  assert.equal((await listVersions(repository)).versions.length, 1);
});

test('an unused disk is backed up and restored; one in use is refused', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const loop = async (name: string, mib: number): Promise<string> => {
    const node = (await run('losetup', '-f', '--show', lab.image(name, mib * MIB))).trim();
    lab.onEnd(() => run('losetup', '-d', node));
    return node;
  };
  const [disk, spare, small] = [await loop('disk', 64), await loop('spare', 80), await loop('small', 32)];
  const repository = lab.path('repo');
  await lab.mkfs(disk, 'ext4');
  const at = await lab.mount(disk);
  await run('dd', 'if=/dev/urandom', `of=${at}/file`, 'bs=1M', 'count=9', 'status=none');
  const mounted = await cowbird(lab, 'backup', disk, repository, '--engine', 'scan');
  assert.equal(mounted.status, 3);
  assert.match(mounted.err, new RegExp(`is mounted on ${at}: engine scan wants it unmounted.*\\(EBUSY\\)`));
  assert.match((await cowbird(lab, 'backup', lab.path('disk'), repository)).err, /is behind \/dev\/loop/);
  await run('umount', at);
  assert.equal((await cowbird(lab, 'backup', disk, repository)).status, 0);
  assert.match((await cowbird(lab, 'restore', repository, small)).err, /choose a larger disk \(EINVAL\)/);
  assert.equal((await cowbird(lab, 'restore', repository, spare)).status, 0);
  const look = await lab.mount(spare, 'look');
  const inUse = await cowbird(lab, 'restore', repository, spare, '--yes');
  assert.deepEqual([inUse.status, /is mounted.*\(EBUSY\)/.test(inUse.err)], [3, true], inUse.err);
  await run('umount', look);
  await run('e2fsck', '-fn', spare);
  assert.equal((await cowbird(lab, 'restore', repository, spare, '--yes')).status, 0);
  await run('cmp', '-n', String(64 * MIB), disk, spare);
  await run('fsck.ext4', '-fn', spare);
  const asked = await cowbird(lab, 'restore', repository, spare);
  assert.deepEqual([asked.status, /holds ext2, ext3 or ext4.*--yes.*\(EEXIST\)/.test(asked.err)], [3, true]);
  await run(
    'dd',
    'if=/dev/urandom',
    `of=${spare}`,
    'bs=4k',
    'count=3',
    'seek=999',
    'conv=notrunc,fsync',
    'status=none',
  );
  const again = await cowbird(lab, 'restore', repository, spare, '--yes', '--json');
  expectFields(JSON.parse(again.out), { type: 'summary', version: 1, bytesWritten: 3 * BLOCK_BYTES });
  await run('cmp', '-n', String(64 * MIB), disk, spare);
});
