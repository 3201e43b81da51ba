/** The nine steps, short, for guests. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import * as cowbird from '../../src/index.js';
import { copy, digestOf, fill, type Lab, MIB } from '../lab.js';

const MINOR = 100;
/** Small: in a guest without KVM everything takes ten times as long. */
const FILE_MIB = 2;
const STORE = { storeBytes: 8 * MIB };

/** Two snapshots of a mounted volume with a full image and an update between; the image equals each. Returns where it is mounted. */
export async function requireNineSteps(lab: Lab, node: string, type: string): Promise<string> {
  const { client } = lab;
  await lab.mkfs(node, type);
  const at = await lab.mount(node);
  await fill(join(at, 'first'), FILE_MIB);
  const snapshot = await cowbird.setupSnapshot(node, join(at, 'cow0'), MINOR, STORE, client);
  const atFirst = digestOf(snapshot);
  await fill(join(at, 'second'), FILE_MIB);
  const image = lab.path('copy');
  await copy(snapshot, image);
  assert.equal(digestOf(image), atFirst, 'writes do not reach the first snapshot');
  await cowbird.transitionToIncremental(MINOR, client);
  await fill(join(at, 'third'), FILE_MIB);
  const next = await cowbird.transitionToSnapshot(MINOR, join(at, 'cow1'), STORE, client);
  const cowFile = join(at, 'cow0');
  const { changedBlocks, errors } = await cowbird.updateImageFromSnapshot({ snapshot: next, cowFile, image, client });
  assert.equal(errors, 0);
  assert.ok(changedBlocks >= (2 * FILE_MIB * MIB) / 4_096, `${changedBlocks} blocks have changed`);
  assert.equal(digestOf(image), digestOf(next));
  assert.notEqual(digestOf(image), atFirst);
  rmSync(cowFile);
  await cowbird.destroy(MINOR, client);
  return at;
}
