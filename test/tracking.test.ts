/** The tracker on real disks: what counts, what does not, who shares a disk, and what ends trust. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KernelMap } from '../src/live/kernel-map.js';
import { pinFolder, trackingFolder } from '../src/live/places.js';
import {
  BlockBitmap,
  type LiveTracking,
  listTracking,
  openTracking,
  startTracking,
  stopTracking,
} from '../src/live/tracking.js';
import { mapPinnedArray } from '../src/sys/bpf.js';
import { unmap } from '../src/sys/libc.js';
import { Lab, MIB, run, succeeds, until } from './lab.js';
import { CANNOT_TRACK, DirectWriter, loopDevice, recovered, trackerPlace, zramDevice } from './tracking-lab.js';

const skip = CANNOT_TRACK;
const GIB = 1024 * MIB;

/** What was taken since the last call, as runs in words: `7+100 16000+1`. */
function changes(tracking: LiveTracking): string {
  const bits = new BlockBitmap(tracking.blockCount);
  const added = tracking.take(bits);
  assert.equal(added, bits.count(), 'take says how many it added');
  assert.equal(tracking.doubt(), undefined);
  return [...bits.runs()].map(({ first, count }) => `${first}+${count}`).join(' ');
}

function reasonOf(opened: LiveTracking | { reason: string }): string {
  if ('reason' in opened) return opened.reason;
  opened.close();
  return 'trusted';
}

for (const kind of ['loop', 'zram'] as const) {
  test(`writes, parts of blocks, discards and zeroes on a ${kind} disk count, reads do not`, { skip }, async (t) => {
    const lab = new Lab(t);
    const runDir = trackerPlace(lab);
    const device = kind === 'loop' ? await loopDevice(lab, 256 * MIB) : await zramDevice(lab, 256 * MIB);
    if (device === undefined) return t.skip('no zram here');
    const tracking = startTracking(device, 'user', runDir);
    const writer = new DirectWriter(lab, device);
    assert.equal(changes(tracking), '');
    writer.blocks(7, 100);
    assert.equal(changes(tracking), '7+100');
    await run('dd', `if=${device}`, 'of=/dev/null', 'bs=1M', 'count=64', 'iflag=direct', 'status=none');
    assert.equal(changes(tracking), '');
    if (kind === 'loop') {
      assert.ok(writer.write(16_001 * 512, 512));
      assert.equal(changes(tracking), '2000+1', 'one sector is its whole block');
    }
    await run('blkdiscard', '-o', String(64 * MIB), '-l', String(64 * MIB), device);
    assert.equal(changes(tracking), '16384+16384');
    await run('blkdiscard', '-z', '-o', String(200 * MIB), '-l', String(MIB), device);
    assert.equal(changes(tracking), '51200+256');
    await run('dd', 'if=/dev/zero', `of=${device}`, 'bs=1M', 'count=1', 'seek=255', 'conv=fsync', 'status=none');
    assert.equal(changes(tracking), '65280+256', 'buffered writes count when they reach the disk, the last block too');
    tracking.close();
    return undefined;
  });
}

test('a zram disk that was reset has other contents as the same disk: its map is not trusted any more', {
  skip,
}, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await zramDevice(lab, 64 * MIB);
  if (device === undefined) return t.skip('no zram here');
  const fill = (blocks: number): Promise<string> =>
    run('dd', 'if=/dev/urandom', `of=${device}`, 'bs=4k', `count=${blocks}`, 'oflag=direct', 'status=none');
  const tracking = startTracking(device, 'user', runDir);
  await fill(2000);
  assert.equal(changes(tracking), '0+2000');
  const token = tracking.commit();
  tracking.close();
  assert.equal(reasonOf(openTracking(device, 'user', runDir, token)), 'trusted');
  const folder = device.replace('/dev/', '/sys/block/');
  writeFileSync(`${folder}/reset`, '1');
  writeFileSync(`${folder}/disksize`, String(64 * MIB));
  // As many sectors as before, and more.
  for (const blocks of [2000, 3000]) {
    await fill(blocks);
    assert.notEqual(reasonOf(openTracking(device, 'user', runDir, token)), 'trusted', `${blocks} blocks were written`);
  }
  return undefined;
});

