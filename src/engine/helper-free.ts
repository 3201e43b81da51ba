/** The helper's part of `--free-aware`: the free blocks of the mounted file systems, as bits in the volume's memory. */
import { fstatSync } from 'node:fs';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import { freeRanges } from '../sys/fsmap.js';
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES, setBits } from '../tracer/layout.js';
import type { HelperCalls } from './helper-calls.js';
import { whileMapped } from './helper-descriptors.js';
import { openMount } from './helper-freeze.js';

/** ENOTTY, EOPNOTSUPP, EINVAL: no such ioctl here. */
const NOT_HERE: readonly number[] = [25, 95, 22];

/** Sets the bit of every block that is free as a whole. */
export function mapFree(params: HelperCalls['mapFree']['params']): HelperCalls['mapFree']['result'] {
  const startedAt = performance.now();
  const { memoryFd, mapOffset, mapBytes } = params;
  const blocks = whileMapped(memoryFd, mapOffset, mapBytes, (bytes) => setFree(params, new Int32Array(bytes)));
  return { blocks, durationMs: Math.round(performance.now() - startedAt) };
}

function setFree(params: HelperCalls['mapFree']['params'], map: Int32Array): number {
  let blocks = 0;
  for (const { mountPoint, startBytes, mount } of params.fileSystems) {
    const fd = openMount(mountPoint, mount);
    try {
      for (const { offset, lengthBytes } of freeRanges(fd, fstatSync(fd).dev)) {
        const first = Math.ceil((startBytes + offset) / BLOCK_BYTES);
        const end = Math.min(params.blockCount, Math.floor((startBytes + offset + lengthBytes) / BLOCK_BYTES));
        if (end > first) blocks += setBits(map, first, end - 1);
      }
    } catch (error) {
      if (!NOT_HERE.includes(errnoOfError(error))) throw error;
      throw new CowbirdError(
        'EOPNOTSUPP',
        `The file system on ${mountPoint} cannot say which blocks are free (FS_IOC_GETFSMAP; ext4 and xfs can): leave out --free-aware`,
      );
    } finally {
      libc.close(fd);
    }
  }
  return blocks;
}
