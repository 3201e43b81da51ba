/**
 * A version as a whole: the image seen through its delta and those of every version after it. A block is what the first
 * delta that has it says, and what the image has where none does; its checksum comes from the same place.
 */
import { BLOCK_SIZE_BYTES } from '../cow/geometry.js';
import { spansOf } from './bits.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { checksumOffset, type DeltaShape, regionEntries } from './delta.js';
import { type ReadableFile, readMarked } from './files.js';
import { readMarkedPage } from './jobs-common.js';
import { blocksInRegion, REGION_BLOCKS, REGION_BYTES } from './layout.js';

/** What reading a version takes; can be handed to other threads, the files beside it. */
export interface ViewShape {
  sizeBytes: number;
  /** From the version's own delta towards the image. */
  chain: readonly DeltaShape[];
}

export interface ViewFiles {
  image: ReadableFile;
  checksums: ReadableFile;
  chain: readonly ReadableFile[];
}

/** Where a region's blocks come from: index in the chain, -1 for the image; and the places in the deltas. */
interface Origins {
  count: number;
  from: Int32Array;
  place: Uint32Array;
}

export class View {
  readonly shape: ViewShape;
  readonly #files: ViewFiles;
  readonly #entries = Buffer.alloc(REGION_BLOCKS * 8);
  readonly #packed = Buffer.alloc(REGION_BYTES);

  constructor(shape: ViewShape, files: ViewFiles) {
    this.shape = shape;
    this.#files = files;
  }

  /** Fills `page` with the checksums of a region. */
  readChecksums(region: number, page: Buffer): void {
    const origins = this.#resolve(region);
    readMarkedPage(this.#files.checksums, region, page);
    page.fill(0, origins.count * CHECKSUM_BYTES);
    this.#forRuns(origins, (file, shape, place, block, count) => {
      const at = block * CHECKSUM_BYTES;
      const bytes = page.subarray(at, at + count * CHECKSUM_BYTES);
      if (place === shape.zeroPlace) bytes.fill(0);
      else readMarked(file, bytes, checksumOffset(shape, place));
    });
  }

  /** Fills `data` with the contents of a region, zeros beyond the version's end. Nothing is checked. */
  readData(region: number, data: Buffer): void {
    const origins = this.#resolve(region);
    const offset = region * REGION_BYTES;
    const fromImage = spansOf(origins.count, (block) => origins.from[block] === -1, 16);
    const end = offset + origins.count * BLOCK_SIZE_BYTES;
    const isHole = this.#files.image.nextData(offset, end) >= end;
    data.fill(0);
    for (const { start, end: last } of isHole ? [] : fromImage) {
      const bytes = data.subarray(start * BLOCK_SIZE_BYTES, last * BLOCK_SIZE_BYTES);
      readMarked(this.#files.image, bytes, offset + start * BLOCK_SIZE_BYTES);
    }
    this.#forRuns(origins, (file, shape, place, block, count) => {
      const at = block * BLOCK_SIZE_BYTES;
      const bytes = data.subarray(at, at + count * BLOCK_SIZE_BYTES);
      if (place === shape.zeroPlace) bytes.fill(0);
      else {
        const packed = this.#packed.subarray(0, bytes.byteLength);
        readMarked(file, packed, place * BLOCK_SIZE_BYTES);
        packed.copy(bytes);
      }
    });
  }

  #resolve(region: number): Origins {
    const origins: Origins = {
      count: blocksInRegion(region, this.shape.sizeBytes),
      from: new Int32Array(REGION_BLOCKS).fill(-1),
      place: new Uint32Array(REGION_BLOCKS),
    };
    for (const [at, shape] of this.shape.chain.entries()) {
      const file = this.#files.chain[at];
      if (file === undefined)
        throw new RangeError(`The chain has ${this.shape.chain.length} deltas, a file is missing`);
      const entries = regionEntries(file, shape, region, this.#entries);
      entries?.forEach((entry, block) => {
        if (entry === 0 || origins.from[block] !== -1) return;
        origins.from[block] = at;
        origins.place[block] = entry;
      });
    }
    return origins;
  }

  /** Calls for every run of blocks that lie in one delta one after another, or are zeros there. */
  #forRuns(
    origins: Origins,
    visit: (file: ReadableFile, shape: DeltaShape, place: number, block: number, count: number) => void,
  ): void {
    for (let block = 0; block < origins.count; ) {
      const at = origins.from[block] ?? -1;
      const file = this.#files.chain[at];
      const shape = this.shape.chain[at];
      if (file === undefined || shape === undefined) {
        block++;
        continue;
      }
      const place = origins.place[block] ?? 0;
      const step = place === shape.zeroPlace ? 0 : 1;
      let count = 1;
      while (
        block + count < origins.count &&
        origins.from[block + count] === at &&
        origins.place[block + count] === place + count * step
      )
        count++;
      visit(file, shape, place, block, count);
      block += count;
    }
  }
}
