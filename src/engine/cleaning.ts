/** Making the COW file of a tracked volume clean, so that tracking can go on after the daemon has ended. */
import { originFingerprint } from '../cow/fingerprint.js';
import { deviceNumbersOn } from '../sys/blkdev.js';
import { codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { goClean } from '../tracer/cleaning.js';
import type { StoreOnDevice } from '../tracer/index-io.js';
import { HeaderState, Mode, Word } from '../tracer/layout.js';
import { runStepsAsync, withScratch } from './async-steps.js';
import type { EngineContext } from './context.js';
import { saveSeries } from './series.js';
import { headerFor, type Tracked } from './tracking.js';
import type { Volume } from './volume.js';

/** The store of a tracked volume, as the control thread writes it. */
export function storeOf({ volume }: Tracked): StoreOnDevice {
  const map = volume.tracer.storeMap;
  if (map === undefined) throw new Error(`${volume.record.name} is tracked and has a store`);
  return { map, device: volume.storeDevice };
}

/**
 * What has failed while it was tracked is not gone on with after a stop: its header may still say clean, if the very write
 * that should have made it dirty was what failed. One whose reload was refused is not tracked, and may be tried again.
 */
export function dropTrust(context: EngineContext, volume: Volume): void {
  if (volume.memory.get(Word.MODE) !== Mode.PASSTHROUGH) saveSeries(context, volume, undefined);
}

/**
 * Before a switch to the next mode or store: the header on disk says unclean. Where nothing was written since it became
 * clean it still says otherwise, and with the series' old entry in the state directory it would be trusted after a power
 * failure in the middle of the operation, although what was written behind the switch is not in it (I3).
 */
export async function ensureDirty({ memory, tracer }: Volume): Promise<void> {
  if (memory.get(Word.HEADER_STATE) === HeaderState.DIRTY) return;
  await withScratch((scratch) => runStepsAsync(tracer.makeDirty({ worker: 0, scratch })));
}

/** Where on a volume file systems may begin: at 0, with each partition, and where the COW file's own one does. */
function placesOfFileSystems(node: string, ownStart: number): number[] {
  const starts = deviceNumbersOn(node).flatMap(({ startBytes }) => (startBytes === null ? [] : [startBytes]));
  return [...new Set([0, ownStart, ...starts])].sort((a, b) => a - b);
}

/** Makes the COW file clean. Returns false when writes came in between; the next look tries again. */
export async function makeClean(context: EngineContext, target: Tracked): Promise<boolean> {
  const { volume, snapshot } = target;
  const { tracer } = volume;
  if (tracer.memory.get(Word.FAILED) !== 0) {
    dropTrust(context, volume);
    return false;
  }
  const starts = placesOfFileSystems(volume.record.device.node, snapshot.startBytes);
  try {
    return await withScratch((buffer) =>
      runStepsAsync(
        goClean(tracer, {
          store: storeOf(target),
          buffer,
          fingerprint: () => originFingerprint(volume.origin, buffer, starts, snapshot.store.extents),
          header: (changedBlocks, fingerprint) => {
            // The series is saved first: without the header it is only a promise, the header without it is of no use.
            saveSeries(context, volume, { fingerprint, starts });
            return headerFor(volume, snapshot, { clean: true, changedBlocks, fingerprint });
          },
        }),
      ),
    );
  } catch (error) {
    tracer.fail(errnoOfError(error));
    dropTrust(context, volume);
    context.emit({
      event: 'snapshot.failed',
      level: 'error',
      message: `The COW file of minor ${snapshot.minor} could not be made clean: ${messageOf(error)}`,
      minor: snapshot.minor,
      errno: errnoOfError(error),
      code: codeOf(errnoOfError(error)),
    });
    return false;
  }
}
