/**
 * One backup with engine `live`: of a disk that Cowbird was never attached to, while it is in use.
 *
 * Order of effects:
 *
 *   1. tracking goes on from the newest version's token, or is begun anew; from here on every write is in the map
 *   2. the first take; the used blocks; the passes, into the repository, where they do not count yet
 *   3. the freeze with the last take and the last reads, the thaw (live-source.ts)
 *   4. the repository commits the version, with the token of what the map has from the freeze on
 *   5. the tracking is told; what was taken is forgotten
 *
 * Killed or failed before 4: no version, and what was taken counts again. Between 4 and 5: the next run's token tells that the
 * version was made. The kernel goes on tracking in any case.
 */
import { closeSync, fstatSync, statSync } from 'node:fs';
import * as v from 'valibot';
import { pathsFrom } from '../control/paths.js';
import { viewOf } from '../live/device-view.js';
import { type FreezePoint, Freezer } from '../live/freezer.js';
import type { Standstill } from '../live/standstill.js';
import { BlockBitmap, type ContinuityToken, type LiveTracking, openTracking, startTracking } from '../live/tracking.js';
import { addByteRanges, makeBits } from '../repository/bits.js';
import { regionCount } from '../repository/layout.js';
import type { SourceIdentity, VersionRecord } from '../repository/manifest.js';
import type { BackupSource } from '../repository/source.js';
import { belowDisk } from '../sys/below.js';
import { deviceNumber } from '../sys/blkdev.js';
import { assert, CowbirdError, codeOf, errnoOfError } from '../sys/errors.js';
import { PageFile } from '../sys/page-file.js';
import { doubted, LivePasses } from './live-source.js';
import { type Survey, surveyDisk } from './live-survey.js';
import { contentOf, signatureOfNode } from './node-signature.js';
import { claimError, placeOfDevice, realPathOf } from './scan-source.js';
import type { Hooks } from './snapshots.js';

export const FREEZE_TIMEOUT_SECONDS = 5;
const FREEZE_TIMEOUT_SECONDS_MAX = 60;
export const HOOK_TIMEOUT_SECONDS = 30;
const HOOK_TIMEOUT_SECONDS_MAX = 3600;
const TOKEN_PREFIX = 'live:';

const Token = v.strictObject({
  bootId: v.string(),
  device: v.string(),
  sizeBytes: v.number(),
  mapId: v.string(),
  user: v.string(),
  generation: v.number(),
  mark: v.string(),
});

/** What a live backup is told beside what every backup is. */
export interface LiveOptions {
  /** The freeze ends after this time whatever happens, and the backup fails then. @default 5 */
  freezeTimeoutSeconds?: number;
  /** Called while the file systems stand still, after all was read. It must not wait for them, nor give back a promise. */
  onFrozen?: () => void;
}

/** The token of a version as its manifest has it. */
export function encodeToken(token: ContinuityToken): string {
  return TOKEN_PREFIX + JSON.stringify(token);
}

/** Undefined for the token of another engine, or none. */
export function decodeToken(text: string | null | undefined): ContinuityToken | undefined {
  if (text?.startsWith(TOKEN_PREFIX) !== true) return undefined;
  try {
    return v.parse(Token, JSON.parse(text.slice(TOKEN_PREFIX.length)));
  } catch {
    // Of a later Cowbird: as good as none.
    return undefined;
  }
}

/** A disk in use, looked at and opened; nothing is changed yet. */
export class LiveDisk {
  readonly node: string;
  readonly identity: SourceIdentity;
  readonly #survey: Survey;

  private constructor(node: string, identity: SourceIdentity, survey: Survey) {
    this.node = node;
    this.identity = identity;
    this.#survey = survey;
  }

