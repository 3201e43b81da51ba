/** Reading a whole snapshot with `dd bs=1M`, against reading the volume under it in the same way. */
import * as cowbird from '../src/index.js';
import { runFio, type Workload } from './fio.js';
import { makeMaster, requireSpace } from './images.js';
import { type Lab, MIB } from './lab.js';
import type { Scale } from './options.js';
import { median } from './statistics.js';
import { CowbirdVolume } from './subjects.js';
import { dropCaches } from './volumes.js';

const READ_TIMEOUT_MS = 300_000;
/** Share of the file that is overwritten after the snapshot, so that reads go to the store too. */
const SAVED_SHARE = 0.05;

export interface ReadsMeasured {
  mib: number;
  savedBlocks: number;
  rounds: Array<{ direct: boolean; volumeMibPerSecond: number; snapshotMibPerSecond: number }>;
}

export async function measureSnapshotReads(
  lab: Lab,
  scale: Scale,
  say: (text: string) => void,
): Promise<ReadsMeasured> {
  requireSpace(lab, 2 * scale.imageMib + 1_024);
  const master = await makeMaster(lab, scale);
  const volume = new CowbirdVolume({ lab, scale, cache: 'direct', master, qemuAio: 'native' }, 'first');
  await volume.start();
  await volume.takeSnapshot();
  await runFio(lab, scattered(scale), { file: volume.file, fileMib: scale.fileMib }, { cellMs: 0, seed: 1 });
  const { devices } = await cowbird.info(volume.minor, volume.client);
  const rounds: ReadsMeasured['rounds'] = [];
  for (let round = 0; round < Math.max(scale.rounds, scale.update.rounds); round++) {
    for (const direct of [true, false]) {
      const read = async (node: string): Promise<number> => {
        await lab.run('sync', [], { timeoutMs: READ_TIMEOUT_MS });
        await dropCaches(lab);
        const flags = direct ? ['iflag=direct'] : [];
        const args = [`if=${node}`, 'of=/dev/null', 'bs=1M', `count=${scale.readsMib}`, 'status=none', ...flags];
        const { elapsedMs } = await lab.run('dd', args, { timeoutMs: READ_TIMEOUT_MS });
        return (scale.readsMib / elapsedMs) * 1_000;
      };
      const snapshotFirst = round % 2 === 1;
      const early = await read(snapshotFirst ? volume.snapshot : volume.device);
      const late = await read(snapshotFirst ? volume.device : volume.snapshot);
      rounds.push({
        direct,
        volumeMibPerSecond: snapshotFirst ? late : early,
        snapshotMibPerSecond: snapshotFirst ? early : late,
      });
    }
  }
  const ratio = median(rounds.map((entry) => entry.snapshotMibPerSecond / entry.volumeMibPerSecond));
  say(`dd of the snapshot is ${ratio.toFixed(2)} times as fast as dd of the volume`);
  await volume.stop();
  return { mib: scale.readsMib, savedBlocks: devices[0]?.nr_changed_blocks ?? 0, rounds };
}

function scattered(scale: Scale): Workload {
  return {
    name: 'scattered-writes',
    title: 'writes that make saved blocks',
    unit: 'IOPS',
    direction: 'write',
    depth: 16,
    args: ['--rw=randwrite', '--bs=4k', '--iodepth=16'],
    passBytes: Math.floor(scale.fileMib * SAVED_SHARE) * MIB,
  };
}
