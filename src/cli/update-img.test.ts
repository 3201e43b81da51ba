import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { UpdateImageResult } from '../index.js';
import { CowbirdError } from '../sys/errors.js';
import { fakeIo } from './testing.js';
import { main, type Update } from './update-img.js';

const RESULT: UpdateImageResult = {
  totalBlocks: 16_384,
  changedBlocks: 522,
  writtenBytes: 2_138_112,
  errors: 0,
  failures: [],
};

const updating =
  (result: UpdateImageResult): Update =>
  async (_request, listener) => {
    listener.onStart({ totalBlocks: result.totalBlocks, progressBlocks: result.changedBlocks });
    listener.onProgress(result.changedBlocks);
    return result;
  };
const failing =
  (error: unknown): Update =>
  async () => {
    throw error;
  };

describe('update-img', () => {
  it("prints the original's three lines and exits 0", async () => {
    const io = fakeIo();
    assert.equal(await main(['/dev/datto0', '.datto', 'image'], io, updating(RESULT)), 0);
    assert.equal(
      io.stdout,
      'snapshot is 16384 blocks large\ncopying blocks\ncopying complete: 522 blocks changed, 0 errors\n',
    );
    assert.equal(io.stderr, '');
  });

  it('exits 1 and names the blocks when some were not copied', async () => {
    const io = fakeIo();
    const result = { ...RESULT, changedBlocks: 520, errors: 2, failures: ['block at 4096: pread: EIO'] };
    assert.equal(await main(['a', 'b', 'c'], io, updating(result)), 1);
    assert.match(io.stdout, /copying complete: 520 blocks changed, 2 errors\n$/);
    assert.match(io.stderr, /block at 4096: pread: EIO\n.*2 blocks were not copied/);
  });

  it('exits 22 with the usage on stderr for wrong arguments', async () => {
    for (const argv of [[], ['a', 'b'], ['a', 'b', 'c', 'd'], ['--scan', 'a', 'b', 'c'], ['--bogus', 'a', 'b', 'c']]) {
      const io = fakeIo();
      assert.equal(await main(argv, io, failing(new Error('called'))), 22);
      assert.match(io.stderr, /Usage: update-img \[--scan\] SNAPSHOT COWFILE IMAGE\n$/);
      assert.equal(io.stdout, '');
    }
  });

  it('exits with the errno of what failed', async () => {
    for (const [code, status] of [
      ['ENOENT', 2],
      ['EINVAL', 22],
      ['EIO', 5],
    ] as const) {
      const io = fakeIo();
      assert.equal(
        await main(['a', 'b', 'c'], io, failing(new CowbirdError(code, 'error opening snapshot a: no'))),
        status,
      );
      assert.equal(io.stderr, 'error opening snapshot a: no\n');
    }
  });

  it('compares contents, with no COW file, when told to scan', async () => {
    const io = fakeIo();
    const update: Update = async (request) => {
      assert.deepEqual(request, { snapshot: 'a', cowFile: undefined, image: 'b' });
      return RESULT;
    };
    assert.equal(await main(['a', '--scan', 'b'], io, update), 0);
  });

  it('exits 130 when it is interrupted', async () => {
    const io = fakeIo();
    const update: Update = async () => {
      io.abort('SIGINT');
      throw new CowbirdError('EINTR', 'ended');
    };
    assert.equal(await main(['a', 'b', 'c'], io, update), 130);
  });
});
