/**
 * The source of engine `driver`: the snapshot of an attached volume, and the blocks that may have changed since the version
 * before, where that is proved.
 *
 * A version's continuity token names the snapshot that it was read from: `<series uuid>:<sequence id>`. What it promises:
 * every block that differs from the version at any later time is in the change map that began with that snapshot, or in one
 * after it. The map is believed only where the token's series is the volume's, the driver says that tracking is active and
 * without error, and the closed COW files of all sequences from the token's to the new snapshot are there and whole. A
 * version of another repository takes the map away from this one: its files are removed, and this one compares contents.
 */
import { statSync } from 'node:fs';
import type { ClientOptions } from '../control/client.js';
import { mountsOn } from '../engine/lookup.js';
import { addByteRanges } from '../repository/bits.js';
import type { VersionRecord } from '../repository/manifest.js';
import type { BackupSource } from '../repository/source.js';
import { deviceNumber } from '../sys/blkdev.js';
import { assert, CowbirdError, messageOf } from '../sys/errors.js';
import { PageFile } from '../sys/page-file.js';
import { changedBetween, ownCowFile, type Sequence } from './cow-files.js';
import { fsTypeOf, usedBlocks } from './free-blocks.js';
import {
  endSnapshot,
  type Hooks,
  requireSnapshot,
  type SnapshotRequest,
  snapshotNode,
  type TakenSnapshot,
  takeSnapshots,
} from './snapshots.js';

export interface DriverRequest extends SnapshotRequest {
  /** The newest version of the repository. */
  newest: VersionRecord | undefined;
  /** All blocks are wanted, free ones too. */
  whole: boolean;
}

export interface DriverSource {
  source: BackupSource;
  /** Why blocks are listed, or contents compared. */
  reason: string;
  token: string;
  /** The snapshot's device. */
  node: string;
  /** How long the file system stood still; null where that is not known. */
  freezeMs: number | null;
  /** Whether `postThaw` did not do its work; the words are among the warnings. */
  hookFailed: boolean;
  /** What is not as it should be, in words. */
  warnings: string[];
  /** Goes on to incremental mode; `committed`: a version was made. Returns what did not succeed, in words. Never throws. */
  end(committed: boolean): Promise<string[]>;
}

/** The token of a version that was read from this snapshot. */
export function tokenOf({ uuid, sequenceId }: Sequence): string {
  return `${uuid}:${sequenceId}`;
}

/** The snapshot of a token; undefined for one of another kind. */
export function parseToken(token: string | null | undefined): Sequence | undefined {
  const [, uuid, digits] = /^([0-9a-f]{32}):(\d{1,15})$/.exec(token ?? '') ?? [];
  return uuid === undefined || digits === undefined ? undefined : { uuid, sequenceId: Number(digits) };
}

/**
 * Takes the next snapshots of volumes, at one instant, and opens them.
 *
 * @throws {CowbirdError} EBUSY for a volume that a user tracks himself; ENOSPC without room for a COW file; what the daemon
 * says. All volumes have gone on then.
 */
export async function openDriverSources(
  requests: readonly DriverRequest[],
  hooks: Hooks,
  client: ClientOptions,
): Promise<DriverSource[]> {
  const { snapshots, instant, freezeMs, hookFailed, warnings } = await takeSnapshots(requests, hooks, client);
  const opened: DriverSource[] = [];
  let at = 0;
  try {
    for (const [i, request] of requests.entries()) {
      at = i;
      const taken = snapshots[i];
      assert(taken !== undefined, 'every request has its snapshot');
      const source = await openSnapshot(request, { ...taken, instant }, client);
      opened.push({ ...source, freezeMs, hookFailed, warnings: [...warnings, ...source.warnings] });
    }
    return opened;
  } catch (error) {
    for (const source of opened) await source.end(false);
    for (const [i, taken] of snapshots.entries()) {
      const places = requests[i]?.places;
      // The one that could not be opened has ended itself.
      if (i > at && places !== undefined) await endSnapshot(taken, places, false, client);
    }
    throw error;
  }
}

