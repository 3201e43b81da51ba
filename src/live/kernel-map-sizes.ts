/** How large the arrays of a disk's map are: what the disk and the machine have. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DeviceView } from './device-view.js';

const NOTES_LEAST = 4096;
/** Eight mebibytes of the kernel's memory. */
const NOTES_MOST = 262_144;

/** Places for notes: four for each request that a disk has now, a power of two. See `requests` in the program. */
export function noteCount({ disk, kind }: DeviceView): number {
  if (kind === 'bio') return NOTES_LEAST;
  const queues = readdirSync(join(disk, 'mq')).length;
  const each = Number(readFileSync(join(disk, 'queue/nr_requests'), 'utf8'));
  const wanted = 2 ** Math.ceil(Math.log2(Math.max(4 * queues * each, NOTES_LEAST)));
  return Math.min(wanted, NOTES_MOST);
}

/** Processors that can ever be there: their numbers are below this. */
export function possibleCpus(): number {
  const last = /(\d+)\s*$/.exec(readFileSync('/sys/devices/system/cpu/possible', 'utf8'))?.[1] ?? '0';
  return Number(last) + 1;
}
