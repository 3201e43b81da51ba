/**
 * Follows mounts and umounts of tracked volumes, and failures.
 *
 * This is bookkeeping only: marking and saving never depend on it. After an umount the COW file is made clean; at a mount
 * the file's extents are taken again and compared with those in use; a reloaded series is verified at its first read-write
 * mount. `info` looks itself at the moment of the call.
 */
import { codeOf, messageOf } from '../sys/errors.js';
import { allMounts, isReachable, type MountEntry } from '../sys/mounts.js';
import { HeaderState, Word } from '../tracer/layout.js';
import { dropTrust, makeClean } from './cleaning.js';
import { type EngineContext, withHelper } from './context.js';
import { mountsOn, partAt, storeMount } from './lookup.js';
import { currentState, isActive, openSnapshotDevice, RAW, saveRecord, type Tracked } from './tracking.js';
import { lookForStore, type Moved } from './whereabouts.js';

const ENOENT = 2;
const EINVAL = 22;
const EUCLEAN = 117;
/** Before a file is said to be gone or moved. */
const LOOKS = 2;
const FILL_MARKS = [95, 80] as const;
/** A name that somebody else has, or no loop device that is free: not five times a second. */
const DEVICE_AGAIN_MS = 2_000;
/** Between two attempts to look at a COW file; doubled up to the longest. */
const UNSEEN_MS_MIN = 1_000;
const UNSEEN_MS_MAX = 60_000;

/** One look at everything that is tracked. Under the engine's lock. */
export class Watch {
  readonly #context: EngineContext;
  /** Volumes that were active at the last look. */
  readonly #active = new Set<string>();
  /** States by volume and series, as they were reported last. */
  readonly #states = new Map<string, string>();
  readonly #reportedFailures = new Map<string, number>();
  readonly #reportedFill = new Map<string, number>();
  /** Of volumes that could not be looked at, why, as it was reported last. */
  readonly #reportedProblems = new Map<string, string>();
  /** Stores that could not be looked at: why, and when the next attempt is. */
  readonly #unseen = new Map<string, { againMs: number; pauseMs: number; message: string }>();
  /** When a snapshot's device that could not be made is tried again. */
  readonly #deviceAgainMs = new Map<string, number>();

  constructor(context: EngineContext) {
    this.#context = context;
  }

  async look(): Promise<void> {
    const targets = this.#tracked();
    if (targets.length === 0) return;
    const mounts = allMounts();
    for (const target of targets) {
      const { id, name } = target.volume.record;
      try {
        await this.#lookAt(target, mounts);
        this.#reportedProblems.delete(id);
      } catch (error) {
        // Of this volume alone: the others, and the operations that end it, go on.
        const message = `${name}: ${messageOf(error)}`;
        if (this.#reportedProblems.get(id) === message) continue;
        this.#reportedProblems.set(id, message);
        this.#context.emit({ event: 'watch.failed', level: 'error', message });
      }
    }
  }

  #tracked(): Tracked[] {
    const found: Tracked[] = [];
    for (const volume of this.#context.volumes.values()) {
      const { snapshot } = volume.record;
      if (snapshot !== null) found.push({ volume, snapshot });
    }
    return found;
  }

