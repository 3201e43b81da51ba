/** The file of a sequence that has ended: its list of changes, written through the file system. */
import { BLOCK_SIZE_BYTES, dataOffsetBytes } from '../cow/geometry.js';
import { messageOf } from '../sys/errors.js';
import { countBits } from '../tracer/layout.js';
import { type EngineContext, withHelper } from './context.js';
import type { SnapshotRecord } from './records.js';
import { writeTimeMs } from './store-setup.js';
import { headerFor } from './tracking.js';
import type { Volume } from './volume.js';

const CLOSE_TIMEOUT_MS = 120_000;

/** Writes the closed map as the file's index; returns what went wrong. May be done again. */
export async function closeOldFile(
  context: EngineContext,
  volume: Volume,
  old: SnapshotRecord,
  closedMap: 0 | 1,
): Promise<{ code: string; message: string } | undefined> {
  const changedBlocks = countBits(volume.memory.maps[closedMap]);
  const header = headerFor(volume, { ...old, mode: 'incremental' }, { clean: true, changedBlocks });
  const params = {
    file: old.file,
    memoryFd: volume.record.opened.memoryFd,
    mapOffset: volume.memory.sizes.mapOffsets[closedMap],
    blockCount: volume.blockCount,
    dataOffsetBytes: dataOffsetBytes(volume.blockCount),
    header: header.toString('base64'),
  };
  // The next snapshot is there by then: each block of the list is read, saved and written.
  const listBytes = Math.min(params.dataOffsetBytes, (changedBlocks + 1) * BLOCK_SIZE_BYTES);
  const timeoutMs = CLOSE_TIMEOUT_MS + writeTimeMs(3 * listBytes);
  try {
    await withHelper(context, (helper) => helper.call('closeStore', params, timeoutMs));
    return undefined;
  } catch (error) {
    context.emit({ event: 'store.close', level: 'error', message: messageOf(error), minor: old.minor });
    const message = `${old.file.path} could not be written: ${messageOf(error)}. Compare contents for this backup (\`update-img --scan\`)`;
    return { code: 'EIO', message };
  }
}