  /**
   * @throws {CowbirdError} ENOTBLK for what is no disk; ENOTSUP for a file system that cannot be frozen; EBUSY for a part in
   * use without a file system, where no hooks make that stand still; EINVAL for times that are none.
   */
  static open(source: string, options: LiveOptions & Hooks): LiveDisk {
    requireTimes(options);
    const node = realPathOf(source);
    const stats = statSync(node);
    if (!stats.isBlockDevice())
      throw new CowbirdError('ENOTBLK', `${source} is no block device: engine live is for disks and partitions in use`);
    const survey = orAskRoot(node, () => surveyDisk(node));
    try {
      const [claimed] = survey.claimed;
      if (claimed !== undefined && options.preFreeze === undefined)
        throw new CowbirdError(
          'EBUSY',
          `${claimed} is in use, and not by a file system that can be frozen (swap, RAID, LVM, a database): end that, back up the partitions one by one, or name a command that makes it stand still (--pre-freeze, --post-thaw)`,
        );
      const signature = orAskRoot(node, () => signatureOfNode(node));
      const identity: SourceIdentity = {
        kind: 'device',
        path: node,
        place: placeOfDevice(node, stats.rdev),
        content: contentOf(signature),
      };
      return new LiveDisk(node, identity, survey);
    } catch (error) {
      survey.close();
      throw error;
    }
  }

  /** Whether anybody uses it. */
  get isFree(): boolean {
    return this.#survey.isFree;
  }

  get sizeBytes(): number {
    return viewOf(this.node).sizeBytes;
  }

  get survey(): Survey {
    return this.#survey;
  }

  close(): void {
    this.#survey.close();
  }
}

/** What wants the disk to be opened, with an error for people where that is not allowed. */
function orAskRoot<T>(node: string, look: () => T): T {
  try {
    return look();
  } catch (error) {
    const code = codeOf(errnoOfError(error));
    if (error instanceof CowbirdError || !['EACCES', 'EPERM'].includes(code)) throw error;
    throw new CowbirdError(code, `${node} cannot be opened (${code}): a disk is backed up by root`, { cause: error });
  }
}

function requireTimes({ freezeTimeoutSeconds, hookTimeoutSeconds }: LiveOptions & Hooks): void {
  const times = [
    ['freeze-timeout', freezeTimeoutSeconds, FREEZE_TIMEOUT_SECONDS_MAX],
    ['hook-timeout', hookTimeoutSeconds, HOOK_TIMEOUT_SECONDS_MAX],
  ] as const;
  for (const [name, seconds, most] of times)
    if (seconds !== undefined && !(seconds > 0 && seconds <= most))
      throw new CowbirdError('EINVAL', `--${name} ${seconds} is not a number of seconds up to ${most}`);
}

export interface LiveRequest {
  disk: LiveDisk;
  /** The newest version of the repository. */
  newest: VersionRecord | undefined;
  /** The repository's real path: who tracks. */
  user: string;
  whole: boolean;
  options: LiveOptions & Hooks;
  env: NodeJS.ProcessEnv;
  /** Its own, or one for several disks: made with {@link startFreezer}. */
  standstill: Standstill;
}

/** A live source, ready to be read. */
export interface LiveSource {
  source: BackupSource;
  /** Why blocks are listed, or contents compared. */
  reason: string;
  token: string;
  passes: LivePasses;
  /** What is not as it should be, in words. */
  warnings: string[];
  /** The version is in the repository. */
  committed(): void;
  close(): void;
}

