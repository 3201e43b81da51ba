/** The example of the README runs, and does what it says. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as cowbird from '../src/index.js';
import { CANNOT, digestOf, fill, Lab, MIB } from './lab.js';

describe('examples/backup.ts', { skip: CANNOT }, () => {
  it('makes an image of a mounted volume and updates it with what changed', async (t) => {
    const lab = new Lab(t);
    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/a`, 10);
    // The example talks to the daemon of its environment.
    const { COWBIRD_RUN_DIR, COWBIRD_STATE_DIR } = process.env;
    process.env['COWBIRD_RUN_DIR'] = lab.env['COWBIRD_RUN_DIR'];
    process.env['COWBIRD_STATE_DIR'] = lab.env['COWBIRD_STATE_DIR'];
    try {
      const { backUpTwice } = await import('../examples/backup.js');
      const image = lab.path('image');
      let atSecond = '';
      const changed = await backUpTwice(node, mnt, image, async () => {
        await fill(`${mnt}/b`, 5);
        atSecond = 'worked';
      });
      assert.equal(atSecond, 'worked');
      assert.ok(changed >= 5 * 256, `${changed} blocks`);
      assert.ok(digestOf(image) !== '');
      assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
      const at = await lab.mount(image, 'check', '-o', 'loop,ro,noload');
      assert.equal(digestOf(`${at}/b`), digestOf(`${mnt}/b`));
    } finally {
      process.env['COWBIRD_RUN_DIR'] = COWBIRD_RUN_DIR ?? '';
      process.env['COWBIRD_STATE_DIR'] = COWBIRD_STATE_DIR ?? '';
    }
  });
});