test('a write that fails counts: it may have changed sectors', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const small = lab.path('small');
  mkdirSync(small);
  await run('mount', '-t', 'tmpfs', '-o', 'size=4M', 'none', small);
  lab.onEnd(() => run('umount', small));
  const device = await loopDevice(lab, 64 * MIB, 'small/disk.img');
  const tracking = startTracking(device, 'user', runDir);
  const writer = new DirectWriter(lab, device);
  for (let mib = 0; mib < 4; mib++) writer.write(mib * MIB, MIB);
  changes(tracking);
  assert.equal(writer.write(32 * MIB, MIB), false, 'the tmpfs below is full');
  assert.equal(changes(tracking), '8192+256');
  tracking.close();
});

test('a partition sees its own blocks, whoever writes them: also where it begins within one', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 64 * MIB);
  const parts = [
    { number: 1, start: 2048, sectors: 16_384 },
    { number: 2, start: 32_771, sectors: 8_000 },
  ];
  for (const { number, start, sectors } of parts) {
    await run('addpart', device, String(number), String(start), String(sectors));
    lab.onEnd(() => succeeds('delpart', device, String(number)));
  }
  await until('partitions are there', () => existsSync(`${device}p2`));
  const [whole, aligned, unaligned] = [device, `${device}p1`, `${device}p2`].map((node) =>
    startTracking(node, 'user', runDir),
  );
  assert.ok(whole !== undefined && aligned !== undefined && unaligned !== undefined);
  assert.equal(aligned.blockCount, 2048);
  new DirectWriter(lab, device).blocks(256 + 5, 2);
  new DirectWriter(lab, `${device}p1`).blocks(2047, 1);
  assert.equal(changes(aligned), '5+2 2047+1', 'through the whole disk and through the partition');
  assert.equal(changes(unaligned), '');
  assert.equal(changes(whole), '261+2 2303+1');
  // Sector 32771 is the fourth of a block: the partition's first block lies in two of the disk.
  new DirectWriter(lab, `${device}p2`).write(4096, 4096);
  assert.equal(changes(unaligned), '0+3', 'never less than what was written');
  new DirectWriter(lab, device).blocks(256 + 2048, 1);
  assert.equal(changes(aligned), '', 'the block after the partition is not its own');
  for (const tracking of [whole, aligned, unaligned]) tracking.close();
});

test('several users of one disk each see every change, and several disks do not meet', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const [first, second] = [await loopDevice(lab, 64 * MIB, 'a.img'), await loopDevice(lab, 64 * MIB, 'b.img')];
  const one = startTracking(first, 'one', runDir);
  new DirectWriter(lab, first).blocks(1, 1);
  const two = startTracking(first, 'two', runDir);
  const other = startTracking(second, 'one', runDir);
  new DirectWriter(lab, first).blocks(100, 3);
  new DirectWriter(lab, second).blocks(200, 4);
  assert.equal(changes(one), '1+1 100+3');
  assert.equal(changes(two), '100+3', 'what changed before it started is not of its concern');
  assert.equal(changes(other), '200+4');
  assert.throws(() => startTracking(first, 'two', runDir), /Another process makes a version/);
  assert.throws(() => stopTracking(first, runDir), /Another process makes a version/);
  for (const tracking of [one, two, other]) tracking.close();
  const listed = listTracking(runDir).map(({ device, user, changedBlocks, doubt }) => [
    device,
    user,
    changedBlocks,
    doubt,
  ]);
  assert.deepEqual(
    listed.sort(),
    [
      [first, 'one', 4, null],
      [first, 'two', 3, null],
      [second, 'one', 4, null],
    ].sort(),
  );
  assert.equal(stopTracking(first, runDir, 'two'), 1);
  assert.equal(stopTracking(first, runDir), 1);
  assert.equal(stopTracking(second, runDir), 1);
  assert.ok(!existsSync(pinFolder(runDir)), 'no pin is left');
  assert.ok(!existsSync(trackingFolder(runDir)), 'nor a mount');
});

