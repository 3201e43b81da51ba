import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { encodeHeader } from '../cow/header.js';
import { CowbirdError } from '../sys/errors.js';
import { type SnapshotHost, type UpdateImageOptions, updateImageFromSnapshot } from './update-from-snapshot.js';

const BLOCK_BYTES = 4096;
const BLOCKS = 40;
/** No multiple of 4096: the last block is partial. */
const SIZE_BYTES = (BLOCKS - 1) * BLOCK_BYTES + 512;
const DATA_OFFSET_BYTES = 4096 + 32_768;
const UUID = '00112233445566778899aabbccddeeff';
const CHANGED = [0, 3, 4, 30, 39];

const directory = mkdtempSync(join(tmpdir(), 'cowbird-update-'));
after(() => rmSync(directory, { recursive: true }));

const path = (name: string): string => join(directory, name);
const contents = (seed: number): Buffer =>
  Buffer.from(Uint8Array.from({ length: SIZE_BYTES }, (_, i) => (Math.floor(i / 512) + seed) % 251));

function writeCow(options: { clean?: boolean; sequenceId?: number; uuid?: string; changedBlocks?: number } = {}): void {
  const { clean = true, sequenceId = 1, uuid = UUID, changedBlocks = CHANGED.length } = options;
  const file = Buffer.alloc(DATA_OFFSET_BYTES);
  encodeHeader({
    clean,
    indexOnly: true,
    vmallocUpper: false,
    positionBlocks: 0,
    fileSizeBytes: DATA_OFFSET_BYTES,
    sequenceId,
    uuid: Buffer.from(uuid, 'hex'),
    version: 1,
    changedBlocks,
  }).copy(file);
  for (const block of CHANGED) file.writeUInt32LE(1, 4096 + block * 8);
  writeFileSync(path('cow'), file);
}

/** A snapshot of all new contents and an image of all old ones. */
function prepare(): UpdateImageOptions {
  writeFileSync(path('snapshot'), contents(7));
  writeFileSync(path('image'), contents(1));
  writeCow();
  return { snapshot: path('snapshot'), cowFile: path('cow'), image: path('image') };
}

const host: SnapshotHost = { identify: async () => ({ uuid: UUID, sequenceId: 2 }) };

async function refused(
  options: UpdateImageOptions,
  code: string,
  words: RegExp,
  by: SnapshotHost = host,
): Promise<void> {
  const before = readFileSync(path('image'));
  await assert.rejects(updateImageFromSnapshot(options, by), (error: unknown) => {
    assert.ok(error instanceof CowbirdError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, words);
    return true;
  });
  assert.ok(readFileSync(path('image')).equals(before), 'the image was touched');
}

describe('updating an image from a snapshot', () => {
  it('copies the listed blocks, the partial last one too, and nothing else', async () => {
    const numbers: unknown[] = [];
    const result = await updateImageFromSnapshot({ ...prepare(), onStart: (given) => numbers.push(given) }, host);
    assert.deepEqual(numbers, [{ totalBlocks: BLOCKS, progressBlocks: CHANGED.length }]);
    assert.deepEqual([result.totalBlocks, result.changedBlocks, result.errors], [BLOCKS, CHANGED.length, 0]);
    const expected = contents(1);
    for (const block of CHANGED)
      contents(7).copy(expected, block * BLOCK_BYTES, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    assert.ok(readFileSync(path('image')).equals(expected));
  });

  it('makes the image equal to the snapshot by comparing, with no COW file', async () => {
    const { snapshot, image } = prepare();
    const mixed = contents(7);
    mixed.fill(0, 5 * BLOCK_BYTES, 6 * BLOCK_BYTES);
    mixed.fill(0, SIZE_BYTES - 1);
    writeFileSync(image, mixed);
    const result = await updateImageFromSnapshot({ snapshot, image, scan: true }, host);
    assert.deepEqual([result.changedBlocks, result.errors], [2, 0]);
    assert.ok(readFileSync(image).equals(contents(7)));
  });

  it('writes nothing when the COW file is not of the sequence before', async () => {
    const options = prepare();
    writeCow({ sequenceId: 2 });
    await refused(
      options,
      'EINVAL',
      /^snapshot provided does not immediately follow the snapshot that created the cow file/,
    );
  });

  it('writes nothing when the COW file is of another series', async () => {
    const options = prepare();
    writeCow({ uuid: 'ff'.repeat(16) });
    await refused(options, 'EINVAL', /uuid/);
  });

  it('writes nothing when the COW file is unclean or its count is wrong', async () => {
    const options = prepare();
    writeCow({ clean: false });
    await refused(options, 'EINVAL', /unclean/);
    writeCow({ changedBlocks: 6 });
    await refused(options, 'EINVAL', /nr_changed is 6/);
  });

  it('calls a file of zeros no COW file, as stale cached pages would look', async () => {
    const options = prepare();
    writeFileSync(path('cow'), Buffer.alloc(DATA_OFFSET_BYTES));
    await refused(options, 'EINVAL', /^invalid magic number from cow file/);
  });

  it('says which of the three files is not there', async () => {
    const options = prepare();
    await refused({ ...options, snapshot: path('none') }, 'ENOENT', /^error opening snapshot/);
    await refused({ ...options, cowFile: path('none') }, 'ENOENT', /^error opening cow file/);
    await refused({ ...options, image: path('none') }, 'ENOENT', /^error opening image/);
  });

  it('refuses a device that is no snapshot, and an image of another size', async () => {
    const options = prepare();
    await refused(options, 'EINVAL', /not the device of a snapshot/, { identify: async () => undefined });
    writeFileSync(path('image'), Buffer.alloc(SIZE_BYTES + 512));
    await refused(options, 'EINVAL', /not an image of this volume/);
    await refused({ ...options, scan: true }, 'EINVAL', /not an image of this volume/);
  });

  it('asks about the snapshot only while it holds it open', async () => {
    const options = prepare();
    const asked: string[] = [];
    const watching: SnapshotHost = {
      identify: async (node) => {
        asked.push(node);
        return { uuid: UUID, sequenceId: 2 };
      },
    };
    await updateImageFromSnapshot(options, watching);
    assert.deepEqual(asked, [path('snapshot')]);
  });
});
