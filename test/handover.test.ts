/** The moments in which a file system and the engine hold the same thing: the freeze, and a COW file that changes hands. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { CANNOT, copy, digestOf, fill, Lab, MIB, until } from './lab.js';

const MINOR = 195;
const DEVICE = `/dev/cowbird${MINOR}`;
const STORE = { storeBytes: 40 * MIB };
/** Of the freeze's watchdog: what waits for writes that nobody may make lasts until then. */
const WATCHDOG_MS = 5_000;

describe('a busy file system', { skip: CANNOT }, () => {
  it('freezes while its writes still go through: they are held back afterwards, and only for the switch', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    const frozenMs: number[] = [];
    const listening = new AbortController();
    lab.onEnd(async () => listening.abort());
    const events = cowbird.events({ ...lab.client, signal: listening.signal });
    const heard = (async () => {
      for await (const { event, ...fields } of events) {
        if (event === 'volume.frozen' && 'freezeMs' in fields) frozenMs.push(Number(fields['freezeMs']));
      }
    })().catch(() => undefined);
    const stop = await lab.writer(mnt);
    for (let turn = 1; turn <= 4; turn++) {
      await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, STORE, lab.client);
      await until('the freeze is told', () => frozenMs.length === turn);
      assert.ok((frozenMs.at(-1) ?? 0) < WATCHDOG_MS, `it did not wait for its watchdog: ${frozenMs} ms`);
      await cowbird.destroy(MINOR, lab.client);
    }
    await stop();
    listening.abort();
    await heard;
  });
});

describe('a COW file', { skip: CANNOT }, () => {
  it('that was read while the engine wrote it below the file system lists every change when it is handed over', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await cowbird.setupSnapshot(node, `${mnt}/.cow1`, MINOR, STORE, lab.client);
    const image = lab.path('image');
    await copy(DEVICE, image);
    // What is read now stays in the page cache, where no write of the engine's goes.
    readFileSync(`${mnt}/.cow1`);
    await fill(`${mnt}/a`, 3);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    readFileSync(`${mnt}/.cow1`);
    await fill(`${mnt}/b`, 3);
    await cowbird.transitionToSnapshot(MINOR, `${mnt}/.cow2`, STORE, lab.client);
    const cowFile = `${mnt}/.cow1`;
    const result = await cowbird.updateImageFromSnapshot({ snapshot: DEVICE, cowFile, image, client: lab.client });
    assert.ok(result.changedBlocks >= (6 * MIB) / 4096);
    assert.equal(digestOf(image), digestOf(DEVICE));
  });
});
