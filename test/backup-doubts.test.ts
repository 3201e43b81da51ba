/** Backups of attached volumes where the list of changes cannot be trusted: contents are compared, in the same chain, and it is said. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import * as cowbird from '../src/index.js';
import { type Made, mountedVolume, ownFiles, PAYLOAD_MIB, restored, wholeBackup } from './backup-scenarios.js';
import { crash } from './harness.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, succeeds, until } from './lab.js';

/** Below what is worth a thread of its own. */
const VOLUME_BYTES = 60 * MIB;

interface Tracked {
  lab: Lab;
  at: string;
  link: string;
  repository: string;
}

/** A mounted volume of which version 1 is. */
async function withVersion(t: TestContext): Promise<Tracked> {
  const lab = new Lab(t);
  const { at } = await mountedVolume(lab, 'disk', 'ext4', VOLUME_BYTES, PAYLOAD_MIB);
  const tracked = { lab, at, link: lab.link('disk'), repository: lab.path('repository') };
  await wholeBackup(lab, tracked.link, tracked.repository);
  return tracked;
}

/** The same chain has the version, it is right, and the one after it is by a list again. */
async function requireCompared({ lab, link, repository, at }: Tracked, why: RegExp): Promise<void> {
  const requireRight = async ({ digest }: Made): Promise<void> =>
    assert.equal(digestOf(await restored(repository)), digest);
  const before = (await cowbird.listVersions(repository)).versions.length;
  const anew = await wholeBackup(lab, link, repository);
  assert.deepEqual([anew.version, anew.engine], [before + 1, 'driver']);
  assert.match(anew.reason, why);
  await requireRight(anew);
  await fill(join(at, 'after'), 1);
  const next = await wholeBackup(lab, link, repository);
  assert.match(next.reason, new RegExp(`^the driver lists what changed since version ${anew.version}$`));
  await requireRight(next);
  assert.deepEqual((await cowbird.verify(repository)).damage, []);
}

test('a backup after a power failure of the daemon compares contents, says why, and misses nothing', {
  skip: CANNOT,
}, async (t) => {
  const tracked = await withVersion(t);
  const { lab, at, link } = tracked;
  await fill(join(at, 'marked'), 2);
  await run('sync', '-f', at);
  await crash(lab);
  await until('it is unmounted', () => succeeds('umount', at));
  await cowbird.startDaemon(lab.client);
  await run('mount', link, at);
  await fill(join(at, 'not-marked'), 2);
  await requireCompared(tracked, /^contents were compared: .+/);
});

test('a backup whose list of changes was removed compares contents, says why, and misses nothing', {
  skip: CANNOT,
}, async (t) => {
  const tracked = await withVersion(t);
  const { at } = tracked;
  await fill(join(at, 'more'), 2);
  assert.deepEqual(ownFiles(at), ['.cowbird-1']);
  await run('chattr', '-i', join(at, '.cowbird-1'));
  await run('rm', join(at, '.cowbird-1'));
  await requireCompared(tracked, /^contents were compared: the list of changes since snapshot 1 is gone/);
});
