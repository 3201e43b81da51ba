/** Finding what is not zeros. */
import { BLOCK_BYTES } from './layout.js';

/** The runs of whole blocks (cut to the range) that hold anything but zeros. */
export function nonZeroRuns(bytes: Uint8Array, offset: number): Array<{ offset: number; lengthBytes: number }> {
  const runs: Array<{ offset: number; lengthBytes: number }> = [];
  let at = 0;
  while (at < bytes.byteLength) {
    const end = Math.min(bytes.byteLength, at + BLOCK_BYTES - ((offset + at) % BLOCK_BYTES));
    if (!isZero(bytes, at, end)) {
      const previous = runs.at(-1);
      if (previous !== undefined && previous.offset + previous.lengthBytes === offset + at)
        previous.lengthBytes += end - at;
      else runs.push({ offset: offset + at, lengthBytes: end - at });
    }
    at = end;
  }
  return runs;
}

const ZEROS = Buffer.alloc(BLOCK_BYTES);

/** Whether a piece of at most one block is all zeros. */
export function isZero(bytes: Uint8Array, start: number, end: number): boolean {
  return ZEROS.compare(bytes, start, end, 0, end - start) === 0;
}
