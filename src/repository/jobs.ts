/**
 * What is done region by region, by any number of threads at once: a region's blocks, checksums, bits and index entries are
 * touched by one thread only. Nothing here is durable when it returns; whoever runs a job makes it so.
 */
import { aheadOf, indicesToTell } from './jobs-ahead.js';
import {
  emptyTotals,
  type JobContext,
  type JobFiles,
  type JobTotals,
  makeScratch,
  type RegionTask,
  type Scratch,
} from './jobs-common.js';
import {
  type SaveSpec,
  saveJob,
  type VerifyDeltaSpec,
  type VerifyImageSpec,
  verifyDeltaJob,
  verifyImageJob,
} from './jobs-image.js';
import { type ApplySpec, applyJob, type CompareSpec, type CopySpec, compareJob, copyJob } from './jobs-source.js';
import { type StageSpec, stageJob } from './jobs-stage.js';
import {
  type CheckSpec,
  checkJob,
  type RestoreSpec,
  restoreJob,
  type VerifyViewSpec,
  verifyViewJob,
} from './jobs-view.js';

export type JobSpec =
  | CopySpec
  | CompareSpec
  | StageSpec
  | SaveSpec
  | ApplySpec
  | VerifyImageSpec
  | VerifyDeltaSpec
  | VerifyViewSpec
  | RestoreSpec
  | CheckSpec;

/** A job in one thread: its regions come one by one, its totals grow. */
export interface StartedJob {
  readonly totals: JobTotals;
  /** Does the region at an index. */
  readonly run: (index: number) => void;
}

/** Regions `0` to `regions - 1`, or those listed. */
export type Regions = number | Uint32Array;

export function countOf(regions: Regions): number {
  return typeof regions === 'number' ? regions : regions.length;
}

let scratch: Scratch | undefined;

export function startJob(spec: JobSpec, files: JobFiles, regions: Regions): StartedJob {
  scratch ??= makeScratch();
  const context: JobContext = { files, scratch, totals: emptyTotals() };
  const task = taskOf(spec, context);
  const ahead = aheadOf(spec, files);
  const regionAt = (index: number): number => (typeof regions === 'number' ? index : (regions[index] ?? 0));
  const run = (index: number): void => {
    if (ahead !== undefined) for (const next of indicesToTell(index, countOf(regions))) ahead(regionAt(next));
    task(regionAt(index));
  };
  return { totals: context.totals, run };
}

function taskOf(spec: JobSpec, context: JobContext): RegionTask {
  switch (spec.kind) {
    case 'copy':
      return copyJob(spec, context);
    case 'compare':
      return compareJob(spec, context);
    case 'stage':
      return stageJob(spec, context);
    case 'save':
      return saveJob(spec, context);
    case 'apply':
      return applyJob(spec, context);
    case 'verify-image':
      return verifyImageJob(spec, context);
    case 'verify-delta':
      return verifyDeltaJob(spec, context);
    case 'verify-view':
      return verifyViewJob(spec, context);
    case 'restore':
      return restoreJob(spec, context);
    case 'check':
      return checkJob(spec, context);
  }
}

/** Adds the totals of one thread to those of all. */
export function addTotals(sum: JobTotals, more: JobTotals): void {
  sum.bytesRead += more.bytesRead;
  sum.bytesWritten += more.bytesWritten;
  sum.growthBlocks += more.growthBlocks;
  for (const block of more.badBlocks) sum.badBlocks.push(block);
  for (const block of more.damagedBlocks) sum.damagedBlocks.push(block);
}
