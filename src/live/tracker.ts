/**
 * The tracker: disks, users, and the moves of bits between them. See `tracking.ts` for what a user gets, `kernel-map.ts` for the
 * kernel's side, `user-set.ts` for the order of effects, `places.ts` for locks.
 */

import { closeSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { libbpfProblem } from '../sys/bpf.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { BLOCK_BYTES, BlockBitmap } from './bitmap.js';
import {
  type DeviceView,
  viewOf,
  viewOfNumber,
  whyNotContinued,
  whyUntrackable,
  writesUnderWay,
} from './device-view.js';
import { type Baseline, KernelMap } from './kernel-map.js';
import { addPage, DiskPlaces, distribute, pagesOf } from './moves.js';
import { pause } from './pause.js';
import {
  ensureBpffs,
  ensureTrackingFolder,
  INSTANCE_TIMEOUT_MS,
  isThere,
  pinFolder,
  removeEmptyPlaces,
  removePins,
  trackingFolder,
  tryLockFile,
  withLock,
} from './places.js';
import { changeOf, TrackingSession } from './session.js';
import { requireTracking } from './support.js';
import type { ContinuityToken, LiveTracking, LostTracking, TrackingInfo } from './tracking.js';
import { newMark, readState, UserSet, type UserState, visitPages } from './user-set.js';

/** How long writes that were under way when tracking starts are waited for, on disks where their range is not known. */
const DRAIN_MS = 2000;

/** Who only looks whether a user's lock is held has it for a moment. */
const LOOKED_AT_MS = 50;

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

function underInstanceLock<T>(runDir: string, action: () => T): T {
  mkdirSync(runDir, { recursive: true });
  return withLock(join(runDir, 'tracking.lock'), action, INSTANCE_TIMEOUT_MS);
}

function lockUser(folder: string, device: string, user: string): number {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, 'lock');
  const deadline = performance.now() + LOOKED_AT_MS;
  let fd = tryLockFile(path);
  while (fd === undefined && performance.now() < deadline) {
    pause(1);
    fd = tryLockFile(path);
  }
  if (fd === undefined)
    throw new CowbirdError('EBUSY', `Another process makes a version of ${device} for ${user}: wait until it is done`);
  return fd;
}

/**
 * Starts tracking of a disk or partition for a user, or starts it anew: whatever was known for this user is forgotten, and
 * every token of it is void. Other users of the disk keep theirs.
 *
 * @throws {CowbirdError} ENOTSUP with the reason where this machine or this disk cannot be tracked; EBUSY.
 */
export function startTracking(device: string, user: string, runDir: string): LiveTracking {
  const view = viewOf(device);
  requireTracking();
  const why = whyUntrackable(view);
  if (why !== undefined) throw new CowbirdError('ENOTSUP', `${device} cannot be tracked: ${why}`);
  return underInstanceLock(runDir, () => {
    ensureBpffs();
    ensureTrackingFolder(runDir);
    sweep(runDir);
    const places = new DiskPlaces(runDir, view.key);
    const number = numberOf(device);
    const folder = places.userFolder(user, number);
    const lockFd = lockUser(folder, device, user);
    let map: KernelMap | undefined;
    try {
      const made = withLock(places.lock, () => findOrMakeMap(places, view));
      map = made;
      // May wait for a quiet moment, and another user may be frozen: without the disk's lock. What comes after it can only be a doubt.
      const baseline = made.baseline();
      const set = withLock(places.lock, () => beginUser({ folder, map: made, places, view, number, user, baseline }));
      return new TrackingSession({ view, number, places, map: made, set, lockFd });
    } catch (error) {
      map?.close();
      closeSync(lockFd);
      throw error;
    }
  });
}

function beginUser(of: {
  folder: string;
  map: KernelMap;
  places: DiskPlaces;
  view: DeviceView;
  number: string;
  user: string;
  baseline: Baseline;
}): UserSet {
  const { folder, map, places, view, number, user, baseline } = of;
  // What changed before is no matter of this user.
  distribute(map, places);
  const state: UserState = {
    format: 1,
    user,
    bootId: bootId(),
    device: view.identity,
    number,
    startSector: view.startSector,
    sizeBytes: view.sizeBytes,
    mapId: map.mapId,
    since: new Date().toISOString(),
    baseline: [...baseline],
    generation: 0,
    mark: newMark(),
    attempt: newMark(),
  };
  return UserSet.create(folder, state, pagesOf(view), map.pageCount);
}

