/** Whether a COW file on its own volume still lies where it lay: it is written by address. */
import { errnoOfError, messageOf } from '../sys/errors.js';
import type { FileExtent } from '../sys/fsfile.js';
import type { StoreExtent } from '../tracer/store-map.js';
import type { StoreFile } from './helper-calls.js';
import type { HelperSession } from './services.js';
import { toStoreExtents } from './store-setup.js';

const ENOENT = 2;
const EUCLEAN = 117;

export interface Whereabouts {
  sizeBytes: number;
  /** Of the partition that it lies on. */
  startBytes: number;
  volumeBytes: number;
  extents: readonly StoreExtent[];
}

/** Proof that the file is not where it was. */
export interface Moved {
  errno: number;
  reason: string;
}

/**
 * Looks where the file lies; undefined: where it lay.
 *
 * @throws whatever kept the helper from looking: a limit of time, a lack of memory, a disk that fails. That proves nothing.
 */
export async function lookForStore(
  helper: Pick<HelperSession, 'call'>,
  file: StoreFile,
  { sizeBytes, startBytes, volumeBytes, extents }: Whereabouts,
): Promise<Moved | undefined> {
  let found: FileExtent[];
  try {
    found = (await helper.call('extents', { file, sizeBytes })).extents;
  } catch (error) {
    // Asked by itself: an errno may come from anywhere on the way to the file. Why it cannot be asked, the first error says.
    const isThere = await helper.call('isStore', { file }).then(
      ({ present }) => present,
      () => true,
    );
    if (isThere) throw error;
    return { errno: errnoOfError(error) === ENOENT ? ENOENT : EUCLEAN, reason: messageOf(error) };
  }
  try {
    const now = toStoreExtents(found, sizeBytes, startBytes, volumeBytes);
    if (JSON.stringify(now) === JSON.stringify(extents)) return undefined;
  } catch (error) {
    // Extents that no store can have are others than those that it has.
    return { errno: EUCLEAN, reason: messageOf(error) };
  }
  return { errno: EUCLEAN, reason: `${file.path} lies elsewhere than before` };
}