  async #lookAt(target: Tracked, mounts: readonly MountEntry[]): Promise<void> {
    const { volume, snapshot } = target;
    const active = isActive(volume, snapshot, mounts);
    const key = `${volume.record.id} ${snapshot.uuid} ${snapshot.sequenceId}`;
    let isSeen = true;
    if (active && snapshot.unverified && volume.memory.get(Word.FAILED) === 0) await this.#verify(target, mounts, key);
    else if (active && !this.#active.has(key) && snapshot.fsType !== RAW)
      isSeen = await this.#compareExtents(target, mounts, key);
    if (active && isSeen) this.#active.add(key);
    else if (!active) {
      this.#active.delete(key);
      this.#unseen.delete(key);
      // A reloaded series too: what was marked since the reload belongs to it, verified at a mount or not.
      const isDirty = volume.memory.get(Word.HEADER_STATE) !== HeaderState.CLEAN;
      if (snapshot.file.path !== '' && isDirty) await makeClean(this.#context, target);
    }
    await this.#completeDevice(target);
    this.#reportState(target, mounts);
    this.#report(target, key);
  }

  /** An engine that died between a switch and the device left the snapshot without one. */
  async #completeDevice(target: Tracked): Promise<void> {
    const { snapshot, volume } = target;
    if (volume.record.snapshot?.sequenceId !== snapshot.sequenceId) return;
    const wanted = snapshot.mode === 'snapshot' && !snapshot.unverified && volume.memory.get(Word.FAILED) === 0;
    if (!wanted || snapshot.device !== null) return;
    const key = `${volume.record.id} ${snapshot.sequenceId}`;
    if ((this.#deviceAgainMs.get(key) ?? 0) > Date.now()) return;
    this.#deviceAgainMs.set(key, Date.now() + DEVICE_AGAIN_MS);
    await openSnapshotDevice(this.#context, target);
    this.#deviceAgainMs.delete(key);
  }

  /** The first look at a series, and the first one of an engine, only takes note. */
  #reportState(target: Tracked, mounts: readonly MountEntry[]): void {
    const { volume, snapshot } = target;
    const to = currentState(target, mounts)
      .replace(/([A-Z])/g, ' $1')
      .toLowerCase();
    const key = `${volume.record.id} ${snapshot.uuid}`;
    const from = this.#states.get(key);
    this.#states.set(key, to);
    if (from === undefined || from === to) return;
    const { name } = volume.record;
    const message = `Minor ${snapshot.minor} (${name}) went from ${from} to ${to}`;
    this.#context.emit({
      event: 'state.changed',
      level: 'info',
      message,
      minor: snapshot.minor,
      volume: name,
      from,
      to,
    });
  }

