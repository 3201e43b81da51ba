/** Backups of mounted, busy volumes: every version is the volume at one moment, whatever is killed in between. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { sweepDevices } from '../src/backup/device-folder.js';
import * as cowbird from '../src/index.js';
import { backingFileOf } from '../src/sys/blkdev.js';
import {
  type Bench,
  busyVolume,
  COWBIRD,
  killBackups,
  type Made,
  mountedVolume,
  overwrite,
  ownFiles,
  requireSound,
  restored,
  wholeBackup,
} from './backup-scenarios.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

/** The long run has more. */
const KILLS = 10;
const VERSIONS = 10;
const USED_VERSIONS = 2;
const REFUSED = 3;
/** What tests beside this one may have taken of the last minors. */
const MINORS_NEAR = 32;
/** What a first version may write that leaves free blocks out, of a volume of 60 MiB with 20 MiB in a removed file. */
const USED_BYTES_MAX = 22 * MIB;
/** And what a next one may read, of which 4 MiB in a file changed. */
const NEXT_BYTES_MAX = 20 * MIB;

/** Without the free blocks: nothing is missing. */
async function usedBlocksOnly(bench: Bench, repository: string): Promise<void> {
  const { lab, name, type, node, at } = bench;
  await fill(join(at, 'gone'), 20);
  await run('sync', '-f', at);
  await run('rm', join(at, 'gone'));
  const reference = lab.path(`${name}-reference.img`);
  const onSnapshot = (device: string): Promise<void> => copy(device, reference);
  let first = '';
  for (let version = 1; version <= USED_VERSIONS; version++) {
    const made = await cowbird.backup(node, repository, { onSnapshot, client: lab.client });
    assert.deepEqual(made.warnings, []);
    assert.ok(version > 1 || made.bytesWritten < USED_BYTES_MAX, `${made.bytesWritten} bytes were written`);
    // The new COW file, 20 MiB and more, is listed as changed, and known to be zeros.
    assert.ok(version === 1 || made.bytesRead < NEXT_BYTES_MAX, `${made.bytesRead} bytes were read`);
    const files = await requireSound(reference, type, true);
    if (version === 1) first = files;
    assert.equal(await requireSound(await restored(repository), type, true), files);
    await fill(join(at, `more${version}`), 4);
    await run('rm', '-f', join(at, `more${version - 1}`));
  }
  await oldestMounted(bench, repository, first);
}

