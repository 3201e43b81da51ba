/**
 * What the keeper can say of the volumes by itself, from the records and the control words of their memory: while an engine is
 * being started, and while one waits for an origin that does not answer.
 */
import * as libc from '../sys/libc.js';
import { BLOCK_BYTES } from '../tracer/layout.js';
import type { VolumeRecord } from './records.js';
import { describeVolume, statusDocument } from './status.js';
import type { VolumeView } from './tracking.js';
import type { StatusDocument, VolumeInfo } from './types.js';

const CONTROL_BYTES = 4096;

/** The same document as the engine's. @throws {CowbirdError} ENOENT for a minor that is not in use. */
export function infoFromRecords(records: readonly VolumeRecord[], minor?: number): StatusDocument {
  const mappings: libc.Mapping[] = [];
  const views = records.map((record): VolumeView => {
    const mapping = libc.mapShared(record.opened.memoryFd, 0, CONTROL_BYTES);
    mappings.push(mapping);
    const words = new Int32Array(mapping.bytes);
    const blockCount = Math.ceil(record.opened.sizeBytes / BLOCK_BYTES);
    return { record, blockCount, memory: { get: (word) => Atomics.load(words, word) } };
  });
  try {
    return statusDocument(views, minor);
  } finally {
    for (const mapping of mappings) libc.unmap(mapping);
  }
}

export function listFromRecords(records: readonly VolumeRecord[]): { volumes: VolumeInfo[] } {
  return { volumes: records.map(describeVolume) };
}
