/** What holds a device without a descriptor of anybody's, and who comes while one is taken down. */
import assert from 'node:assert/strict';
import { existsSync, realpathSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { backingFileOf, boundLoops, isAutoClear } from '../src/sys/blkdev.js';
import { program } from './harness.js';
import { armFailPoint, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

const MINOR = 135;
const SNAPSHOT = `/dev/cowbird${MINOR}`;

/** A volume without a file system, with a snapshot. */
async function bench(t: TestContext): Promise<Lab> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', 32 * MIB);
  await fill(node, 2, 'oflag=direct');
  await cowbird.setupSnapshot(node, lab.path('cow'), MINOR, { storeBytes: 20 * MIB }, lab.client);
  return lab;
}

/** The link leads to a device of this laboratory, which does not end with its last user. */
function isKept(lab: Lab, link: string): boolean {
  if (!existsSync(link)) return false;
  const real = realpathSync(link);
  const isOurs = boundLoops().some(({ node, backingFile }) => node === real && backingFile.startsWith(lab.folder));
  return isOurs && !isAutoClear(real);
}

/** Opens a device as soon as its link has gone. */
const LATE_OPENER = `
  const { existsSync, openSync, writeFileSync } = require('node:fs');
  const [link, node, ready] = process.argv.slice(1);
  writeFileSync(ready, '');
  while (existsSync(link)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
  openSync(node, 'r');
  setInterval(() => {}, 1e6);`;

async function lateOpener(lab: Lab, link: string): Promise<() => Promise<void>> {
  const ready = lab.path('ready');
  const stop = program(lab, process.execPath, ['-e', LATE_OPENER, link, realpathSync(link), ready]);
  await until('it waits', () => existsSync(ready));
  // Between the end of the links and that of the device there is time enough for him.
  await armFailPoint(lab, 'links-removed', 0, 'pause');
  return stop;
}

describe('a device that is held by the kernel alone', { skip: CANNOT }, () => {
  it('as swap keeps its volume: detach and stop are refused, and it is there when the swap has gone', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 32 * MIB);
    await run('mkswap', node);
    if (!(await succeeds('swapon', node))) {
      t.skip('swapon is not possible here');
      return;
    }
    lab.onEnd(() => succeeds('swapoff', node));
    await assert.rejects(cowbird.stopDaemon({}, lab.client), { code: 'EBUSY', message: /claimed by the kernel/ });
    await assert.rejects(cowbird.detach(node, lab.client), { code: 'EBUSY', message: /claimed by the kernel/ });
    await run('swapoff', node);
    assert.ok(isKept(lab, lab.link('volume')));
    await fill(node, 1, 'oflag=direct');
    await cowbird.stopDaemon({}, lab.client);
  });

  it('behind another loop device keeps its snapshot, mode and links', async (t) => {
    const lab = await bench(t);
    const loop = (await run('losetup', '-f', '--show', '-r', SNAPSHOT)).trim();
    lab.onEnd(() => succeeds('losetup', '-d', loop));
    const busy = { code: 'EBUSY', message: new RegExp(`losetup -d ${loop}`) };
    await assert.rejects(cowbird.transitionToIncremental(MINOR, lab.client), busy);
    await assert.rejects(cowbird.destroy(MINOR, lab.client), busy);
    await assert.rejects(cowbird.stopDaemon({}, lab.client), busy);
    await run('losetup', '-d', loop);
    assert.ok(isKept(lab, SNAPSHOT));
    assert.equal((await lab.status(MINOR)).state, 3);
    await cowbird.destroy(MINOR, lab.client);
    assert.ok(!existsSync(SNAPSHOT));
  });
});

describe('a device that somebody opens while it is taken down', { skip: CANNOT }, () => {
  it('stays when he has gone, with its links: a snapshot', async (t) => {
    const lab = await bench(t);
    const before = digestOf(SNAPSHOT);
    const stop = await lateOpener(lab, SNAPSHOT);
    await assert.rejects(cowbird.destroy(MINOR, lab.client), { code: 'EBUSY', message: /node/ });
    await stop();
    assert.ok(isKept(lab, SNAPSHOT));
    assert.equal(digestOf(SNAPSHOT), before);
    await cowbird.destroy(MINOR, lab.client);
  });

  it('goes with him when the daemon is stopped by force: nothing is bound to what nobody serves', async (t) => {
    const lab = await bench(t);
    const node = realpathSync(SNAPSHOT);
    const stop = program(lab, 'sleep', ['60'], SNAPSHOT);
    await assert.rejects(cowbird.stopDaemon({}, lab.client), { code: 'EBUSY', message: /sleep/ });
    await cowbird.stopDaemon({ force: true }, lab.client);
    assert.ok(!existsSync(SNAPSHOT));
    await stop();
    await until('the loop device has ended', () => backingFileOf(node) === undefined);
  });

  it('stays when he has gone, with its links: a volume', async (t) => {
    const lab = new Lab(t, WITH_FAIL_POINTS);
    const node = await lab.attached('volume', 32 * MIB);
    const stop = await lateOpener(lab, lab.link('volume'));
    await assert.rejects(cowbird.stopDaemon({}, lab.client), { code: 'EBUSY', message: /node/ });
    await stop();
    assert.ok(isKept(lab, lab.link('volume')));
    await fill(node, 1, 'oflag=direct');
    await cowbird.detach(node, lab.client);
  });
});
