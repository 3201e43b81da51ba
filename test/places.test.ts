/** Where a COW file lies: one of several file systems, the first blocks of the disk, large sectors, a folder that others write to. */
import assert from 'node:assert/strict';
import { chownSync, closeSync, ftruncateSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { dataOffsetBytes } from '../src/cow/geometry.js';
import { decodeHeader, encodeHeader } from '../src/cow/header.js';
import * as cowbird from '../src/index.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, succeeds } from './lab.js';

const MINOR = 236;
/** The engine has looked several times by then. */
const LOOKS_MS = 700;
const SECTORS_A_MIB = 2048;

async function addPartitions(lab: Lab, node: string): Promise<string[]> {
  const table = [1, 101].map((start) => `start=${start * SECTORS_A_MIB},size=${100 * SECTORS_A_MIB}`).join('\\n');
  await run('sh', '-c', `printf 'label: gpt\\n${table}\\n' | sfdisk -q --no-reread --no-tell-kernel ${node}`);
  for (const [i, start] of [1, 101].entries()) {
    await succeeds('partx', '-d', '-n', String(i + 1), node);
    await run('addpart', node, String(i + 1), String(start * SECTORS_A_MIB), String(100 * SECTORS_A_MIB));
    lab.onEnd(() => succeeds('delpart', node, String(i + 1)));
  }
  return [`${node}p1`, `${node}p2`];
}

test('a COW file on any of several file systems of a disk is found there, also after a reload', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const node = await lab.attached('disk', 202 * MIB);
  const parts = await addPartitions(lab, node);
  const places: string[] = [];
  for (const [i, part] of parts.entries()) {
    await lab.mkfs(part, 'ext4');
    places.push(await lab.mount(part, `mnt${i}`));
  }
  const [first = '', second = ''] = places;
  await fill(`${first}/a`, 8);
  await fill(`${second}/a`, 8);
  const snapshot = `/dev/cowbird${MINOR}`;
  await cowbird.setupSnapshot(node, `${second}/.cow`, MINOR, { storeBytes: 30 * MIB }, lab.client);
  const before = digestOf(snapshot);
  await fill(`${first}/a`, 8);
  await fill(`${second}/a`, 8);
  await pause(LOOKS_MS);
  assert.deepEqual([(await lab.status(MINOR)).state, (await lab.status(MINOR)).error], [3, undefined]);
  assert.equal(digestOf(snapshot), before);
  await cowbird.transitionToIncremental(MINOR, lab.client);
  for (const place of places) await run('umount', place);
  for (const number of ['1', '2']) await run('delpart', node, number);
  await cowbird.stopDaemon({}, lab.client);
  await cowbird.reloadIncremental(lab.link('disk'), '/.cow', MINOR, {}, lab.client);
  const again = (await cowbird.listVolumes(lab.client))[0]?.device ?? '';
  for (const [i, part] of (await addPartitions(lab, again)).entries()) await lab.mount(part, `mnt${i}`);
  await pause(LOOKS_MS);
  assert.deepEqual([(await lab.status(MINOR)).state, (await lab.status(MINOR)).error], [2, undefined]);
  // Of the usual size: that of a closed file, which has its list only, would be too small.
  await cowbird.transitionToSnapshot(MINOR, `${second}/.cow2`, {}, lab.client);
  await pause(LOOKS_MS);
  assert.deepEqual([(await lab.status(MINOR)).state, (await lab.status(MINOR)).error], [3, undefined]);
  await cowbird.destroy(MINOR, lab.client);
  assert.deepEqual(
    readdirSync(first).filter((name) => name.startsWith('.cow')),
    [],
  );
});

