/**
 * What a version is made from. The engine that reads it (scan, driver) makes one of these; the repository asks no more.
 */
import type { ReadableFile } from './files.js';
import type { SourceIdentity } from './manifest.js';

export interface BackupSource {
  readonly sizeBytes: number;
  readonly identity: SourceIdentity;
  readonly file: ReadableFile;
  /** One bit a block: the blocks in use; the others become zeros. Undefined: all are. */
  readonly used?: Uint8Array | undefined;
  /**
   * One bit a block: the blocks that may differ from the newest version, proved to miss none. Undefined: all may. It is set
   * aside where the image was changed by others since.
   */
  readonly candidates?: Uint8Array | undefined;
  /**
   * Called when all was read, before the commit. Throws where what was read is not one state: the source was written
   * meanwhile, or its snapshot failed. Then there is no version.
   */
  readonly confirm?: (() => void | Promise<void>) | undefined;
}