test('the kernel goes on with nobody there, and the token tells what is in the newest version', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 64 * MIB);
  const writer = new DirectWriter(lab, device);
  const open = (token: LiveTracking['token']): LiveTracking => {
    const opened = openTracking(device, 'user', runDir, token);
    assert.ok(!('reason' in opened), JSON.stringify(opened));
    return opened;
  };
  let tracking = startTracking(device, 'user', runDir);
  const base = tracking.token;
  tracking.close();
  writer.blocks(10, 5);
  tracking = open(base);
  assert.equal(changes(tracking), '10+5');
  tracking.abandon();
  assert.equal(changes(tracking), '10+5', 'what was abandoned counts again');
  const { next } = tracking;
  tracking.close();
  writer.blocks(20, 1);
  tracking = open(next);
  assert.equal(changes(tracking), '20+1', 'the manifest had it, so it was committed');
  assert.equal(tracking.token.generation, 1);
  const older = reasonOf(openTracking(device, 'other', runDir, base));
  assert.match(older, /not tracked for other/);
  assert.deepEqual(tracking.commit(), tracking.token);
  tracking.close();
  assert.match(
    reasonOf(openTracking(device, 'user', runDir, base)),
    /newest version was not made from what is tracked/,
  );
});

test('trust ends with the boot, the disk, its size, the map, and whatever the kernel could not see', {
  skip,
}, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 64 * MIB);
  const begin = (): LiveTracking['token'] => {
    const tracking = startTracking(device, 'user', runDir);
    tracking.close();
    return tracking.token;
  };
  const reason = (token: LiveTracking['token']): string => reasonOf(openTracking(device, 'user', runDir, token));
  let token = begin();
  assert.equal(reason(token), 'trusted');
  assert.match(reason({ ...token, bootId: 'another' }), /machine was started anew/);
  const again = begin();
  assert.match(reason(token), /newest version was not made/);
  assert.match(reason({ ...token, mapId: '0'.repeat(32) }), /started anew/);
  token = again;

  const folder = readdirSync(pinFolder(runDir)).map((name) => join(pinFolder(runDir), name))[0] ?? '';
  const counters = ['passed through', 'beyond the end', 'operation', 'under way when', 'more writes', 'processor'];
  for (const [i, words] of counters.entries()) {
    token = begin();
    const state = mapPinnedArray(join(folder, 'map_state'));
    assert.ok(state !== undefined);
    new BigUint64Array(state.bytes, 176)[i] = 1n;
    unmap(state);
    assert.match(reason(token), new RegExp(words));
    assert.match(listTracking(runDir)[0]?.doubt ?? '', new RegExp(words));
  }

  token = begin();
  unlinkSync(join(folder, 'link_request_2'));
  assert.match(reason(token), /not in the kernel any more/);
  token = begin();
  execFileSync('truncate', ['-s', String(80 * MIB), lab.path('disk.img')]);
  const held = openTracking(device, 'user', runDir, token);
  assert.ok(!('reason' in held));
  await run('losetup', '-c', device);
  assert.match(held.doubt() ?? '', /was resized/);
  held.close();
  assert.match(reason(token), /was resized/);
  token = begin();
  await run('losetup', '-d', device);
  await until('the device is free', () => !existsSync(`/sys/block/${device.slice(5)}/loop`));
  await run('losetup', '--direct-io=on', device, lab.path('disk.img'));
  assert.match(reason(token), /is another disk, medium or partition/);
});

