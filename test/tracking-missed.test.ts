/** What the kernel does not show to the tracker: recovered by notes, or a doubt. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { BlockBitmap, type LiveTracking, startTracking } from '../src/live/tracking.js';
import { fill, Lab, MIB, until } from './lab.js';
import { mountedDisk } from './live-lab.js';
import {
  CANNOT_TRACK,
  DirectWriter,
  forgetSectors,
  loopDevice,
  notedAddresses,
  plantNote,
  recovered,
  recoveredSectors,
  trackerPlace,
} from './tracking-lab.js';

const skip = CANNOT_TRACK;

/** What is taken, as runs in words: ` 7+100 16000+1 `. */
function changes(tracking: LiveTracking): string {
  const bits = new BlockBitmap(tracking.blockCount);
  tracking.take(bits);
  assert.equal(tracking.doubt(), undefined);
  return ` ${[...bits.runs()].map(({ first, count }) => `${first}+${count}`).join(' ')} `;
}

test('a write whose end the kernel did not show counts by its note, for everybody, until the request is used again', {
  skip,
}, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 256 * MIB);
  const tracking = startTracking(device, 'user', runDir);
  const writer = new DirectWriter(lab, device);
  writer.blocks(100, 3);
  assert.match(changes(tracking), / 100\+3 /);
  const noted = recovered(runDir);
  forgetSectors(runDir, 24);
  assert.match(tracking.doubt() ?? '', /writes of 24 sectors without running/, 'neither beginning nor end was seen');
  tracking.close();

  // A doubt lasts for who has it; who comes later begins with what is.
  forgetSectors(runDir, -24);
  const one = startTracking(device, 'user', runDir);
  forgetSectors(runDir, 24);
  plantNote(runDir, 8n, { first: 100, count: 3 });
  assert.match(changes(one), / 100\+3 /, 'its range counts');
  assert.match(changes(one), / 100\+3 /, 'in every pass');
  one.commit();
  const other = startTracking(device, 'other', runDir);
  assert.match(changes(other), / 100\+3 /, 'for every user');
  assert.match(changes(one), / 100\+3 /, 'in every version');
  other.close();
  t.diagnostic(`before: ${noted}; after: ${recovered(runDir)}`);
  plantNote(runDir, 16n, { first: 200, count: 1 });
  assert.match(one.doubt() ?? '', /does not count all sectors/, 'a note explains no more than what is missing');
  one.close();
});

test('a live backup takes a write whose end was missed for one that is over, when nothing is under way', {
  skip,
}, async (t) => {
  const lab = new Lab(t);
  const { node, at, repository, sizeBytes } = await mountedDisk(lab, 'ext4', false);
  const runDir = trackerPlace(lab);
  const backup = (): Promise<cowbird.BackupSummary> => cowbird.backup(node, repository, { client: lab.client });
  await fill(`${at}/file`, 4);
  await backup();
  forgetSectors(runDir, 24);
  plantNote(runDir, 8n, { first: sizeBytes / 4096 - 5, count: 3 });
  for (const number of [2, 3]) {
    await fill(`${at}/file`, 1);
    const { version, reason, passes } = await backup();
    assert.equal(version, number);
    assert.match(reason, /^the kernel lists/);
    assert.ok(passes <= 3, `${passes} passes: the first freeze was enough`);
  }
});

test('a note of a request that is used again is marked, and counts as seen', { skip }, async (t) => {
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, 256 * MIB);
  const first = startTracking(device, 'user', runDir);
  first.close();
  const load = (): ChildProcess =>
    spawn(
      'fio',
      [
        ...['--name=load', `--filename=${device}`, '--rw=randwrite', '--bs=4k', '--direct=1', '--ioengine=libaio'],
        ...['--iodepth=16', '--size=64M'],
      ],
      { cwd: tmpdir(), stdio: 'ignore' },
    );
  const ended = (child: ChildProcess): Promise<void> =>
    until('fio is done', () => {
      if (child.exitCode !== null) return true;
      for (const address of notedAddresses(runDir)) addresses.add(address);
      return false;
    });
  const addresses = new Set<bigint>();
  await ended(load());
  assert.ok(addresses.size > 0, 'requests are noted while they are under way');
  const tracking = startTracking(device, 'user', runDir);
  const stale = new Set(notedAddresses(runDir));
  const before = recoveredSectors(runDir);
  // Blocks of their own, beyond those that are written.
  let planted = 0;
  for (const address of addresses)
    if (!stale.has(address)) plantNote(runDir, address, { first: 20_000 + 2 * planted++, count: 1 });
  forgetSectors(runDir, planted * 8);
  assert.equal(tracking.doubt(), undefined);
  await ended(load());
  assert.equal(tracking.doubt(), undefined);
  assert.ok(recoveredSectors(runDir) > before, 'requests were used again');
  const bits = new BlockBitmap(tracking.blockCount);
  tracking.take(bits);
  for (let i = 0; i < planted; i++) assert.ok(bits.has(20_000 + 2 * i), `note ${i} of ${planted} counts`);
  t.diagnostic(`${planted} notes; ${recovered(runDir)}`);
  tracking.close();
});
