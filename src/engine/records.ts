/**
 * What the keeper remembers for the engine: plain data from which a new engine goes on where a dead one was. The hot state
 * (maps, index, store position, mode) lies in the volume's memory file; this is what changes with operations only.
 */
import type { StoreConfig } from '../tracer/store-map.js';
import type { Switch } from '../tracer/switches.js';
import type { StoreFile } from './helper-calls.js';

/** Descriptors are numbers in the keeper. */
export interface OpenedOrigin {
  originFd: number;
  memoryFd: number;
  sizeBytes: number;
  logicalSectorBytes: number;
  isFile: boolean;
  readOnly: boolean;
}

export interface DeviceRecord {
  /** Session id, and base name of the FUSE file. */
  id: string;
  fuseFd: number;
  target: string;
  /** Empty until the loop device is bound. */
  node: string;
  links: string[];
}

export interface AutoExpand {
  stepBytes: number;
  reservedBytes: number;
}

export interface SnapshotRecord {
  minor: number;
  uuid: string;
  sequenceId: number;
  mode: 'incremental' | 'snapshot';
  /** As the status shows it: from the file system's root, or the full path of a store elsewhere. */
  cowFile: string;
  file: StoreFile;
  store: StoreConfig;
  /** Descriptor in the keeper of a store of its own. */
  storeFd: number | null;
  storeBytes: number;
  /** Start on the volume of the partition that holds the store's file system; 0 for a whole-disk file system. */
  startBytes: number;
  fsType: string;
  /** As given at setup, for the status; 0 once dormant or incremental. */
  fallocateBytes: number;
  cacheBytes: number;
  autoExpand: AutoExpand | null;
  alias: 'datto' | 'elastio-snap' | null;
  ignoreErrors: boolean;
  /** Blocks that were free at T0 are not saved and read as zeros; absent is no. */
  freeAware?: boolean;
  /** Those blocks, as the state directory has them; absent until they are there. */
  free?: FreeBlocks;
  /** After a reload until its file has been seen through a mounted file system. */
  unverified: boolean;
  /** Why it failed, in words. */
  failure: string;
  device: DeviceRecord | null;
}

/** What proves that a file of free blocks is the one that belongs to a snapshot. */
export interface FreeBlocks {
  blocks: number;
  sha256: string;
}

/** An operation in the middle; see `pending.ts`. */
export interface PendingOperation {
  /** Of the call that asked for it; 0 for the engine's own. */
  requestId: number;
  /** What undoing it takes while nothing has switched. */
  undo:
    | { kind: 'unlink'; file: StoreFile }
    | { kind: 'truncate'; file: StoreFile; lengthBytes: number; immutable: boolean }
    | null;
  /** Null until everything for the switch is ready. */
  change: Switch | null;
  /** The record before, and the one that the switch makes current. */
  old: SnapshotRecord | null;
  next: SnapshotRecord | null;
  /** Of an end: the COW file stays, removable. */
  leaveFile: boolean;
  /**
   * Ids of all volumes of the operation, in the order in which they were named; absent for one on a single volume. They
   * switch at one instant, and are finished or undone all of them.
   */
  together?: string[];
  /** To be run once the file systems are thawed, whatever becomes of the operation; taken away when it has run. */
  postThaw?: HookCall;
}

/** A command of the administrator's around a freeze. */
export interface HookCall {
  command: string;
  timeoutSeconds: number;
  /** What it is told of, in its environment. */
  minors: number[];
  volumes: string[];
}

export interface VolumeRecord {
  id: string;
  name: string;
  origin: string;
  /** Attached as raw bytes, whatever it begins like. */
  raw: boolean;
  opened: OpenedOrigin;
  workers: number;
  device: DeviceRecord;
  snapshot: SnapshotRecord | null;
  pending: PendingOperation | null;
  /** The volume is being taken down; `forget`: it is not to be attached again at the next start. */
  detaching: { requestId: number; forget: boolean } | null;
}

/** What of a series outlives the daemon: written to the state directory at each step of its life. */
export interface SavedSeries {
  format: 1;
  origin: string;
  sizeBytes: number;
  uuid: string;
  sequenceId: number;
  mode: 'incremental' | 'snapshot';
  cowFile: string;
  file: StoreFile;
  store: StoreConfig;
  storeBytes: number;
  startBytes: number;
  fsType: string;
  nextSlot: number;
  cacheBytes: number;
  /** Hex SHA-256 of the origin's superblocks as they were when the file became clean; empty when it never did. */
  fingerprint: string;
  /** Of a snapshot that knows free blocks, and of the incremental mode after it. */
  free?: FreeBlocks | undefined;
  /** Where on the origin its fingerprint was taken, in bytes, ascending, the first 0. @default [0] */
  starts?: number[] | undefined;
}

/** A volume as it is attached again at the next start. */
export interface SavedVolume {
  name: string;
  origin: string;
  workers: number;
  readOnly: boolean;
  raw: boolean;
}