test('what a killed start left behind is removed, and an unknown layout is not read', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 64 * MIB);
  const first = startTracking(device, 'user', runDir);
  first.close();
  const folder = join(pinFolder(runDir), readdirSync(pinFolder(runDir))[0] ?? '');
  const set = (at: number, value: number): void => {
    const state = mapPinnedArray(join(folder, 'map_state'));
    assert.ok(state !== undefined);
    new DataView(state.bytes).setUint32(at, value, true);
    unmap(state);
  };
  set(8, 0);
  assert.match(reasonOf(openTracking(device, 'user', runDir, first.token)), /not started completely/);
  const second = startTracking(device, 'user', runDir);
  assert.notEqual(second.token.mapId, first.token.mapId);
  new DirectWriter(lab, device).blocks(3, 1);
  assert.equal(changes(second), '3+1');
  second.close();
  set(4, 99);
  assert.match(
    reasonOf(openTracking(device, 'user', runDir, second.token)),
    /version of Cowbird that this one does not know/,
  );
  for (const name of readdirSync(folder).filter((pin) => pin.startsWith('link_'))) unlinkSync(join(folder, name));
  startTracking(device, 'user', runDir).close();
  assert.ok(KernelMap.open(folder) instanceof KernelMap);
});

for (const kind of ['loop', 'zram'] as const) {
  test(`under load on a ${kind} disk no block is lost, and none is told twice but those under way`, {
    skip,
  }, async (t) => {
    const lab = new Lab(t);
    const runDir = trackerPlace(lab);
    const device = kind === 'loop' ? await loopDevice(lab, 256 * MIB) : await zramDevice(lab, 256 * MIB);
    if (device === undefined) return t.skip('no zram here');
    const tracking = startTracking(device, 'user', runDir);
    const all = new BlockBitmap(tracking.blockCount);
    // Every block exactly once, in random order.
    const args = [
      '--name=once',
      `--filename=${device}`,
      '--rw=randwrite',
      '--bs=4k',
      '--direct=1',
      '--ioengine=libaio',
    ];
    const child = spawn('fio', [...args, '--iodepth=16', '--size=256M'], { cwd: tmpdir(), stdio: 'ignore' });
    let status: number | null = null;
    child.once('exit', (code) => {
      status = code ?? 1;
    });
    let sum = 0;
    let takes = 0;
    const one = new BlockBitmap(tracking.blockCount);
    while (status === null) {
      one.clearAll();
      for (let i = 0; i < 10; i++, takes++) sum += tracking.take(one);
      for (const { first, count } of one.runs()) all.setRange(first, count);
      await new Promise((resolve) => setImmediate(resolve));
    }
    one.clearAll();
    sum += tracking.take(one);
    for (const { first, count } of one.runs()) all.setRange(first, count);
    t.diagnostic(`${takes} takes`);
    assert.equal(status, 0);
    assert.equal(tracking.doubt(), undefined);
    assert.equal(all.count(), 65_536, 'each block is told');
    if (kind === 'zram') assert.equal(sum, 65_536, 'and once');
    else t.diagnostic(`${sum - 65_536} told again; ${recovered(runDir)}`);
    tracking.close();
    return undefined;
  });
}

test('the map of a tebibyte takes 32 MiB of kernel memory, and is read in milliseconds', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 1024 * GIB);
  const tracking = startTracking(device, 'user', runDir);
  const bytes = mapBytes();
  t.diagnostic(`${bytes} bytes`);
  assert.ok(bytes >= 32 * MIB && bytes < 32.5 * MIB, `${bytes} bytes`);
  const bits = new BlockBitmap(tracking.blockCount);
  new DirectWriter(lab, device).blocks(tracking.blockCount - 1, 1);
  const startedAt = performance.now();
  assert.equal(tracking.take(bits), 1);
  t.diagnostic(`${(performance.now() - startedAt).toFixed(1)} ms`);
  assert.ok(bits.has(tracking.blockCount - 1));
  tracking.close();
  rmSync(lab.path('disk.img'));
});

/** Sizes of this process's mappings of eBPF maps: what they are in the kernel. */
function mapBytes(): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.endsWith('bpf-map'))
    .map((line) => {
      const [from = '0', to = '0'] = (line.split(' ')[0] ?? '').split('-');
      return Number.parseInt(to, 16) - Number.parseInt(from, 16);
    })
    .reduce((sum, size) => sum + size, 0);
}
