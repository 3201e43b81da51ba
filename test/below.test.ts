/** What files and disks stand on, over what the kernel itself says of real mounts. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { belowDisk, belowPath } from '../src/sys/below.js';
import { deviceNumber } from '../src/sys/blkdev.js';
import { CANNOT, Lab, MIB, run } from './lab.js';

const numberOf = (node: string): string => deviceNumber(statSync(node).rdev);
const below = (path: string): ReturnType<typeof belowPath> => belowPath(realpathSync(path), { withFiles: true });

function lacks(fsType: string): string | false {
  if (CANNOT !== false) return CANNOT;
  return readFileSync('/proc/filesystems', 'utf8').includes(`\t${fsType}\n`) ? false : `this kernel has no ${fsType}`;
}

async function loop(lab: Lab, image: string): Promise<string> {
  const node = (await run('losetup', '-f', '--show', image)).trim();
  lab.onEnd(() => run('losetup', '-d', node));
  return node;
}

test('a file stands on its disk, on the file behind that, and on the disk of that one', { skip: CANNOT }, async (t) => {
  const lab = new Lab(t);
  const outerImage = lab.image('outer', 96 * MIB);
  const outer = await loop(lab, outerImage);
  await lab.mkfs(outer, 'ext4');
  const outerAt = await lab.mount(outer, 'mnt-outer');
  await run('truncate', '-s', '24M', `${outerAt}/inner`);
  const inner = await loop(lab, `${outerAt}/inner`);
  await lab.mkfs(inner, 'ext4');
  const innerAt = await lab.mount(inner, 'mnt-inner');
  const { numbers, files } = below(innerAt);
  for (const node of [inner, outer]) assert.ok(numbers.has(numberOf(node)), node);
  const identities = files.map(({ dev, ino }) => `${dev} ${ino}`);
  for (const path of [`${outerAt}/inner`, outerImage]) {
    const { dev, ino } = statSync(path);
    assert.ok(identities.includes(`${dev} ${ino}`), path);
  }
  assert.deepEqual(belowDisk(numberOf(inner), { withFiles: false }), { numbers, files: [] });
  assert.ok(!below(outerAt).numbers.has(numberOf(inner)), 'not the other way round');
});

test('a file on a btrfs stands on all of its disks', { skip: lacks('btrfs') }, async (t) => {
  const lab = new Lab(t);
  const nodes = [await loop(lab, lab.image('a', 120 * MIB)), await loop(lab, lab.image('b', 120 * MIB))];
  await run('mkfs.btrfs', '-q', '-f', ...nodes);
  const at = await lab.mount(nodes[0] ?? '');
  for (const node of nodes) assert.ok(below(at).numbers.has(numberOf(node)), node);
});

test('a file in an overlay stands on the disk of its upper layer, also where that is named by a path in itself', {
  skip: lacks('overlay'),
}, async (t) => {
  const lab = new Lab(t);
  const node = await loop(lab, lab.image('disk', 24 * MIB));
  await lab.mkfs(node, 'ext4');
  const at = await lab.mount(node);
  for (const name of ['lower', 'upper', 'work']) mkdirSync(`${at}/${name}`);
  const merged = lab.path('merged');
  mkdirSync(merged);
  const options = `lowerdir=${at}/lower,upperdir=${at}/upper,workdir=${at}/work`;
  await run('mount', '-t', 'overlay', 'overlay', '-o', options, merged);
  lab.onEnd(() => run('umount', merged));
  assert.ok(below(merged).numbers.has(numberOf(node)));
  // As the root of a live system has it: what is mounted there now hides the layer that the option names.
  await run('mount', '--bind', merged, at);
  lab.onEnd(() => run('umount', at));
  assert.deepEqual([...below(at).numbers], []);
});