/** Read-only, and writable for a try. */
async function oldestMounted({ lab, name, node }: Bench, repository: string, files: string): Promise<void> {
  for (const writable of [false, true]) {
    const look = lab.path(`${name}-oldest`);
    mkdirSync(look, { recursive: true });
    const { device } = await cowbird.mount(`${repository}@1`, look, { writable, client: lab.client });
    const file = backingFileOf(device);
    lab.onEnd(() => cowbird.umount(look));
    const payload = await run('sha256sum', join(look, 'payload'));
    assert.ok(files.includes(payload.split(' ')[0] ?? '?'));
    assert.equal(await succeeds('touch', join(look, 'new')), writable);
    await assert.rejects(cowbird.backup(node, repository, { client: lab.client }), { code: 'EBUSY' });
    await cowbird.umount(look);
    // Its number may be another disk's by now.
    assert.ok(!readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${look} `));
    const now = backingFileOf(device);
    assert.ok(now === undefined || now !== file, `${device} is still bound to ${file}`);
  }
}

/** Ten versions under load, by the driver's lists. */
async function versionsUnderLoad({ lab, node, at }: Bench, repository: string): Promise<Map<number, string>> {
  const digests = new Map<number, string>();
  for (let version = 1; version <= VERSIONS; version++) {
    const made = await wholeBackup(lab, node, repository);
    assert.deepEqual([made.version, made.engine, made.warnings], [version, 'driver', []]);
    if (version > 1) assert.match(made.reason, /^the driver lists/);
    digests.set(version, made.digest);
    overwrite(join(at, 'payload'), 200);
  }
  return digests;
}

function usersFiles(list: string): string {
  const lines = list.split('\n').filter((line) => !line.includes('.cowbird'));
  return lines.join('\n');
}

async function versionsOf(lab: Lab, type: string): Promise<void> {
  const bench = await busyVolume(lab, type, type);
  const { node, at, stop } = bench;
  const used = lab.path(`${type}-used`);
  const repository = lab.path(`${type}-repository`);
  await usedBlocksOnly(bench, used);
  const digests = await versionsUnderLoad(bench, repository);
  assert.ok(await stop(), 'the writer went on');
  const { devices } = await cowbird.info(undefined, lab.client);
  const status = devices.find(({ block_device }) => block_device === node);
  assert.deepEqual([status?.state, status?.seq_id], [2, USED_VERSIONS + VERSIONS]);
  assert.ok(
    (status?.minor ?? 0) > 255 - MINORS_NEAR,
    `minor ${status?.minor} is taken from the end: users begin with 0`,
  );
  assert.deepEqual(ownFiles(at), [`.cowbird-${USED_VERSIONS + VERSIONS}`]);
  // Not mounted: claimed and read by the list of the driver. Then another repository takes the map away.
  await run('umount', at);
  const offline = await cowbird.backup(lab.link(type), repository, { whole: true, client: lab.client });
  assert.match(offline.reason, /^the driver lists/);
  // But for the COW file, which is Cowbird's own and no user's.
  const copied = lab.path(`${type}-copied.img`);
  await copy(node, copied);
  const offlineFiles = usersFiles(await requireSound(copied, type, true));
  await run('mount', node, at);
  const other = await cowbird.backup(node, used, { client: lab.client });
  assert.match(other.reason, /^contents were compared: the list of changes since snapshot 2 is gone/);
  const mixed = await wholeBackup(lab, node, repository);
  assert.match(mixed.reason, /^contents were compared: the list of changes since snapshot 12 is gone/);
  digests.set(mixed.version, mixed.digest);
  for (const [version, digest] of digests) {
    const image = await restored(`${repository}@${version}`);
    assert.equal(digestOf(image), digest, `version ${version}`);
    await requireSound(image, type);
    await run('rm', image);
  }
  await cowbird.prune(repository, { last: 3 });
  for (const version of [VERSIONS, mixed.version])
    assert.equal(digestOf(await restored(`${repository}@${version}`)), digests.get(version));
  const between = await restored(`${repository}@${offline.version}`);
  assert.equal(usersFiles(await requireSound(between, type, true)), offlineFiles);
  assert.deepEqual((await cowbird.verify(repository)).damage, []);
}

/** Goes on after a clean stop of the daemon, and begins anew after a mount behind its back. */
async function reloaded(lab: Lab): Promise<void> {
  const { at } = await mountedVolume(lab, 'disk', 'ext4', 64 * MIB, 4);
  const repository = lab.path('repository');
  const link = lab.link('disk');
  const next = (): Promise<Made> => wholeBackup(lab, link, repository);
  const requireRight = async (digest: string): Promise<void> =>
    assert.equal(digestOf(await restored(repository)), digest);
  await next();
  await run('umount', at);
  await cowbird.stopDaemon({}, lab.client);
  await cowbird.startDaemon(lab.client);
  // Not mounted: it reloads what the stop left clean; not verified yet, so contents are compared.
  assert.equal((await cowbird.backup(link, repository, { whole: true, client: lab.client })).engine, 'scan');
  await run('mount', link, at);
  await fill(join(at, 'more'), 2);
  const goneOn = await next();
  assert.match(goneOn.reason, /^the driver lists what changed since version 2/);
  await requireRight(goneOn.digest);
  // Used without Cowbird in between.
  await run('umount', at);
  await cowbird.stopDaemon({}, lab.client);
  await run('mount', '-o', 'loop', lab.path('disk'), at);
  await fill(join(at, 'behind'), 2);
  await run('umount', at);
  await cowbird.startDaemon(lab.client);
  await run('mount', link, at);
  const anew = await next();
  assert.match(anew.reason, /^contents were compared: /);
  await requireRight(anew.digest);
  assert.deepEqual(ownFiles(at), ['.cowbird-1']);
}

/** Its COW files lie elsewhere. */
async function volumeWithoutFileSystem(lab: Lab): Promise<void> {
  const node = await lab.attached('raw', 24 * MIB);
  await fill(node, 24, 'oflag=direct');
  const repository = lab.path('raw-repository');
  const cow = lab.path('cow');
  mkdirSync(cow);
  for (let version = 1; version <= 4; version++) {
    const place = version === 3 ? { cow } : {};
    const made = await cowbird.backup(lab.path('raw'), repository, { client: lab.client, ...place });
    if (version > 1) assert.match(made.reason, /^the driver lists/);
    assert.equal(digestOf(join(repository, 'image')), digestOf(node), `version ${version}`);
    await run('dd', 'if=/dev/urandom', `of=${node}`, 'bs=4k', 'count=3', `seek=${version * 99}`, 'oflag=direct');
  }
  assert.deepEqual(
    [readdirSync(cow), readdirSync(lab.path('state/cow')).filter((file) => file.includes('raw'))],
    [[], [`.cowbird-raw-${lab.tag}-4`]],
  );
}

async function refusals({ lab, node, at }: Bench): Promise<void> {
  const refused = (expected: object, source = node, repository = lab.path('repository')): Promise<void> =>
    assert.rejects(cowbird.backup(source, repository, { client: lab.client }), expected);
  await refused({ code: 'EINVAL', message: /lies on disk/ }, node, join(at, 'repository'));
  await cowbird.setupSnapshot(node, join(at, '.mine'), 238, {}, lab.client);
  await refused({ code: 'EBUSY', message: /tracked as minor 238/ });
  await cowbird.destroy(238, lab.client);
  const plain = lab.image('plain', 32 * MIB);
  await lab.mkfs(plain, 'ext4');
  const mounted = await lab.mount(plain, 'plain-mnt', '-o', 'loop');
  const loop = (await run('findmnt', '-n', '-o', 'SOURCE', mounted)).trim();
  await assert.rejects(cowbird.backup(loop, lab.path('r'), { engine: 'scan', client: lab.client }), {
    code: 'EBUSY',
    message: /is mounted on/,
  });
  await assert.rejects(cowbird.backup(loop, lab.path('r'), { engine: 'driver', client: lab.client }), {
    code: 'EINVAL',
  });
  // A file that only has the name of a COW file is the user's.
  writeFileSync(join(at, '.cowbird-9'), 'a file of the user');
  await cowbird.backup(node, lab.path('repository'), { client: lab.client });
  assert.deepEqual(ownFiles(at).sort(), ['.cowbird-1', '.cowbird-9']);
  await run('rm', join(at, '.cowbird-9'));
  await assert.rejects(cowbird.umount(at), { code: 'EINVAL' });
  const child = spawn(COWBIRD, ['umount', at], { stdio: 'ignore', env: lab.env });
  assert.equal(await new Promise((done) => child.once('close', done)), REFUSED);
}

/** More is overwritten than the COW file can hold. */
async function failingSnapshot({ lab, node, at }: Bench): Promise<void> {
  const { client } = lab;
  const repository = lab.path('repository');
  const onSnapshot = (): Promise<void> => fill(join(at, 'payload'), 44);
  const failing = cowbird.backup(node, repository, { onSnapshot, client, whole: true, skipBadBlocks: true });
  await assert.rejects(failing, { code: 'EIO', outcome: 'failed' });
  assert.deepEqual((await cowbird.listVersions(repository)).versions.length, 1);
  const anew = await wholeBackup(lab, node, repository);
  assert.match(anew.reason, /^contents were compared: tracking had failed \(the COW file is full/);
  assert.equal(digestOf(join(repository, 'image')), anew.digest);
  assert.deepEqual(ownFiles(at), ['.cowbird-1']);
}

// Two at a time, with one daemon: minors are the machine's.
test('backups of volumes in use', { skip: CANNOT, concurrency: 2 }, async (t) => {
  const lab = new Lab(t);
  await Promise.all([
    ...['ext4', 'xfs'].map((type) =>
      t.test(`of ${type} are its snapshots, bit for bit or without free blocks, mounted, mixed, pruned and sound`, () =>
        versionsOf(lab, type),
      ),
    ),
    t.test('that are killed again and again under a busy writer: the next one misses nothing', (inner) =>
      killBackups(inner, lab, KILLS),
    ),
    t.test('are refused where they cannot be made, and make no version of a snapshot that fails', async () => {
      const bench = await mountedVolume(lab, 'disk', 'ext4', 96 * MIB, 44);
      await refusals(bench);
      await failingSnapshot(bench);
    }),
    t.test('need no file system', () => volumeWithoutFileSystem(lab)),
  ]);
});

test(
  'backups go on with the tracking after a clean stop, and begin anew after anything else',
  {
    skip: CANNOT,
  },
  (t) => reloaded(new Lab(t)),
);

test('a device of a version leaves nothing: unmounted, killed, or its maker killed', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const repository = lab.path('repository');
  await fill(lab.image('small', 0), 2);
  await cowbird.backup(lab.path('small'), repository);
  const runDir = lab.path('run');
  const folders = (): string[] =>
    existsSync(runDir) ? readdirSync(runDir).filter((name) => name.startsWith('cowbird-device-')) : [];
  lab.onEnd(async () => sweepDevices(runDir));
  const { device } = await cowbird.device(repository, { client });
  const pid = Number(/-(\d+)-/.exec(folders()[0] ?? '')?.[1]);
  process.kill(pid, 'SIGKILL');
  await until('the process is gone', () => !existsSync(`/proc/${pid}`));
  const again = await cowbird.device(repository, { client });
  assert.equal(digestOf(again.device), digestOf(lab.path('small')));
  assert.equal(folders().length, 1);
  await cowbird.umount(again.device);
  for (let attempt = 0; attempt < 3; attempt++) {
    const child = spawn(COWBIRD, ['device', repository], { stdio: 'ignore', env: lab.env });
    const ended = new Promise((done) => child.once('close', done));
    await until('the device is being made', () => folders().length > 0, 15_000);
    child.kill('SIGKILL');
    await ended;
    await until('nobody’s device has ended', () => folders().length === 0, 15_000);
  }
  // The repository is locked by nobody, or by one that is just ending.
  await cowbird.backup(lab.path('small'), repository, { waitMs: 5_000 });
  assert.ok(!(await run('losetup', '-a')).includes(lab.folder), device);
  assert.ok(!readFileSync('/proc/self/mountinfo', 'utf8').includes(lab.folder));
});

test('a damaged block of a version on a device is an error of that block, and of no other', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const { client } = lab;
  const repository = lab.path('repository');
  const source = lab.image('small', 0);
  await fill(source, 2);
  await cowbird.backup(source, repository);
  const DAMAGED_BLOCK = 37;
  const fd = openSync(join(repository, 'image'), 'r+');
  writeSync(fd, 'rotten', DAMAGED_BLOCK * 4096 + 100);
  closeSync(fd);
  const { device } = await cowbird.device(repository, { client });
  lab.onEnd(() => cowbird.umount(device));
  const read = (block: number, blocks: number): Promise<string> =>
    run('dd', `if=${device}`, `of=${lab.path('read')}`, 'bs=4096', `skip=${block}`, `count=${blocks}`, 'iflag=direct');
  await assert.rejects(read(DAMAGED_BLOCK, 1), /Input\/output error/);
  const bytes = readFileSync(source);
  for (const [block, blocks] of [
    [0, DAMAGED_BLOCK],
    [DAMAGED_BLOCK + 1, 512 - DAMAGED_BLOCK - 1],
  ] as const) {
    await read(block, blocks);
    assert.ok(readFileSync(lab.path('read')).equals(bytes.subarray(block * 4096, (block + blocks) * 4096)));
  }
});
