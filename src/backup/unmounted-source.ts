/**
 * The source of an attached volume that is not mounted: claimed and read as it is, like a disk that nobody uses.
 *
 * Its tracking goes on meanwhile, and is reloaded first where a clean stop of the daemon left it. So the version has the
 * token of the snapshot that the current map began with (what differs from this version later is in that map, too), and where
 * the version before has the same one, the map lists what this one has to read.
 */
import { changePages } from '../control/changes.js';
import { type ClientOptions, call } from '../control/client.js';
import { pathsFrom } from '../control/paths.js';
import type { SnapshotStatus } from '../control/schema.js';
import { latestSeries } from '../engine/saved-state.js';
import { addByteRanges, makeBits } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import type { VersionRecord } from '../repository/manifest.js';
import { messageOf } from '../sys/errors.js';
import { type AttachedSource, attachedAgain, ownTracking, unusedMinors } from './attached-volume.js';
import { addRanges, isOwnCowFile, type Sequence } from './cow-files.js';
import { tokenOf } from './driver-source.js';
import { type OpenSource, openScanSource } from './scan-source.js';

const UNVERIFIED_BIT = 4;

export interface UnmountedSource {
  source: OpenSource;
  reason: string;
  /** Null where the volume is not tracked. */
  token: string | null;
}

/**
 * Claims an attached volume that is not mounted.
 *
 * @throws {CowbirdError} EBUSY for a volume that somebody has opened for himself, or tracks himself.
 */
export async function openUnmountedSource(
  attached: AttachedSource,
  newest: VersionRecord | undefined,
  whole: boolean,
  client: ClientOptions,
): Promise<UnmountedSource> {
  const { volume, identity } = attached;
  const before = await ownTracking(volume, client);
  const warning = before === undefined ? await reloadTracking(attached, client) : undefined;
  const source = openScanSource(volume.device);
  try {
    // It is claimed from here on, and cannot be detached; before that its node may have become another disk's.
    await attachedAgain(attached, client);
    const status = await ownTracking(volume, client);
    const sequence = status === undefined ? undefined : sequenceOf(attached, status, client);
    const reason = `the volume is not mounted${warning === undefined ? '' : `; its tracking could not be gone on with: ${warning}`}`;
    const token = sequence === undefined ? null : tokenOf(sequence);
    const listed = { ...source, identity };
    const isListed =
      newest !== undefined &&
      token !== null &&
      newest.continuityToken === token &&
      newest.sizeBytes === source.sizeBytes &&
      !(whole && !newest.whole) &&
      status !== undefined &&
      status.state < UNVERIFIED_BIT;
    if (!isListed) return { source: listed, reason, token };
    const candidates = makeBits(regionCount(source.sizeBytes));
    // More than had changed when this was begun with does no harm: it is read, too.
    for await (const { extents } of changePages(status.minor, client)) addRanges(candidates, extents);
    addByteRanges(candidates, newest.skipped);
    return {
      source: { ...listed, candidates },
      reason: `the driver lists what changed since version ${newest.number}${newest.whole ? '' : '; what that one left out as unused is read too, for what is in use is only known of a mounted volume'}`,
      token,
    };
  } catch (error) {
    source.close();
    throw error;
  }
}

/** The snapshot that the current map began with; undefined where the map is not to be trusted. */
function sequenceOf(attached: AttachedSource, status: SnapshotStatus, client: ClientOptions): Sequence | undefined {
  if (status.error !== undefined) return undefined;
  if (status.uuid !== undefined && status.seq_id !== undefined) return { uuid: status.uuid, sequenceId: status.seq_id };
  // Not verified before its next mount; when that finds something wrong, the error undoes every token of the series.
  return savedSeries(attached, client, status.cow_file);
}

function savedSeries(
  { volume }: AttachedSource,
  client: ClientOptions,
  cowFile?: string,
): (Sequence & { cowFile: string; mode: 'incremental' | 'snapshot' }) | undefined {
  const { stateDir } = pathsFrom(client.env ?? process.env);
  const isWanted = (saved: { origin: string; cowFile: string }): boolean =>
    saved.origin === volume.origin && (cowFile === undefined ? isOwnCowFile(saved.cowFile) : saved.cowFile === cowFile);
  // The daemon reports what is damaged, when it looks itself.
  return latestSeries(stateDir, isWanted, () => undefined);
}

/** Goes on with what a clean stop left, from before the mount on. Returns why that did not succeed, in words. */
async function reloadTracking(attached: AttachedSource, client: ClientOptions): Promise<string | undefined> {
  const saved = savedSeries(attached, client);
  if (saved === undefined) return undefined;
  try {
    const [minor = 0] = await unusedMinors(1, client);
    const operation = saved.mode === 'incremental' ? 'reloadIncremental' : 'reloadSnapshot';
    await call(operation, { device: attached.volume.device, cowFile: saved.cowFile, minor }, client);
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}
