/**
 * `npm run demo`: the nine steps on a mounted, busy ext4 in an image file, each checked bit for bit; then backups to a
 * repository as one command.
 *
 * Everything lies in one folder with a fixed name, so that a run after `kill -9` finds and clears what that one left. Where
 * devices cannot be had (no root, a container) the same steps run on a plain image, through the same write path.
 */
import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ROOT, setUp } from './setup.mjs';

const BASE = join(tmpdir(), `cowbird-demo-${process.getuid()}`);
const IMAGE_BYTES = 256 * 1024 * 1024;
const STORE_BYTES = 64 * 1024 * 1024;
const COMMAND_TIMEOUT_MS = 30_000;
const NAME = 'demo.img';

const env = { ...process.env, COWBIRD_RUN_DIR: join(BASE, 'run'), COWBIRD_STATE_DIR: join(BASE, 'state') };
const mountPoint = join(BASE, 'mnt');
const checkPoint = join(BASE, 'check');
let interrupted = false;
let writer;

const load = (path) => import(pathToFileURL(join(ROOT, 'dist', 'src', path)).href);

function command(program, ...args) {
  return new Promise((resolve, reject) => {
    execFile(
      program,
      args,
      { timeout: COMMAND_TIMEOUT_MS, env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` } },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else reject(new Error(`${program} ${args.join(' ')}: ${stderr.trim() || error.message}`));
      },
    );
  });
}

/** One line that says why devices cannot be had here, or undefined. */
function whyPlain() {
  if (process.getuid() !== 0) return 'not root';
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  if (((BigInt(`0x${effective}`) >> 21n) & 1n) === 0n) return 'root without CAP_SYS_ADMIN';
  for (const device of ['/dev/fuse', '/dev/loop-control']) if (!existsSync(device)) return `no ${device}`;
  return undefined;
}

const timings = [];

async function step(text, action) {
  if (interrupted) throw new Error('interrupted');
  const startedAt = performance.now();
  const result = await action();
  const ms = Math.round(performance.now() - startedAt);
  timings.push([text, ms]);
  console.log(`  ${text.padEnd(66)} ${String(ms).padStart(6)} ms`);
  return result;
}

/** Writes, rewrites and removes files until it is stopped. */
function startWriter() {
  const loop =
    'i=0; while :; do i=$((i+1)); dd if=/dev/urandom of="$0/w$((i%9))" bs=16k count=$((i%12+1)) conv=fsync status=none || exit; rm -f "$0/w$(((i+4)%9))"; sleep 0.01; done';
  writer = spawn('sh', ['-c', loop, mountPoint], { stdio: 'ignore' });
  writer.ended = new Promise((resolve) => writer.once('exit', resolve));
}

async function stopWriter() {
  if (writer === undefined) return;
  writer.kill('SIGKILL');
  await writer.ended;
  writer = undefined;
}

async function equal(a, b, what) {
  await command('cmp', a, b).catch((error) => {
    throw new Error(`${what} differ: ${error.message}`);
  });
}

async function nineSteps() {
  const cowbird = await load('index.js');
  const client = { env };
  const origin = join(BASE, NAME);
  const image = join(BASE, 'backup.img');
  const minor = await cowbird.getFreeMinor(client);
  const snapshot = `/dev/cowbird${minor}`;
  writeFileSync(origin, '');
  truncateSync(origin, IMAGE_BYTES);
  const { device } = await step('attach an image of 256 MiB as a block device', () =>
    cowbird.attach(origin, {}, client),
  );
  await step(`mkfs.ext4 ${device}, mount, start a busy writer`, async () => {
    await command('mkfs.ext4', '-q', '-b', '4096', device);
    await command('mount', device, mountPoint);
    await command('dd', 'if=/dev/urandom', `of=${join(mountPoint, 'payload')}`, 'bs=1M', 'count=32', 'status=none');
    startWriter();
  });
  await step('1 setup-snapshot', () =>
    cowbird.setupSnapshot(device, join(mountPoint, '.cow1'), minor, { storeBytes: STORE_BYTES }, client),
  );
  await step('2 copy the snapshot with dd', () =>
    command('dd', `if=${snapshot}`, `of=${image}`, 'bs=1M', 'iflag=direct', 'status=none'),
  );
  await step('  image and snapshot are equal, bit for bit', () => equal(image, snapshot, 'image and snapshot'));
  await step('3 transition-to-incremental', () => cowbird.transitionToIncremental(minor, client));
  await step('4 work goes on: a second of writes, a trim', async () => {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    await command('fstrim', mountPoint).catch(() => undefined);
  });
  await step('5 transition-to-snapshot', () =>
    cowbird.transitionToSnapshot(minor, join(mountPoint, '.cow2'), { storeBytes: STORE_BYTES }, client),
  );
  const updated = await step('6 update-img: only the changed blocks', () =>
    cowbird.updateImageFromSnapshot({ snapshot, cowFile: join(mountPoint, '.cow1'), image, client }),
  );
  await step(
    `  image and second snapshot are equal (${updated.changedBlocks} of ${updated.totalBlocks} blocks copied)`,
    () => equal(image, snapshot, 'updated image and snapshot'),
  );
  await step('7 remove the old COW file', () => command('rm', join(mountPoint, '.cow1')));
  await step('8 transition-to-incremental, for the next round', () => cowbird.transitionToIncremental(minor, client));
  await step('9 destroy', () => cowbird.destroy(minor, client));
  await repositoryIn(cowbird, device, client);
  await stopWriter();
  await step('mount the updated image, look into it, fsck it', async () => {
    await command('mount', '-o', 'loop', image, checkPoint);
    await equal(join(checkPoint, 'payload'), join(mountPoint, 'payload'), 'files of image and volume');
    await command('umount', checkPoint);
    await command('e2fsck', '-fn', image);
  });
  await step('umount, detach; the image file is an ordinary disk again', async () => {
    await command('umount', mountPoint);
    await cowbird.detach(NAME, client);
    await command('e2fsck', '-fn', origin);
  });
}

/** The same as one command: three versions in a repository, the oldest mounted, the newest restored. */
async function repositoryIn(cowbird, device, client) {
  const repository = join(BASE, 'repository');
  const oldest = join(BASE, 'oldest');
  mkdirSync(oldest);
  for (let version = 1; version <= 3; version++) {
    const made = await step(`cowbird backup: version ${version}`, () => cowbird.backup(device, repository, { client }));
    console.log(`    ${made.reason}; frozen for ${made.freezeMs} ms`);
    if (version < 3)
      await command(
        'dd',
        'if=/dev/urandom',
        `of=${join(mountPoint, `new${version}`)}`,
        'bs=1M',
        'count=2',
        'status=none',
      );
  }
  await step('cowbird mount of the oldest: it has the payload, and nothing newer', async () => {
    await cowbird.mount(`${repository}@1`, oldest, { client });
    await equal(join(oldest, 'payload'), join(mountPoint, 'payload'), 'files of version 1 and volume');
    if (existsSync(join(oldest, 'new1'))) throw new Error('version 1 has a later file');
    await cowbird.umount(oldest);
  });
  await step('cowbird restore of the newest to an image, mount, fsck', async () => {
    const restored = join(BASE, 'restored.img');
    await cowbird.restore(repository, restored);
    await command('mount', '-o', 'loop', restored, checkPoint);
    await equal(join(checkPoint, 'new2'), join(mountPoint, 'new2'), 'files of version 3 and volume');
    await command('umount', checkPoint);
    await command('e2fsck', '-fn', restored);
  });
  const tracked = (await cowbird.info(undefined, client)).devices;
  for (const { minor } of tracked) await cowbird.destroy(minor, client);
}

/** Takes everything down that this or an earlier demo put up. Never throws: each piece is tried on its own. */
async function clear() {
  await stopWriter();
  const attempt = (action) =>
    Promise.resolve()
      .then(action)
      .catch(() => undefined);
  if (!existsSync(BASE)) return;
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4]);
  for (const point of mounts.filter((path) => [mountPoint, checkPoint, join(BASE, 'oldest')].includes(path)))
    await attempt(() => command('umount', point));
  const { daemonStatus, stopDaemon, info, destroy, listVolumes, detach } = await load('index.js');
  const status = await daemonStatus({ env }).catch(() => undefined);
  if (status !== undefined) {
    const client = { env };
    for (const { minor } of (await info(undefined, client).catch(() => ({ devices: [] }))).devices)
      await attempt(() => destroy(minor, client));
    for (const { name } of await listVolumes(client).catch(() => [])) await attempt(() => detach(name, client));
    await attempt(() => stopDaemon({ force: true }, client));
  }
  const { cleanUpStale } = await load('engine/stale.js');
  await attempt(() => cleanUpStale(join(BASE, 'run', 'fuse')));
  const left = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.split(' ')[4]?.startsWith(BASE));
  if (left.length > 0)
    console.error(`demo: still mounted, so ${BASE} stays: ${left.map((line) => line.split(' ')[4]).join(', ')}`);
  else rmSync(BASE, { recursive: true, force: true });
}

export async function main() {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.on(signal, () => {
      interrupted = true;
    });
  }
  const startedAt = Date.now();
  try {
    await setUp('demo');
  } catch (error) {
    console.error(`setup: ${error.message}`);
    return interrupted ? 130 : 1;
  }
  const plain = whyPlain();
  if (plain !== undefined) {
    console.log(`No devices here (${plain}): the demo runs the same steps on a plain image, without mounting it.`);
    const { plainDemo } = await import('./demo-plain.mjs');
    return plainDemo(load);
  }
  await clear();
  mkdirSync(mountPoint, { recursive: true });
  mkdirSync(checkPoint, { recursive: true });
  console.log(`Cowbird: the nine steps, in ${BASE}\n`);
  let exitCode = 0;
  try {
    await nineSteps();
  } catch (error) {
    console.error(interrupted ? '\ndemo: interrupted; clearing up' : `\ndemo failed: ${error.message}`);
    exitCode = interrupted ? 130 : 1;
  }
  await clear();
  if (exitCode === 0)
    console.log(
      `\nAll equal. ${timings.length} steps in ${((Date.now() - startedAt) / 1000).toFixed(1)} s; nothing is left behind.`,
    );
  return exitCode;
}
