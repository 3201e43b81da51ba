import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import type { BlockRun, PositionedReader } from '../cow/file.js';
import { updateImage } from './update-image.js';

const BLOCK_BYTES = 4096;
/** More than one transfer of 1 MiB, and a partial last block. */
const BLOCKS = 600;
const SIZE_BYTES = (BLOCKS - 1) * BLOCK_BYTES + 512;

const directory = mkdtempSync(join(tmpdir(), 'cowbird-image-'));
after(() => rmSync(directory, { recursive: true }));
const imagePath = join(directory, 'image');

const contents = (seed: number, blocks = BLOCKS): Buffer => {
  const bytes = Buffer.alloc(blocks * BLOCK_BYTES);
  for (let block = 0; block < blocks; block++) {
    bytes.fill((block + seed) % 251, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    bytes.writeUInt32LE(block + seed, block * BLOCK_BYTES);
  }
  return bytes.subarray(0, blocks === BLOCKS ? SIZE_BYTES : bytes.byteLength);
};

const OLD = contents(1000);
const NEW = contents(7);

/** A snapshot whose bad blocks cannot be read; notes each read. */
class Source implements PositionedReader {
  readonly lengthBytes: number;
  readonly bytes: Buffer;
  readonly bad: ReadonlySet<number>;
  readonly reads: Array<{ offset: number; lengthBytes: number }> = [];
  constructor(bytes: Buffer = NEW, bad: ReadonlySet<number> = new Set()) {
    this.lengthBytes = bytes.byteLength;
    this.bytes = bytes;
    this.bad = bad;
  }
  read(buffer: Uint8Array, offset: number): number {
    this.reads.push({ offset, lengthBytes: buffer.byteLength });
    const last = Math.floor((offset + buffer.byteLength - 1) / BLOCK_BYTES);
    for (let block = Math.floor(offset / BLOCK_BYTES); block <= last; block++) {
      if (this.bad.has(block)) throw new Error('EIO of the test');
    }
    return this.bytes.copy(buffer, 0, offset);
  }
}

const run = (firstBlock: number, blockCount = 1): BlockRun => ({ firstBlock, blockCount });

/** The old image with these blocks of the new one. */
function composed(runs: readonly BlockRun[], fresh: Buffer = NEW): Buffer {
  const bytes = Buffer.from(OLD);
  for (const { firstBlock, blockCount } of runs)
    fresh.copy(bytes, firstBlock * BLOCK_BYTES, firstBlock * BLOCK_BYTES, (firstBlock + blockCount) * BLOCK_BYTES);
  return bytes;
}

const prepare = (): void => writeFileSync(imagePath, OLD);
const image = (): Buffer => readFileSync(imagePath);

describe('copying changed blocks into an image', () => {
  it('writes them and no other, for any list', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(BLOCKS - 1), { maxLength: 80 }), fc.nat(300), (blocks, longest) => {
        const runs: BlockRun[] = [];
        for (const block of blocks.sort((a, b) => a - b)) {
          const end = runs.reduce((at, last) => Math.max(at, last.firstBlock + last.blockCount), 0);
          if (block >= end) runs.push(run(block, Math.min(1 + (block % (longest + 1)), BLOCKS - block)));
        }
        prepare();
        const result = updateImage({ source: new Source(), changed: runs, imagePath });
        assert.equal(
          result.changedBlocks,
          runs.reduce((sum, { blockCount }) => sum + blockCount, 0),
        );
        assert.deepEqual([result.errors, result.failures], [0, []]);
        assert.ok(image().equals(composed(runs)));
      }),
      { numRuns: 60 },
    );
  });

  it('copies the partial last block to the byte', () => {
    prepare();
    const result = updateImage({ source: new Source(), changed: [run(BLOCKS - 1)], imagePath });
    assert.deepEqual([result.changedBlocks, result.writtenBytes, image().byteLength], [1, 512, SIZE_BYTES]);
    assert.ok(image().equals(composed([run(BLOCKS - 1)])));
  });

  it('reads close runs at once, far ones apart, and never more than 1 MiB', () => {
    prepare();
    const source = new Source();
    updateImage({ source, changed: [run(0), run(10), run(100), run(200, 300)], imagePath });
    assert.deepEqual(
      source.reads.map(({ offset, lengthBytes }) => [offset / BLOCK_BYTES, lengthBytes / BLOCK_BYTES]),
      [
        [0, 11],
        [100, 1],
        [200, 256],
        [456, 44],
      ],
    );
  });

  it('makes zeros of what the snapshot has as zeros, in whatever length', () => {
    const zeroed = Buffer.from(NEW);
    zeroed.fill(0, 10 * BLOCK_BYTES, 500 * BLOCK_BYTES);
    const lists = [
      [run(10, 490)],
      [run(5, 500)],
      [run(10), run(100, 15), run(200, 16), run(300, 200)],
      [run(0, BLOCKS)],
    ];
    for (const changed of lists) {
      prepare();
      const result = updateImage({ source: new Source(zeroed), changed, imagePath });
      const count = changed.reduce((sum, { blockCount }) => sum + blockCount, 0);
      assert.deepEqual([result.changedBlocks, result.errors], [count, 0]);
      assert.ok(image().equals(composed(changed, zeroed)));
    }
  });

  it('leaves holes in an image where the snapshot has zeros, and counts them as copied', () => {
    rmSync(imagePath, { force: true });
    const fd = openSync(imagePath, 'w');
    writeSync(fd, OLD, 0, BLOCK_BYTES, 0);
    closeSync(fd);
    truncateSync(imagePath, SIZE_BYTES);
    const before = statSync(imagePath).blocks;
    const zeros = Buffer.alloc(SIZE_BYTES);
    const result = updateImage({ source: new Source(zeros), changed: [run(256, 300)], imagePath });
    assert.deepEqual([result.changedBlocks, result.writtenBytes], [300, 300 * BLOCK_BYTES]);
    assert.equal(statSync(imagePath).blocks, before);
    assert.ok(image().subarray(BLOCK_BYTES).equals(zeros.subarray(BLOCK_BYTES)));
  });

  it('counts a block that cannot be read, says where it is, and copies its neighbours', () => {
    prepare();
    const source = new Source(NEW, new Set([12, 300]));
    const result = updateImage({ source, changed: [run(10, 5), run(290, 20)], imagePath });
    assert.deepEqual([result.changedBlocks, result.errors], [23, 2]);
    assert.match(result.failures.join('\n'), new RegExp(`${12 * BLOCK_BYTES}.*\n.*${300 * BLOCK_BYTES}`));
    assert.ok(image().equals(composed([run(10, 2), run(13, 2), run(290, 10), run(301, 9)])));
  });

  it('copies around a bad block in a gap, which is nobody’s change', () => {
    prepare();
    const result = updateImage({ source: new Source(NEW, new Set([5])), changed: [run(4), run(6)], imagePath });
    assert.deepEqual([result.changedBlocks, result.errors], [2, 0]);
    assert.ok(image().equals(composed([run(4), run(6)])));
  });

  it('keeps the words of the first failures only, and counts them all', () => {
    prepare();
    const bad = new Set(Array.from({ length: 50 }, (_, i) => i));
    const result = updateImage({ source: new Source(NEW, bad), changed: [run(0, 50)], imagePath });
    assert.deepEqual([result.errors, result.failures.length], [50, 10]);
    assert.ok(image().equals(OLD));
  });

  it('ends right when interrupted and run again', () => {
    prepare();
    const runs = [run(0, 3), run(100, 3), run(200, 3), run(BLOCKS - 1)];
    const stop = new AbortController();
    const onProgress = (done: number): void => {
      if (done >= 6) stop.abort();
    };
    assert.throws(
      () => updateImage({ source: new Source(), changed: runs, imagePath, onProgress, signal: stop.signal }),
      { code: 'EINTR', outcome: 'partial' },
    );
    assert.ok(image().equals(composed(runs.slice(0, 2))));
    for (let again = 0; again < 2; again++) {
      assert.equal(updateImage({ source: new Source(), changed: runs, imagePath }).changedBlocks, 10);
      assert.ok(image().equals(composed(runs)));
    }
  });
});

