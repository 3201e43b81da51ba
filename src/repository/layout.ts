/**
 * Names in a repository, and the sizes that its parts are worked on in.
 *
 *     image             the newest version, raw and sparse; `image.updating` while an update is open
 *     checksums         16 bytes for each block of the image
 *     history/N.cow     what version N had where the next version differs
 *     history/N.used    which blocks of the newest version N it has contents of, unless that is all (used-map.ts)
 *     manifest          the versions, as JSON; `manifest.copy` the same again, `manifest.new` while it is written
 *     incoming          what a source in use was read into, until it is one state; it has no name while it is in use
 *     together/ID.json  of a version of several repositories at one instant, until all of them have it
 *     lock              empty; locked by who reads or writes
 */
import { BLOCK_SIZE_BYTES, blockCount } from '../cow/geometry.js';

export const IMAGE = 'image';
export const IMAGE_UPDATING = 'image.updating';
export const CHECKSUMS = 'checksums';
export const MANIFEST = 'manifest';
export const MANIFEST_COPY = 'manifest.copy';
export const MANIFEST_NEW = 'manifest.new';
export const INCOMING = 'incoming';
export const LOCK = 'lock';
export const HISTORY = 'history';
export const TOGETHER = 'together';

/** A region is what one thread works on at a time. Its checksums are one page of the checksum file. */
export const REGION_BYTES = 1_048_576;
export const REGION_BLOCKS = REGION_BYTES / BLOCK_SIZE_BYTES;

/** Path of the delta from which version `version` is read. */
export function deltaName(version: number): string {
  return `${HISTORY}/${version}.cow`;
}

/** Path of the used map of version `version`. */
export function usedName(version: number): string {
  return `${HISTORY}/${version}.used`;
}

/** Path of the file of an instant of several repositories. */
export function togetherName(id: string): string {
  return `${TOGETHER}/${id}.json`;
}

/** The version of a delta's file name; undefined for any other name. */
export function versionOfDelta(name: string): number | undefined {
  const digits = /^([1-9]\d{0,14})\.cow$/.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

export function regionCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / REGION_BYTES);
}

/** Blocks of the region that lie in a volume of `sizeBytes`. */
export function blocksInRegion(region: number, sizeBytes: number): number {
  return Math.max(0, Math.min(REGION_BLOCKS, blockCount(sizeBytes) - region * REGION_BLOCKS));
}

/** Bytes of the region that lie in a volume of `sizeBytes`. */
export function bytesInRegion(region: number, sizeBytes: number): number {
  return Math.max(0, Math.min(REGION_BYTES, sizeBytes - region * REGION_BYTES));
}
