/**
 * The helper's part of a freeze, and its watchdog: whatever becomes of the engine, a file system is thawed in time.
 *
 * The freeze ends when the engine asks for it; when the parent goes; or after its time. Nobody asking means that the engine
 * is dead, or hangs with the gate of a volume closed: then writeback waits for the gate, and a thaw would wait for writeback.
 * So the gate is opened first, unless a switch is under way in it, whose end comes at once or with the engine's end.
 */
import { statSync } from 'node:fs';
import { errnoOfError } from '../sys/errors.js';
import { freeze, thaw } from '../sys/fsfile.js';
import * as libc from '../sys/libc.js';
import { coveredError, isOnMount, type MountIdentity } from '../sys/mounts.js';
import { Gate, Word } from '../tracer/layout.js';
import type { FreezeStep, HelperCalls } from './helper-calls.js';
import { withKeepers } from './helper-descriptors.js';

const EBUSY = 16;
const EINVAL = 22;
/** A freeze is ended after this time even if nobody asks for it. */
const FREEZE_MS_MAX = 5_000;
const CONTROL_BYTES = 4096;

interface Mount {
  mountPoint: string;
  fd: number;
}

const prepared: Mount[] = [];
const frozen: Mount[] = [];
const gates: Array<{ words: Int32Array; mapping: libc.Mapping }> = [];
let thawTimer: NodeJS.Timeout | undefined;

/** Opens and syncs the mounts, so that the freeze itself is short. */
export function prepareFreeze(params: HelperCalls['prepareFreeze']['params']): null {
  for (const { memoryFd } of params.gates) {
    const mapping = withKeepers(memoryFd, (fd) => libc.mapShared(fd, 0, CONTROL_BYTES));
    gates.push({ words: new Int32Array(mapping.bytes), mapping });
  }
  for (const [i, mountPoint] of params.mountPoints.entries()) {
    const fd = openMount(mountPoint, params.mounts?.[i]);
    prepared.push({ mountPoint, fd });
    libc.syncfs(fd);
  }
  return null;
}

/**
 * Opens a mount point, which may be a file.
 *
 * @throws {CowbirdError} EBUSY where it leads to another mount than the one that is wanted.
 */
export function openMount(mountPoint: string, wanted?: MountIdentity): number {
  const fd = libc.open(mountPoint, libc.O_RDONLY + (statSync(mountPoint).isDirectory() ? libc.O_DIRECTORY : 0));
  if (wanted === undefined || isOnMount(fd, wanted)) return fd;
  libc.close(fd);
  throw coveredError([mountPoint]);
}

let tell = (_mountPoint: string, _step: FreezeStep): void => undefined;

/**
 * Whom to tell of each step, before the next one is made: a call that hangs lets us say nothing any more, and somebody else has to
 * thaw what is frozen by then, and nothing else.
 */
export function onFreezeStep(listener: typeof tell): void {
  tell = listener;
}

export function freezePrepared(): { frozenByOthers: boolean } {
  let frozenByOthers = false;
  thawTimer = setTimeout(endLateFreeze, FREEZE_MS_MAX);
  try {
    for (const mount of prepared) if (!freezeOne(mount)) frozenByOthers = true;
  } catch (error) {
    thawAll();
    throw error;
  }
  return { frozenByOthers };
}

/** False for somebody else's freeze: the file system is as still as we need it, and not ours to thaw. */
function freezeOne(mount: Mount): boolean {
  tell(mount.mountPoint, 'freezing');
  try {
    freeze(mount.fd);
  } catch (error) {
    tell(mount.mountPoint, 'notOurs');
    if (errnoOfError(error) === EBUSY) return false;
    throw error;
  }
  frozen.push(mount);
  tell(mount.mountPoint, 'frozen');
  return true;
}

export function frozenCount(): number {
  return frozen.length;
}

/** Thaws everything that this helper froze, in reverse; returns how many were not frozen any more. */
export function thawAll(): number {
  clearTimeout(thawTimer);
  let failures = 0;
  for (let mount = frozen.pop(); mount !== undefined; mount = frozen.pop()) {
    try {
      thaw(mount.fd);
      tell(mount.mountPoint, 'notOurs');
    } catch (error) {
      if (errnoOfError(error) === EINVAL) tell(mount.mountPoint, 'notOurs');
      failures++;
    }
  }
  return failures;
}

/** Gives up what was prepared. Not while something is frozen. */
export function releasePrepared(): void {
  for (const { fd } of prepared.splice(0)) libc.close(fd);
  for (const { mapping } of gates.splice(0)) libc.unmap(mapping);
}

/** The end of a freeze that nobody asks for: the parent has gone. */
export function endFreeze(): void {
  if (frozen.length > 0) openGates();
  thawAll();
}

/** The end of a freeze that takes too long: the engine hangs. */
function endLateFreeze(): void {
  if (frozen.length === 0) return;
  openGates();
  // A switch takes microseconds: one that is still under way has an engine that will never end it. A thaw would wait for
  // writeback, and that for this gate. The engine's end brings ours, and a new engine makes the switch.
  if (gates.some(({ words }) => Atomics.load(words, Word.GATE) === Gate.SWITCHING)) reportHang();
  else thawAll();
}

function openGates(): void {
  for (const { words, mapping } of gates) {
    if (Atomics.compareExchange(words, Word.GATE, Gate.CLOSED, Gate.OPEN) === Gate.CLOSED)
      libc.futexWake(mapping.address + Word.GATE * 4, 0x7fff_ffff);
  }
}

let reportHang = (): void => undefined;

/** Whom to tell that the engine hangs within a switch. */
export function onHang(report: () => void): void {
  reportHang = report;
}

export function thawAfterDeath({ mountPoints }: HelperCalls['thawAfterDeath']['params']): { thawed: number } {
  let thawed = 0;
  for (const mountPoint of mountPoints) {
    const fd = openMount(mountPoint);
    try {
      thaw(fd);
      thawed++;
    } catch (error) {
      if (errnoOfError(error) !== EINVAL) throw error;
    } finally {
      libc.close(fd);
    }
  }
  return { thawed };
}