/** Begins or continues tracking, and opens the source. */
export function openLiveSource(request: LiveRequest): LiveSource {
  const { disk, newest, whole, options, standstill } = request;
  const { tracking, reason, isListed } = track(request);
  let file: PageFile | undefined;
  let passes: LivePasses | undefined;
  const close = (): void => {
    tracking.close();
    if (file !== undefined) closeSync(file.handle.fd);
    passes?.close();
  };
  try {
    file = openUncached(disk);
    const sizeBytes = file.sizeBytes();
    // L1: tracking is on; now the blocks in use, and only then the first read.
    const first = new BlockBitmap(tracking.blockCount, makeBits(regionCount(sizeBytes)).buffer);
    tracking.take(first);
    const { bits: used, problems } = whole ? { bits: undefined, problems: [] } : disk.survey.used(sizeBytes);
    passes = new LivePasses({
      path: disk.node,
      file,
      sizeBytes,
      tracking,
      standstill,
      used,
      requireFrozen: () => disk.survey.requireSame(),
      onFrozen: options.onFrozen,
    });
    // They hold what an older version had there: as good as changed.
    addByteRanges(first.bytes, newest?.skipped ?? []);
    const source: BackupSource = {
      sizeBytes,
      identity: disk.identity,
      file,
      used,
      candidates: isListed ? first.bytes : undefined,
      nextPass: passes.nextPass,
      instant: () => {
        const instant = passes?.instant;
        assert(instant !== undefined, 'the passes end with a freeze');
        return instant;
      },
      confirm: () => {
        const doubt = tracking.doubt();
        if (doubt !== undefined) throw doubted(disk.node, doubt);
      },
    };
    return {
      source,
      reason,
      token: encodeToken(tracking.next),
      passes,
      warnings: problems,
      committed: () => void tracking.commit(),
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

interface Tracked {
  tracking: LiveTracking;
  reason: string;
  /** What it gives first is all that may differ from the newest version. */
  isListed: boolean;
}

/** Goes on with the newest version's tracking, or begins anew and says why. */
function track({ disk, newest, user, whole, env }: LiveRequest): Tracked {
  const { runDir } = pathsFrom(env);
  const token = decodeToken(newest?.continuityToken);
  const anew = (why: string): Tracked => ({
    tracking: begin(disk, token?.user ?? user, runDir),
    reason: newest === undefined ? 'the disk is in use' : `contents were compared: ${why}`,
    isListed: false,
  });
  if (newest === undefined) return anew('');
  if (token === undefined) return anew(`version ${newest.number} was made by engine ${newest.engine}`);
  const opened = openTracking(disk.node, token.user, runDir, token);
  if ('reason' in opened) return anew(opened.reason);
  if (whole && !newest.whole) {
    const reason = `contents were compared: version ${newest.number} has no unused blocks`;
    return { tracking: opened, reason, isListed: false };
  }
  return { tracking: opened, reason: `the kernel lists what changed since version ${newest.number}`, isListed: true };
}

/** @throws {CowbirdError} ENOTSUP, with the way out. */
function begin(disk: LiveDisk, user: string, runDir: string): LiveTracking {
  try {
    return startTracking(disk.node, user, runDir);
  } catch (error) {
    if (!(error instanceof CowbirdError) || error.code !== 'ENOTSUP') throw error;
    throw new CowbirdError(
      'ENOTSUP',
      `${disk.node} is in use, and this machine cannot track its changes: ${error.message}. \`cowbird doctor\` shows what is missing; unmounted it can be backed up by engine scan, attached by engine driver`,
      { cause: error },
    );
  }
}

function openUncached({ node, isFree }: LiveDisk): PageFile {
  try {
    return PageFile.openUncached(node, isFree);
  } catch (error) {
    throw claimError(node, error, 'try again', statSync(node).rdev);
  }
}

/**
 * A disk that stands on a file of another one before that one: frozen, the lower one would hold up the upper one's last writes.
 * What is below the upper one is all that is below the lower one, and more.
 */
function topFirst(disks: readonly LiveDisk[]): LiveDisk[] {
  const depthOf = new Map(
    disks.map((disk) => {
      const number = deviceNumber(statSync(disk.node).rdev);
      return [disk, belowDisk(number, { withFiles: false }).numbers.size] as const;
    }),
  );
  return [...disks].sort((a, b) => (depthOf.get(b) ?? 0) - (depthOf.get(a) ?? 0));
}

/** What freezes all file systems on all of these disks. The caller closes it before the disks. */
export async function startFreezer(disks: readonly LiveDisk[], options: LiveOptions & Hooks): Promise<Freezer> {
  // A disk and its partition, or two disks of one file system: what is frozen cannot be frozen again.
  const points = new Map<number, FreezePoint>();
  for (const { survey } of topFirst(disks))
    for (const point of survey.points) points.set(fstatSync(point.fd).dev, point);
  return Freezer.start([...points.values()], {
    timeoutMs: (options.freezeTimeoutSeconds ?? FREEZE_TIMEOUT_SECONDS) * 1000,
    preFreeze: options.preFreeze,
    postThaw: options.postThaw,
    hookTimeoutMs: (options.hookTimeoutSeconds ?? HOOK_TIMEOUT_SECONDS) * 1000,
    environment: { COWBIRD_DEVICES: disks.map(({ node }) => node).join(' ') },
  });
}
