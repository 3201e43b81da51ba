/** What `--free-aware` gives a writer of new files: their blocks were free at T0, and need not be saved. */
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import * as cowbird from '../src/index.js';
import { runFio, type Workload } from './fio.js';
import { makeMaster, requireSpace } from './images.js';
import { type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';
import { CowbirdVolume, unusedMinor } from './subjects.js';
import { dropCaches } from './volumes.js';

export type FreeAwareMode = 'passthrough' | 'snapshot' | 'free-aware';
/** Of the COW file: for its header and index, and for what the file system writes beside the new file. */
const STORE_SPARE_MIB = 24;
const MODES: readonly FreeAwareMode[] = ['passthrough', 'snapshot', 'free-aware'];

export interface FreeAwareMeasured {
  newFileMib: number;
  cells: Array<{
    round: number;
    mode: FreeAwareMode;
    mibPerSecond: number;
    /** That were saved meanwhile. */
    savedBlocks: number;
  }>;
}

export async function measureFreeAware(
  lab: Lab,
  scale: Scale,
  say: (text: string) => void,
): Promise<FreeAwareMeasured> {
  const newFileMib = scale.newFileMib;
  requireSpace(lab, 2 * scale.imageMib + newFileMib + 1_024);
  const master = await makeMaster(lab, scale);
  const volume = new CowbirdVolume({ lab, scale, cache: 'direct', master, qemuAio: 'native' }, 'passthrough');
  await volume.start();
  const cells: FreeAwareMeasured['cells'] = [];
  for (let round = 1; round <= scale.rounds; round++) {
    const shift = round % MODES.length;
    for (const mode of [...MODES.slice(shift), ...MODES.slice(0, shift)])
      cells.push({ round, mode, ...(await writeNewFile(lab, volume, mode, newFileMib, round)) });
  }
  await volume.stop();
  for (const mode of MODES) {
    const of = cells.filter((cell) => cell.mode === mode);
    say(`new file, ${mode}: ${Math.round(median(of.map(({ mibPerSecond }) => mibPerSecond)))} MiB/s`);
  }
  return { newFileMib, cells };
}

async function writeNewFile(
  lab: Lab,
  volume: CowbirdVolume,
  mode: FreeAwareMode,
  mib: number,
  seed: number,
): Promise<{ mibPerSecond: number; savedBlocks: number }> {
  const file = join(volume.at, 'new');
  if (existsSync(file)) rmSync(file);
  await lab.run('sync', ['-f', volume.at]);
  const minor = unusedMinor();
  if (mode !== 'passthrough') {
    const options = { storeBytes: (mib + STORE_SPARE_MIB) * MIB, freeAware: mode === 'free-aware' };
    await cowbird.setupSnapshot(volume.device, join(volume.at, 'new.cow'), minor, options, volume.client);
  }
  await dropCaches(lab);
  const target = { file, fileMib: mib };
  const { mibPerSecond } = await runFio(lab, newFile(mib), target, { cellMs: 0, seed });
  if (mode === 'passthrough') return { mibPerSecond, savedBlocks: 0 };
  const { devices } = await cowbird.info(minor, volume.client);
  const savedBlocks = Math.round((devices[0]?.cow_used ?? 0) / 4_096);
  await cowbird.destroy(minor, volume.client);
  return { mibPerSecond, savedBlocks };
}

function newFile(mib: number): Workload {
  return {
    name: 'new-file',
    title: 'a new file, 1 MiB sequential writes',
    unit: 'MiB/s',
    direction: 'write',
    depth: 1,
    args: ['--rw=write', '--bs=1m', '--iodepth=1', '--fallocate=none', '--end_fsync=1'],
    passBytes: mib * MIB,
  };
}