async function openSnapshot(
  request: DriverRequest,
  taken: TakenSnapshot & { instant: Date },
  client: ClientOptions,
): Promise<Omit<DriverSource, 'freezeMs' | 'hookFailed'>> {
  let file: PageFile | undefined;
  // Also when the caller was interrupted.
  const { signal: _, ...unhurried } = client;
  const end = async (committed: boolean): Promise<string[]> => {
    file?.close();
    return endSnapshot(taken, request.places, committed, unhurried);
  };
  try {
    const node = snapshotNode(taken.minor, client);
    if (node === undefined) throw withoutDevice(taken.minor);
    file = PageFile.open(node, 'read');
    // From here on it cannot be destroyed; before that somebody else may have been faster.
    await requireSnapshot(taken, client);
    // A process of its own, which looks at the snapshot while this one reads the lists.
    const asked = usedOrAll(request, taken, node, file);
    const listed = listChanges(request, taken);
    const { used, warnings } = await asked;
    const source: BackupSource = {
      sizeBytes: file.sizeBytes(),
      identity: request.attached.identity,
      file,
      candidates: listed.candidates,
      used,
      instant: () => taken.instant,
      confirm: () => requireSnapshot(taken, client),
    };
    return { source, reason: listed.reason, token: tokenOf(taken), node, warnings, end };
  } catch (error) {
    await end(false);
    throw error;
  }
}

function withoutDevice(minor: number): CowbirdError {
  const why = `the snapshot, minor ${minor}, has no device`;
  return new CowbirdError('EIO', `${why}: \`cowbird info\` tells more; no version was made, run this again`, {
    outcome: 'failed',
  });
}

/** The used blocks, or why all are copied. */
async function usedOrAll(
  { attached, places, whole }: DriverRequest,
  { cowFile }: TakenSnapshot,
  node: string,
  file: PageFile,
): Promise<{ used: Uint8Array | undefined; warnings: string[] }> {
  const { signature, isMounted } = attached;
  const fsType = fsTypeOf(signature);
  if (whole || signature === undefined) return { used: undefined, warnings: [] };
  const all = (why: string): { used: undefined; warnings: string[] } => ({
    used: undefined,
    warnings: [`unused blocks were copied too: ${why}`],
  });
  if (fsType === undefined || !isMounted) return all(`which these are is not known of ${signature.name}`);
  if (!isMountedAs(attached.volume.device, fsType))
    return all(`what is mounted is not the ${signature.name} that the volume begins with`);
  try {
    return { used: await usedBlocks(node, fsType, file, file.sizeBytes(), ownCowFile(places, cowFile)), warnings: [] };
  } catch (error) {
    return all(messageOf(error));
  }
}

/**
 * Whether the file system that the volume begins with is the one in use. A disk that was a file system as a whole and has got
 * partitions may have that superblock still: its free blocks are where the partitions are.
 */
function isMountedAs(device: string, fsType: 'ext4' | 'xfs'): boolean {
  const number = deviceNumber(statSync(device).rdev);
  const types = fsType === 'ext4' ? ['ext2', 'ext3', 'ext4'] : [fsType];
  return mountsOn(device).some((entry) => entry.device === number && types.includes(entry.fsType));
}

/** What may differ from the newest version, or why that is not known. */
function listChanges(request: DriverRequest, taken: TakenSnapshot): { candidates?: Uint8Array; reason: string } {
  const { newest, places, whole } = request;
  if (newest === undefined) return { reason: 'the volume is attached' };
  const compared = (why: string): { reason: string } => ({ reason: `contents were compared: ${why}` });
  if (taken.begunAnew !== undefined) return compared(taken.begunAnew);
  const from = parseToken(newest.continuityToken);
  if (from === undefined) return compared(`version ${newest.number} is not of a snapshot of this volume`);
  if (from.uuid !== taken.uuid)
    return compared(`tracking was begun anew since version ${newest.number}, which is of series ${from.uuid}`);
  if (from.sequenceId >= taken.sequenceId)
    return compared(`version ${newest.number} is of snapshot ${from.sequenceId}, and this is ${taken.sequenceId}`);
  if (newest.sizeBytes !== places.sizeBytes) return compared(`the volume had ${newest.sizeBytes} bytes`);
  if (whole && !newest.whole) return compared(`version ${newest.number} has no unused blocks`);
  try {
    const candidates = changedBetween(places, from, taken.sequenceId);
    // They hold what an older version had there: as good as changed.
    addByteRanges(candidates, newest.skipped);
    return { candidates, reason: `the driver lists what changed since version ${newest.number}` };
  } catch (error) {
    const other = from.sequenceId + 1 < taken.sequenceId ? '; another repository has had it, or a run was cut off' : '';
    return compared(`${messageOf(error)}${other}`);
  }
}
