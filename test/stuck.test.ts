/** A volume that a new engine cannot serve waits for the next one: nothing of it is taken down, and the others go on. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as cowbird from '../src/index.js';
import { killEngine, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, fill, Lab, MIB, run, until } from './lab.js';

const VOLUME_BYTES = 24 * MIB;
const RESTART_MS_MAX = 20_000;

test('a volume that could not be opened again keeps its devices, its name and its disk, and is served by the next engine', {
  skip: CANNOT,
}, async (t) => {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const mounts: string[] = [];
  for (const name of ['one', 'two']) {
    const node = await lab.attached(name, VOLUME_BYTES);
    await lab.mkfs(node, 'ext4');
    const at = await lab.mount(node, `${name}-mnt`);
    mounts.push(at);
    await fill(join(at, 'payload'), 2);
    await run('sync', '-f', at);
  }
  const [served = '', stuck = ''] = mounts;
  // In a process of its own: a read that hangs must end with the test.
  const digest = (): Promise<string> => run('sha256sum', join(stuck, 'payload'));
  const before = await digest();
  const names = async (): Promise<string[]> =>
    (await cowbird.listVolumes(lab.client)).map(({ origin }) => origin.slice(lab.folder.length + 1)).sort();
  assert.ok(await killEngine(lab));
  // The new engine reads it before it opens the first of the two.
  writeFileSync(lab.path('run/fail-point'), 'opening 1 throw');
  await until('one of two is served', async () => (await names()).join() === 'one', RESTART_MS_MAX);
  await fill(join(served, 'more'), 2);
  // All that writes down what is attached.
  await lab.attached('three', VOLUME_BYTES);
  assert.match(readFileSync(lab.path('state/attached.json'), 'utf8'), /two/);
  await assert.rejects(cowbird.attach(lab.path('two'), { name: `again-${lab.tag}` }, lab.client), { code: 'EBUSY' });
  await cowbird.restartDaemon(lab.client);
  await until('all are served', async () => (await names()).join() === 'one,three,two', RESTART_MS_MAX);
  await run('sh', '-c', 'echo 3 > /proc/sys/vm/drop_caches');
  assert.equal(await digest(), before);
  await fill(join(stuck, 'more'), 2);
});
