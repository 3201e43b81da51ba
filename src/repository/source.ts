/**
 * What a version is made from. The engine that reads it (scan, driver) makes one of these; the repository asks no more.
 */
import type { ReadableFile } from './files.js';
import type { SourceIdentity } from './manifest.js';

/** What is to be read again of a source that went on being written. */
export interface Pass {
  /** Where to read it from. */
  readonly file: ReadableFile;
  /** One bit a block: those that changed since they were read last. */
  readonly blocks: Uint8Array;
  /** As {@link BackupSource.used}, with all that was written meanwhile. */
  readonly used?: Uint8Array | undefined;
}

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
  /** `file` has nothing but the candidates: the other blocks are those of the newest version, for sure. */
  readonly holdsOnlyCandidates?: boolean | undefined;
  /**
   * Of a source that goes on being written: called when `file`, then each pass was read; gives what is to be read once more,
   * and undefined when what was read is one state.
   */
  readonly nextPass?: (() => Promise<Pass | undefined>) | undefined;
  /** When the source was what was read of it: asked when all was. Undefined: any time of the reading will do. */
  readonly instant?: (() => Date) | undefined;
  /**
   * Called when all was read, before the commit. Throws where what was read is not one state: the source was written
   * meanwhile, or its snapshot failed. Then there is no version.
   */
  readonly confirm?: (() => void | Promise<void>) | undefined;
}