describe('an image is left as it was', () => {
  it('when its size is not the snapshot’s, by however little', () => {
    for (const difference of [-1, 1, 512]) {
      prepare();
      truncateSync(imagePath, SIZE_BYTES + difference);
      const before = image();
      assert.throws(() => updateImage({ source: new Source(), changed: [run(0)], imagePath }), {
        code: 'EINVAL',
        outcome: 'refused',
        message: new RegExp(`${SIZE_BYTES + difference} bytes.*${SIZE_BYTES}`),
      });
      assert.ok(image().equals(before));
    }
  });

  it('when it is neither a file nor a block device', () => {
    const source = new Source();
    assert.throws(() => updateImage({ source, changed: [run(0)], imagePath: '/dev/null' }), {
      code: 'EINVAL',
      outcome: 'refused',
    });
    assert.deepEqual(source.reads, []);
  });

  it('when the list begins out of order, overlaps, or leaves the volume', () => {
    const lists = [[run(10), run(3, 2)], [run(3, 8), run(4, 2)], [run(BLOCKS - 1, 2)], [run(5, 0)], [run(-1)]];
    for (const changed of lists) {
      prepare();
      assert.throws(() => updateImage({ source: new Source(), changed, imagePath }), /Assertion failed: run/);
      assert.ok(image().equals(OLD));
    }
  });
});

/** Why a small tmpfs cannot be mounted here; false where it can. */
function cannotMount(): string | false {
  if (process.getuid?.() !== 0) return 'SKIPPED: needs root, to mount a tmpfs that gets full';
  try {
    withSmallDisk(() => undefined);
    return false;
  } catch (error) {
    return `SKIPPED: cannot mount a tmpfs: ${error instanceof Error ? error.message : String(error)}`;
  }
}

function withSmallDisk(use: (folder: string) => void): void {
  const folder = join(directory, 'small');
  mkdirSync(folder, { recursive: true });
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', folder], { stdio: 'pipe' });
  try {
    use(folder);
  } finally {
    execFileSync('umount', [folder], { stdio: 'pipe' });
  }
}

describe('an image on a disk that gets full', { skip: cannotMount() }, () => {
  it('has every block that fitted, counted one by one, and the others are errors', () => {
    withSmallDisk((folder) => {
      const path = join(folder, 'image');
      const fresh = contents(7, 64);
      writeFileSync(path, '');
      truncateSync(path, fresh.byteLength);
      const result = updateImage({ source: new Source(fresh), changed: [run(0, 64)], imagePath: path });
      const back = readFileSync(path);
      let written = 0;
      for (let at = 0; at < back.byteLength; at += BLOCK_BYTES)
        if (back.subarray(at, at + BLOCK_BYTES).equals(fresh.subarray(at, at + BLOCK_BYTES))) written++;
      assert.ok(written > 0 && written < 64);
      assert.deepEqual([result.changedBlocks, result.errors], [written, 64 - written]);
      assert.equal(result.writtenBytes, written * BLOCK_BYTES);
      assert.match(result.failures[0] ?? '', new RegExp(`^write at ${written * BLOCK_BYTES}: ENOSPC`));
    });
  });
});
