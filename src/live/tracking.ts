/**
 * What changes on a disk, as one user (one repository) sees it: the door to the tracker in the kernel.
 *
 * A version is made in this order:
 *
 *     tracking = openTracking(device, user, token of the newest version)   or startTracking(device, user) and a whole copy
 *     take(into), copy what is set in `into`, as often as needed           each `take` adds what changed since the one before
 *     freeze, take(into), doubt() === undefined, copy the rest, thaw
 *     the repository commits the version, with `tracking.next` in its manifest
 *     tracking.commit()
 *
 * A process that is killed anywhere in there loses nothing: {@link openTracking} compares the token of the newest version with
 * what it knows, and so finds out whether what was taken is in that version. `docs/live.md` has the order of effects.
 */
import type { BlockBitmap } from './bitmap.js';

export { BLOCK_BYTES, BlockBitmap } from './bitmap.js';
export { listTracking, openTracking, startTracking, stopTracking } from './tracker.js';

/** What one user needs to know to trust the map again. Stored, as JSON, with the version that it belongs to. */
export interface ContinuityToken {
  bootId: string;
  /** The disk with its sequence number (another medium or another backing file has another one), and where the partition begins. */
  device: string;
  sizeBytes: number;
  mapId: string;
  user: string;
  /** Counts the versions of this user since tracking started. */
  generation: number;
  /** Random, one for each attempt at a version: copies of one repository do not take each other's versions for their own. */
  mark: string;
}

/** Tracking of one disk or partition for one user. One process at a time has it; others get EBUSY. */
export interface LiveTracking {
  readonly sizeBytes: number;
  /** Blocks of 4096 bytes of the device itself (a partition's own, not the disk's), the last one rounded up. */
  readonly blockCount: number;
  /** Of the version that is the base: what the newest version of the repository has, or had none. */
  readonly token: ContinuityToken;
  /** Of the version that is being made: belongs into its manifest, before {@link commit}. */
  readonly next: ContinuityToken;
  /**
   * Adds to `into` every block that may have changed since the last `take`; the first one also gives what changed since
   * {@link token}'s version. What is being written now is added too, and stays to be added. Returns how many of them were not set in `into`. May be called while the file system is frozen: it
   * touches nothing but kernel memory and files on a tmpfs, and no lock that somebody holds who could wait for the file system.
   * `without`: writes that are known to be over, as {@link overNotes} gave them.
   */
  take(into: BlockBitmap, without?: ReadonlySet<string>): number;
  /**
   * Writes that were seen to begin and not to end, and are over: what they wrote is on the disk, and their notes stay until the kernel uses
   * their requests again. Empty while it is not sure of each that it is not under way. Waits some milliseconds where there are any.
   */
  overNotes(): ReadonlySet<string>;
  /**
   * Why the map cannot be trusted any more; undefined when it can. To be asked after the last `take` of a version, before the
   * file system is thawed or after. A doubt lasts: this tracking is of no use, and {@link startTracking} begins a new one.
   */
  doubt(): string | undefined;
  /** The version is safe in the repository: what was taken for it is forgotten. Returns the new {@link token}. */
  commit(): ContinuityToken;
  /** No version was made: what was taken counts again for the next one. */
  abandon(): void;
  /** Releases it; the kernel goes on tracking. Without `commit` before, this is like `abandon`. */
  close(): void;
}

/** Why continuity cannot be proved: a whole copy or a scan is needed, after {@link startTracking}. */
export interface LostTracking {
  reason: string;
}

/** One tracked view, as `cowbird tracking` shows it. */
export interface TrackingInfo {
  /** `/dev/sda1`; null when the device is not there any more. */
  device: string | null;
  user: string;
  /** ISO 8601, UTC: the start of tracking. */
  since: string;
  /** Blocks that changed since the last version, as far as known now. */
  changedBlocks: number;
  sizeBytes: number;
  /** Null when the map can be trusted. */
  doubt: string | null;
  /** A process is making a version with it now. */
  busy: boolean;
}