/** The disk's map; a new one where there is none that this version knows and that is the disk's as it is now. */
function findOrMakeMap(places: DiskPlaces, view: DeviceView): KernelMap {
  const found = KernelMap.open(places.pins);
  if (found instanceof KernelMap) {
    if (found.device === view.diskIdentity && found.diskBytes === view.diskBytes) return found;
    found.close();
  }
  removePins(places.pins);
  let map: KernelMap;
  try {
    map = KernelMap.create(places.pins, view);
  } catch (error) {
    removePins(places.pins);
    throw new CowbirdError('ENOTSUP', `The tracker could not be started on ${view.diskName}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  if (view.kind === 'bio') waitForDrain(view);
  return map;
}

/** Those that end later are counted, and are a doubt. */
function waitForDrain(view: DeviceView): void {
  const deadline = performance.now() + DRAIN_MS;
  while (writesUnderWay(view) > 0 && performance.now() < deadline) pause(1);
}

/**
 * Goes on where the version with this token ended; in words, why that cannot be.
 *
 * @throws {CowbirdError} EBUSY while another process has it.
 */
export function openTracking(
  device: string,
  user: string,
  runDir: string,
  token: ContinuityToken,
): LiveTracking | LostTracking {
  const view = viewOf(device);
  const change =
    token.bootId === bootId()
      ? (changeOf({ identity: token.device, sizeBytes: token.sizeBytes }, view) ?? whyNotContinued(view))
      : 'the machine was started anew since the last version';
  if (change !== undefined) return { reason: change };
  const problem = libbpfProblem();
  if (problem !== undefined) return { reason: problem };
  const places = new DiskPlaces(runDir, view.key);
  const number = numberOf(device);
  const folder = places.userFolder(user, number);
  if (!isThere(folder)) return { reason: `${device} is not tracked for ${user} any more` };
  const lockFd = lockUser(folder, device, user);
  try {
    const opened = withLock(places.lock, () => reopen(places, folder, view, token));
    if (!('reason' in opened)) return new TrackingSession({ view, number, places, ...opened, lockFd });
    closeSync(lockFd);
    return opened;
  } catch (error) {
    closeSync(lockFd);
    throw error;
  }
}

function reopen(
  places: DiskPlaces,
  folder: string,
  view: DeviceView,
  token: ContinuityToken,
): { map: KernelMap; set: UserSet } | LostTracking {
  const state = readState(folder);
  if (state === undefined) return { reason: `${view.node} is not tracked for ${token.user} any more` };
  const map = KernelMap.open(places.pins);
  if (!(map instanceof KernelMap)) return map;
  const doubt =
    state.mapId !== map.mapId || token.mapId !== map.mapId
      ? 'tracking was started anew since the last version'
      : token.mark !== state.mark && token.mark !== state.attempt
        ? 'the newest version was not made from what is tracked here (restored or copied repository?)'
        : map.diskBytes !== view.diskBytes
          ? `${view.diskName} was resized from ${map.diskBytes} to ${view.diskBytes} bytes`
          : map.doubtSince(state.baseline);
  if (doubt !== undefined) {
    map.close();
    return { reason: doubt };
  }
  try {
    return { map, set: UserSet.open(folder, state, pagesOf(view), map.pageCount, token.mark) };
  } catch (error) {
    map.close();
    throw error;
  }
}

function numberOf(device: string): string {
  return readFileSync(join('/sys/class/block', viewOf(device).node.slice('/dev/'.length), 'dev'), 'utf8').trim();
}

/** Starts tracking unless it is under way for this user and can be trusted. Returns whether it did. */
export function ensureTracked(device: string, user: string, runDir: string): boolean {
  const { node } = viewOf(device);
  const known = listTracking(runDir).some((one) => one.device === node && one.user === user && one.doubt === null);
  if (known) return false;
  startTracking(device, user, runDir).close();
  return true;
}

/**
 * Ends tracking of a device or partition for one user, or for all of them; the map goes with the disk's last user. Returns for
 * how many it was ended.
 *
 * @throws {CowbirdError} EBUSY when a version is being made.
 */
export function stopTracking(device: string, runDir: string, user?: string): number {
  const view = viewOf(device);
  if (!isThere(trackingFolder(runDir))) return 0;
  return underInstanceLock(runDir, () => {
    sweep(runDir);
    const places = new DiskPlaces(runDir, view.key);
    const number = numberOf(device);
    let ended = 0;
    withLock(places.lock, () => {
      for (const folder of userFolders(places)) {
        const state = stateOrNothing(folder);
        const isMeant = state === undefined || (state.number === number && (user === undefined || state.user === user));
        if (!isMeant) continue;
        closeSync(lockUser(folder, device, state?.user ?? 'an unknown user'));
        rmSync(folder, { recursive: true });
        if (state !== undefined) ended++;
      }
      removeIfUnused(places);
    });
    removeEmptyPlaces(runDir);
    return ended;
  });
}

function userFolders(places: DiskPlaces): string[] {
  return isThere(places.folder) ? readdirSync(places.folder).map((name) => join(places.folder, name)) : [];
}

/** A damaged one counts as none: what it was is not known. */
function stateOrNothing(folder: string): UserState | undefined {
  try {
    return readState(folder);
  } catch (error) {
    if (error instanceof CowbirdError) return undefined;
    throw error;
  }
}

function removeIfUnused(places: DiskPlaces): void {
  if (userFolders(places).length > 0) return;
  removePins(places.pins);
  rmSync(places.folder, { recursive: true, force: true });
}

/** Removes what belongs to disks that are gone, and maps without a user. Under the instance's lock. */
function sweep(runDir: string): void {
  for (const key of trackedKeys(runDir)) {
    const places = new DiskPlaces(runDir, key);
    withLock(places.lock, () => {
      if (viewOfNumber(key.split('_').slice(0, 2).join(':'))?.key !== key)
        for (const folder of userFolders(places)) {
          const fd = tryLockFile(join(folder, 'lock'));
          // Whoever has it will find out by itself.
          if (fd === undefined) continue;
          closeSync(fd);
          rmSync(folder, { recursive: true });
        }
      removeIfUnused(places);
    });
    if (!isThere(places.folder)) rmSync(places.lock, { force: true });
  }
}

function trackedKeys(runDir: string): string[] {
  const names = [trackingFolder(runDir), pinFolder(runDir)].filter(isThere).flatMap((folder) => readdirSync(folder));
  return [...new Set(names)].filter((name) => /^\d+_\d+_\d+$/.test(name));
}

/** Everything that is tracked, with what is known of it now. Takes nothing from anybody. */
export function listTracking(runDir: string): TrackingInfo[] {
  if (!isThere(trackingFolder(runDir))) return [];
  return trackedKeys(runDir).flatMap((key) => {
    const places = new DiskPlaces(runDir, key);
    const map = withLock(places.lock, () => openOrReason(places.pins));
    try {
      const found = withLock(places.lock, () => {
        if (map instanceof KernelMap) distribute(map, places);
        return userFolders(places).flatMap((folder) => {
          const state = stateOrNothing(folder);
          return state === undefined ? [] : [{ state, ...changedOf(folder, state, map) }];
        });
      });
      // A doubt may wait for a quiet moment, and a user may be frozen: without the disk's lock.
      return found.map(({ state, ...changed }) => infoOf(state, map, changed));
    } finally {
      if (map instanceof KernelMap) map.close();
    }
  });
}

function openOrReason(pins: string): KernelMap | LostTracking {
  try {
    return KernelMap.open(pins);
  } catch (error) {
    return { reason: messageOf(error) };
  }
}

type Changed = Pick<TrackingInfo, 'changedBlocks' | 'busy'>;

function changedOf(folder: string, state: UserState, map: KernelMap | LostTracking): Changed {
  const into = new BlockBitmap(Math.ceil(state.sizeBytes / BLOCK_BYTES));
  if (map instanceof KernelMap)
    visitPages(folder, map.pageCount, (page, bits) => {
      addPage(into, state, page, bits);
    });
  const fd = tryLockFile(join(folder, 'lock'));
  if (fd !== undefined) closeSync(fd);
  return { changedBlocks: into.count(), busy: fd === undefined };
}

function infoOf(state: UserState, map: KernelMap | LostTracking, changed: Changed): TrackingInfo {
  const now = viewOfNumber(state.number);
  const change = changeOf({ identity: state.device, sizeBytes: state.sizeBytes }, now);
  const doubt =
    change ??
    (now === undefined ? undefined : whyNotContinued(now)) ??
    (!(map instanceof KernelMap)
      ? map.reason
      : map.mapId === state.mapId
        ? map.doubtSince(state.baseline)
        : 'tracking was started anew since the last version');
  return {
    ...changed,
    device: change === undefined ? (now?.node ?? null) : null,
    user: state.user,
    since: state.since,
    sizeBytes: state.sizeBytes,
    doubt: doubt ?? null,
  };
}
