/** What an update is told, and how its phases tell how far they are. */
import { codeOf, errnoOfError } from '../sys/errors.js';
import { REGION_BYTES } from './layout.js';
import type { VersionRecord } from './manifest.js';
import type { RunJob, RunOptions } from './runner.js';
import type { BackupSource, Pass } from './source.js';

export type UpdatePhase = 'compare' | 'save' | 'copy';

export interface UpdateOptions {
  engine: VersionRecord['engine'];
  /** Why this engine, in words. */
  reason: string;
  whole: boolean;
  skipBadBlocks: boolean;
  continuityToken?: string | null;
  togetherId?: string | null;
  /** Of the version, where its source has no instant of its own. */
  time: Date;
  run: RunJob;
  signal?: AbortSignal | undefined;
  onProgress?: ((phase: UpdatePhase, doneBytes: number, totalBytes: number) => void) | undefined;
}

/** The blocks to be read; undefined for all. */
export function usedOf(of: Pick<BackupSource | Pass, 'used'>, options: UpdateOptions): Uint8Array | undefined {
  return options.whole ? undefined : of.used;
}

/** How much there is to do in so many regions, or in those listed. */
export function bytesOf(regions: number | Uint32Array, sizeBytes: number): number {
  return typeof regions === 'number' ? sizeBytes : Math.min(regions.length * REGION_BYTES, sizeBytes);
}

/** Progress of one phase, in bytes. `progress` keeps how far it came. */
export function phase(
  options: UpdateOptions,
  name: UpdatePhase,
  sizeBytes: number,
  progress?: { doneBytes: number },
): RunOptions {
  return {
    signal: options.signal,
    onProgress: (doneRegions) => {
      const doneBytes = Math.min(doneRegions * REGION_BYTES, sizeBytes);
      if (progress !== undefined) progress.doneBytes = doneBytes;
      options.onProgress?.(name, doneBytes, sizeBytes);
    },
  };
}

/** The disk is full, or what this user may have of it. */
export function isOutOfSpace(error: unknown): boolean {
  return ['ENOSPC', 'EDQUOT'].includes(codeOf(errnoOfError(error)));
}