test('a COW file that begins in the first blocks of an XFS is gone on with after a stop, with sectors of 4096 bytes', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const minor = MINOR + 1;
  const disk = (await run('losetup', '-f', '--show', '-b', '4096', lab.image('disk.img', 320 * MIB))).trim();
  lab.onEnd(() => succeeds('losetup', '-d', disk));
  const { device } = await cowbird.attach(disk, { name: `disk-${lab.tag}` }, lab.client);
  lab.onEnd(() => cowbird.detach(`disk-${lab.tag}`, lab.client));
  const link = lab.link('disk');
  await lab.mkfs(device, 'xfs');
  const at = await lab.mount(device);
  await cowbird.setupSnapshot(device, `${at}/.cow`, minor, { storeBytes: 30 * MIB }, lab.client);
  const before = digestOf(`/dev/cowbird${minor}`);
  await fill(`${at}/a`, 4);
  await run('umount', at);
  await cowbird.stopDaemon({}, lab.client);
  await cowbird.reloadSnapshot(link, '/.cow', minor, {}, lab.client);
  assert.equal((await lab.status(minor)).error, undefined);
  await lab.mount(link);
  await fill(`${at}/b`, 4);
  const status = await lab.status(minor);
  assert.deepEqual([status.state, status.error], [3, undefined]);
  assert.equal(digestOf(`/dev/cowbird${minor}`), before);
  await cowbird.destroy(minor, lab.client);
});

test('a snapshot whose COW file is on a disk with larger sectors is read in any pieces', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  const minor = MINOR + 2;
  const disk = (await run('losetup', '-f', '--show', '-b', '4096', lab.image('store.img', 96 * MIB))).trim();
  lab.onEnd(() => succeeds('losetup', '-d', disk));
  await lab.mkfs(disk, 'ext4');
  const elsewhere = await lab.mount(disk, 'store');
  const node = await lab.attached('volume', 64 * MIB);
  await lab.mkfs(node, 'ext4');
  const at = await lab.mount(node);
  await fill(`${at}/a`, 8);
  const a = digestOf(`${at}/a`);
  await cowbird.setupSnapshot(node, `${elsewhere}/cow`, minor, { storeBytes: 40 * MIB }, lab.client);
  const snapshot = `/dev/cowbird${minor}`;
  const before = digestOf(snapshot);
  // The superblock is among what is saved, and is read in 1024 bytes by the mount.
  await fill(`${at}/a`, 8);
  await run('umount', at);
  await run('dd', `if=${snapshot}`, `of=${lab.path('copy')}`, 'bs=1536', 'iflag=direct', 'status=none');
  assert.deepEqual([digestOf(snapshot), digestOf(lab.path('copy'))], [before, before]);
  const look = await lab.mount(snapshot, 'look', '-o', 'ro,noload');
  assert.equal(digestOf(`${look}/a`), a);
  await run('umount', look);
  await cowbird.destroy(minor, lab.client);
  await run('umount', elsewhere);
});

test('a list of changes that somebody else has made is not believed', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const node = await lab.attached('volume', 64 * MIB);
  await lab.mkfs(node, 'ext4');
  const at = await lab.mount(node);
  await run('chmod', '777', at);
  await fill(`${at}/a`, 4);
  const cow = lab.path('cow');
  await run('mkdir', cow);
  const repository = lab.path('repository');
  const options = { cow, whole: true, client: lab.client };
  await cowbird.backup(node, repository, options);
  // With the number of the sequence that the next backup closes.
  const [own = ''] = readdirSync(cow);
  const number = /(\d+)$/.exec(own)?.[1] ?? '';
  const header = decodeHeader(readFileSync(join(cow, own)).subarray(0, 4096));
  const forged = openSync(join(at, `.cowbird-${number}`), 'w', 0o644);
  ftruncateSync(forged, dataOffsetBytes((64 * MIB) / 4096));
  const lengths = { fileSizeBytes: dataOffsetBytes((64 * MIB) / 4096), positionBlocks: header.positionBlocks };
  writeSync(forged, encodeHeader({ ...header, ...lengths, clean: true, indexOnly: true, changedBlocks: 0 }), 0);
  closeSync(forged);
  chownSync(join(at, `.cowbird-${number}`), 1000, 1000);
  await fill(`${at}/a`, 4);
  let digest = '';
  const onSnapshot = async (device: string): Promise<void> => {
    digest = digestOf(device);
  };
  const next = await cowbird.backup(node, repository, { ...options, onSnapshot });
  assert.equal(digestOf(join(repository, 'image')), digest, next.reason);
  assert.match(next.reason, /^the driver lists/, 'by the list that is its own');
});