  /** A reloaded series becomes active when its file is seen where it was expected. */
  async #verify(target: Tracked, mounts: readonly MountEntry[], key: string): Promise<void> {
    const { volume, snapshot } = target;
    if (snapshot.file.path === '') {
      const missing = await this.#isMissing(target, mounts);
      const errno = missing ? ENOENT : EINVAL;
      snapshot.failure = missing
        ? `${snapshot.cowFile} does not exist`
        : `${snapshot.cowFile} is not known to this machine's state directory, so nothing proves that its list of changes is whole`;
      volume.tracer.fail(errno);
      await saveRecord(this.#context, volume);
      return;
    }
    if (!(await this.#compareExtents(target, mounts, key)) || volume.memory.get(Word.FAILED) !== 0) return;
    snapshot.unverified = false;
    await saveRecord(this.#context, volume);
    if (snapshot.mode === 'snapshot') await openSnapshotDevice(this.#context, target);
  }

  async #isMissing({ volume, snapshot }: Tracked, mounts: readonly MountEntry[]): Promise<boolean> {
    const entries = mountsOn(volume.record.device.node, mounts).filter(
      (entry) => entry.pid === 0 && entry.root === '/' && isReachable(entry, mounts),
    );
    // Of a file that is not known it is not known either on which of the volume's file systems it is.
    for (const { mountPoint } of entries) {
      const file = { path: `${mountPoint}${snapshot.cowFile}`, dev: 0, ino: 0 };
      const error = await withHelper(this.#context, (helper) => helper.call('extents', { file, sizeBytes: 0 })).then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (error === undefined || !messageOf(error).includes('ENOENT')) return false;
    }
    return true;
  }

  /**
   * The store is written by address: the file must lie where it lay, and the snapshot fails on proof that it does not. False
   * where nobody can say now: the file system was unmounted while a helper was looking, or the helper could not look. That
   * is tried again, not at each look: one that hangs takes its time.
   */
  async #compareExtents(target: Tracked, mounts: readonly MountEntry[], key: string): Promise<boolean> {
    const { volume, snapshot } = target;
    if (snapshot.store.kind !== 'origin' || volume.memory.get(Word.FAILED) !== 0) return true;
    const { node } = volume.record.device;
    const mount = storeMount(node, snapshot.startBytes, mounts);
    // Mounted in another namespace only, or a part of it, or under another one: nobody here can look. Writes into the store are still noticed.
    // Not mounted at all, though another file system of the disk is: it was not seen yet.
    if (mount === undefined) return mounts.some(({ device }) => device === partAt(node, snapshot.startBytes)?.number);
    if ((this.#unseen.get(key)?.againMs ?? 0) > Date.now()) return false;
    const isStillThere = (): boolean => storeMount(node, snapshot.startBytes, allMounts())?.id === mount.id;
    const path = `${mount.mountPoint === '/' ? '' : mount.mountPoint}${snapshot.cowFile}`;
    for (let look = 1; ; look++) {
      try {
        const moved = await this.#lookForStore(target, path);
        this.#unseen.delete(key);
        if (moved === undefined) return true;
        // What was found at that path may have been another file system's.
        if (!isStillThere()) return false;
        // It may have been unmounted and mounted again meanwhile.
        if (look < LOOKS) continue;
        snapshot.failure = moved.reason;
        volume.tracer.fail(moved.errno);
        await saveRecord(this.#context, volume);
        return true;
      } catch (error) {
        if (isStillThere())
          this.#noteUnseen(key, `${volume.record.name}: ${path} could not be looked at: ${messageOf(error)}`);
        return false;
      }
    }
  }

  async #lookForStore({ volume, snapshot }: Tracked, path: string): Promise<Moved | undefined> {
    const file = { ...snapshot.file, path };
    const was = {
      sizeBytes: snapshot.store.placeCount * 4096,
      startBytes: snapshot.startBytes,
      volumeBytes: volume.record.opened.sizeBytes,
      extents: snapshot.store.extents,
    };
    const moved = await withHelper(this.#context, (helper) => lookForStore(helper, file, was));
    if (moved !== undefined || snapshot.file.path === path) return moved;
    snapshot.file = file;
    await saveRecord(this.#context, volume);
    return undefined;
  }

  #noteUnseen(key: string, message: string): void {
    const before = this.#unseen.get(key);
    const pauseMs = Math.min(UNSEEN_MS_MAX, (before?.pauseMs ?? UNSEEN_MS_MIN / 2) * 2);
    this.#unseen.set(key, { againMs: Date.now() + pauseMs, pauseMs, message });
    if (before?.message !== message) this.#context.emit({ event: 'watch.failed', level: 'error', message });
  }

  #report({ volume, snapshot }: Tracked, key: string): void {
    const failed = volume.memory.get(Word.FAILED);
    if (failed !== 0 && this.#reportedFailures.get(key) !== failed) {
      this.#reportedFailures.set(key, failed);
      dropTrust(this.#context, volume);
      if (snapshot.failure === '') snapshot.failure = describeFailure(failed);
      this.#context.emit({
        event: 'snapshot.failed',
        level: 'error',
        message: `Minor ${snapshot.minor} failed: ${snapshot.failure}`,
        minor: snapshot.minor,
        errno: failed,
        code: codeOf(failed),
      });
    }
    const slots = volume.memory.get(Word.SLOT_COUNT) >>> 0;
    if (snapshot.mode !== 'snapshot' || slots === 0) return;
    const percent = Math.floor(((volume.memory.get(Word.NEXT_SLOT) >>> 0) * 100) / slots);
    const mark = FILL_MARKS.find((candidate) => percent >= candidate) ?? 0;
    if (mark > (this.#reportedFill.get(key) ?? 0)) {
      this.#context.emit({
        event: 'store.fill',
        level: 'warning',
        message: `The COW file of minor ${snapshot.minor} is ${percent} % full`,
        minor: snapshot.minor,
        percent,
      });
    }
    this.#reportedFill.set(key, mark);
  }
}

/** The reasons that the write path itself has for failing a snapshot. */
function describeFailure(errno: number): string {
  if (errno === 27) return 'the COW file is full; the volume goes on, and changes go on being marked';
  if (errno === EUCLEAN) return 'something wrote into the COW file';
  return `saving old contents failed with ${codeOf(errno)}; the volume goes on, and changes go on being marked`;
}
