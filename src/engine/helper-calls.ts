/**
 * What helpers can be asked to do: names, parameters, results. A helper runs one call at a time. `fuseFd` and `memoryFd` are
 * descriptors of the keeper, of which the helper takes a duplicate for the length of the call.
 */

import type { FileExtent } from '../sys/fsfile.js';
import type { HookEnd, HookOrder } from '../sys/hook.js';
import type { MountIdentity } from '../sys/mounts.js';

export interface StoreFile {
  /** Real path as this mount namespace sees it. */
  path: string;
  /** Of its file system when it was made or found again: many have another number with each mount. */
  dev: number;
  ino: number;
  /**
   * Node of the volume that it lies on, whose number, or a partition's of it, is then that of its file system: an attached volume
   * keeps its node. Absent of a file elsewhere, whose file system is mounted for as long as it is in use.
   */
  on?: string;
}

export interface CreatedStore extends StoreFile {
  kind: 'origin' | 'device';
  sizeBytes: number;
  /** Of the volume's file system when the store lies on it: the mount point; else ''. */
  mountPoint: string;
  /** The directory of that file system which is mounted there: `/`, unless it is a bind mount. */
  root: string;
  /** Byte offset that FIEMAP's addresses of this file begin at on the volume (a partition's start). */
  startBytes: number;
}

export interface HelperCalls {
  mountFuse: { params: { target: string; fuseFd: number }; result: null };
  /** `lazy`: out of sight at once, gone when the last user goes. */
  umount: { params: { target: string; lazy: boolean }; result: null };
  bindLoop: {
    params: { target: string; readOnly: boolean; partitionScan: boolean; logicalSectorBytes: number };
    result: { node: string };
  };
  /** Only while it is bound to `target`. */
  releaseLoop: { params: { node: string; target: string }; result: null };
  /** After `releaseLoop` of one with openers: it stays when they have gone. */
  keepLoop: { params: { node: string; target: string }; result: null };
  /** EBUSY when the node is mounted or claimed; the other openers are looked up in /proc. */
  probeExclusive: { params: { node: string }; result: null };
  createStore: {
    params: {
      path: string;
      /** Node of the volume, and which device numbers are on it. */
      node: string;
      sizeBytes: number;
      indexBytes: number;
      onVolumeOnly: boolean;
      /** Nodes of all attached volumes: a store may lie on none of them but its own. */
      volumeNodes: string[];
    };
    result: CreatedStore;
  };
  /** A COW file elsewhere, that was there before: as it is now. A store may lie on no attached volume but its own. */
  findStore: { params: { path: string; volumeNodes: string[] }; result: StoreFile };
  /** The created file is somebody's now: until then it is removed when this helper's parent goes. */
  keepStore: { params: { file: StoreFile }; result: null };
  /** Whether that very file is still there. */
  isStore: { params: { file: StoreFile }; result: { present: boolean } };
  extents: { params: { file: StoreFile; sizeBytes: number }; result: { extents: FileExtent[] } };
  /** Writes 4096 random bytes at each offset and makes them durable; `nonces` are hex digests of them. */
  writeNonces: { params: { file: StoreFile; offsets: number[] }; result: { nonces: string[] } };
  eraseNonces: { params: { file: StoreFile; offsets: number[]; indexBytes: number }; result: null };
  setImmutable: { params: { file: StoreFile; immutable: boolean }; result: { supported: boolean } };
  /** Clears the attribute of a file of an unmounted volume, by a private mount. */
  clearImmutableUnmounted: {
    params: { node: string; fsType: string; pathInside: string; file: StoreFile };
    result: null;
  };
  unlinkStore: { params: { file: StoreFile }; result: null };
  /** `immutable`: the attribute is set afterwards; only a store on the volume itself can bear it. */
  truncateStore: { params: { file: StoreFile; lengthBytes: number; immutable: boolean }; result: null };
  growStore: {
    params: { file: StoreFile; fromBytes: number; toBytes: number; reservedBytes: number; immutable: boolean };
    result: null;
  };
  /** Writes header and index of a store that is no longer in use through the file system, durably, and compares. */
  closeStore: {
    params: {
      file: StoreFile;
      memoryFd: number;
      mapOffset: number;
      blockCount: number;
      dataOffsetBytes: number;
      header: string;
    };
    result: null;
  };
  /** Sets a bit for each block that is free as a whole. `mapOffset`: of the map in the memory. */
  mapFree: {
    params: {
      memoryFd: number;
      mapOffset: number;
      mapBytes: number;
      blockCount: number;
      fileSystems: Array<{ mountPoint: string; startBytes: number; mount?: MountIdentity }>;
    };
    result: { blocks: number; durationMs: number };
  };
  /** Runs a command with a time limit; `end` says in words how it ended. */
  runHook: {
    params: HookOrder;
    result: HookEnd;
  };
  /** Opens and syncs the mounts, so that the freeze itself is short. */
  prepareFreeze: {
    /**
     * `mounts`: those that the mount points are to lead to, in their order. `gates`: memory of the volumes concerned; they are opened
     * before a thaw that nobody asked for.
     */
    params: { mountPoints: string[]; mounts?: MountIdentity[]; gates: Array<{ memoryFd: number }> };
    result: null;
  };
  freeze: { params: Record<string, never>; result: { frozenByOthers: boolean } };
  thaw: { params: Record<string, never>; result: null };
  /** Thaws what a helper that died had frozen. What is not frozen any more is passed over; `thawed`: how many were. */
  thawAfterDeath: { params: { mountPoints: string[] }; result: { thawed: number } };
}

/** How far a helper is with one of the mount points that it freezes; `notOurs`: thawed, not frozen, or by somebody else. */
export const FREEZE_STEPS = ['freezing', 'frozen', 'notOurs'] as const;
export type FreezeStep = (typeof FREEZE_STEPS)[number];

export type HelperCall = keyof HelperCalls;
