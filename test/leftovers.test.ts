/** The next run clears away what a killed one left: the tests could not clear it themselves. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { backingFileOf, boundLoops } from '../src/sys/blkdev.js';
import { ownMounts } from '../src/sys/mounts.js';
import { crash } from './harness.js';
import { CANNOT, LAB_PREFIX, Lab, MIB, run } from './lab.js';
import { clearLeftovers } from './leftovers.js';

test('a mounted volume whose daemon was killed, and one whose daemon lives, are gone with their folders', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t);
  // A name that no other run's clearing takes for its own.
  const prefix = `${LAB_PREFIX.slice(0, -'lab-'.length)}left-${lab.tag}-`;
  t.after(() => clearLeftovers(prefix));
  const keepers: number[] = [];
  const mounts: string[] = [];
  for (const fate of ['killed', 'alive']) {
    const folder = mkdtempSync(prefix);
    const env = { ...process.env, COWBIRD_RUN_DIR: `${folder}/run`, COWBIRD_STATE_DIR: `${folder}/state` };
    const image = `${folder}/image`;
    writeFileSync(image, '');
    truncateSync(image, 40 * MIB);
    const { device } = await cowbird.attach(image, { name: `${fate}-${lab.tag}` }, { env });
    await lab.mkfs(device, 'ext4');
    mkdirSync(`${folder}/mnt`);
    await run('mount', device, `${folder}/mnt`);
    mounts.push(`${folder}/mnt`);
    const status = await cowbird.daemonStatus({ env });
    if (fate === 'killed') await crash({ client: { env } });
    else keepers.push(status?.keeperPid ?? 0);
  }
  const isOurs = (path: string): boolean => path.startsWith(prefix);
  assert.equal(
    ownMounts().filter(({ mountPoint }) => isOurs(mountPoint)).length,
    4,
    'two FUSE files, two file systems',
  );

  const loops = boundLoops().filter(({ backingFile }) => isOurs(backingFile));
  assert.equal(loops.length, 2);

  const done = await clearLeftovers(prefix);

  assert.deepEqual(
    ownMounts().filter(({ mountPoint }) => isOurs(mountPoint)),
    [],
    done.join('\n'),
  );
  // On a file whose mount is gone it would be bound still, under the name `/`.
  for (const { node } of loops) {
    const file = backingFileOf(node);
    assert.ok(file === undefined || (file !== '/' && !isOurs(file)), `${node} on ${file}`);
  }
  for (const pid of keepers) assert.ok(!existsSync(`/proc/${pid}`), `process ${pid}`);
  for (const at of mounts) assert.ok(!existsSync(at), at);
  assert.ok(!readFileSync('/proc/self/mounts', 'utf8').includes(prefix));
});
