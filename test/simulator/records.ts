/** What the simulated keeper and the simulated state directory hold: the shape of `src/engine/records.ts`, cut down. */

import type { StoreConfig } from '../../src/tracer/store-map.js';
import type { Switch } from '../../src/tracer/switches.js';
import type { SimDisk } from './disk.js';

export interface SnapshotRecord {
  readonly mode: 'snapshot' | 'incremental';
  readonly uuid: string;
  readonly sequenceId: number;
  readonly store: StoreConfig;
  /** The origin, or a disk of its own. */
  readonly disk: SimDisk;
  /** Its device can be read. */
  readonly isOpen: boolean;
}

export interface PendingOperation {
  readonly change: Switch | null;
  readonly old: SnapshotRecord | null;
  readonly next: SnapshotRecord | null;
}

/** Replaced as a whole, never changed: what the keeper was told stays. */
export interface VolumeRecord {
  readonly snapshot: SnapshotRecord | null;
  readonly pending: PendingOperation | null;
}

export interface SavedSeries {
  readonly mode: 'snapshot' | 'incremental';
  readonly uuid: string;
  readonly sequenceId: number;
  readonly store: StoreConfig;
  readonly disk: SimDisk;
  readonly nextSlot: number;
  /** Undefined while the COW file was never clean. */
  readonly fingerprint: Buffer | undefined;
}

export const NOTHING: VolumeRecord = { snapshot: null, pending: null };
