/**
 * The engine: every operation on volumes and snapshots, one at a time, over the pool of workers.
 *
 * It starts from what the keeper remembers: nothing on the first start, everything after a crash or an upgrade.
 */
import { rmSync } from 'node:fs';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { Word } from '../tracer/layout.js';
import { type AttachParams, attachVolume, detachVolume, removeVolume } from './attach.js';
import { changesReport } from './changes.js';
import { makeClean } from './cleaning.js';
import { attachedRecords, type EngineContext, type EnginePaths, Mutex } from './context.js';
import { abandonDevice } from './devices.js';
import { takeFailPoint } from './fail-points.js';
import { expandCowFile, growWhereLow, reconfigureAutoExpand } from './grow.js';
import type { HookParams } from './hooks.js';
import { IoErrors } from './io-errors.js';
import { mountsOn, refuseInUse } from './lookup.js';
import { Pool } from './pool.js';
import type { VolumeRecord } from './records.js';
import { type ReloadParams, reload } from './reload.js';
import { serveAgain, settleAll } from './resume.js';
import { loadAttached } from './saved-state.js';
import type { Keeper } from './services.js';
import type { Outcome } from './settling.js';
import { type SetupParams, setupSnapshot, setupTogether } from './setup.js';
import { describeVolume, StatusFile, statusDocument } from './status.js';
import { closeSnapshotDevice, DEFAULT_CACHE_BYTES, requireTransition, saveRecord, tracked } from './tracking.js';
import {
  destroy,
  type ToSnapshotParams,
  transitionTogether,
  transitionToIncremental,
  transitionToSnapshot,
} from './transitions.js';
import type { AttachedVolume, ChangesReport, StatusDocument, TakenTogether, VolumeInfo } from './types.js';
import type { Volume } from './volume.js';
import { Watch } from './watch.js';

const WATCH_MS = 200;
const LAST_MINOR = 255;
/** How long `info` waits for a look at the mounts that is under way. */
const LOOK_MS_MAX = 1_000;

export class Engine {
  readonly #context: EngineContext;
  readonly #mutex = new Mutex();
  readonly #watch: Watch;
  readonly #statusFile: StatusFile;
  #outcomes = new Map<number, Outcome>();
  #attention = false;
  #stopped = false;

  constructor(keeper: Keeper, paths: EnginePaths) {
    const ioErrors = new IoErrors((event) => this.#context.emit(event));
    const pool = new Pool({
      attention: (volumeId, cause) => this.#noticed(volumeId, cause),
      ioError: (error) => ioErrors.failed(error),
    });
    this.#context = {
      keeper,
      paths,
      pool,
      volumes: new Map(),
      stuck: [],
      emit: (event) => {
        keeper
          .call('event', event)
          .catch((error: unknown) => process.stderr.write(`event lost: ${messageOf(error)}\n`));
      },
    };
    this.#watch = new Watch(this.#context);
    this.#statusFile = new StatusFile(this.#context);
  }

  /**
   * Goes on with the volumes of the records, or attaches what was attached before the last end. Resolves when they are
   * served; what was cut off is settled under the lock, before the first operation.
   */
  async start(records: VolumeRecord[]): Promise<null> {
    if (records.length > 0) {
      takeFailPoint(this.#context.paths.runDir);
      const switched = await serveAgain(this.#context, records, () => this.#wakeWatch());
      this.#mutex
        .run(async () => {
          this.#outcomes = await settleAll(this.#context, switched);
          this.#statusFile.update();
        })
        .catch((error: unknown) =>
          this.#context.emit({ event: 'settle.failed', level: 'error', message: messageOf(error) }),
        );
    } else {
      await this.#attachSaved();
      this.#statusFile.update();
    }
    this.#watchForEver();
    return null;
  }

  /** What became of an operation that the end of the engine before cut off: waits until all of those are settled. */
  outcomeOf(requestId: number): Promise<Outcome> {
    return this.#mutex.run(async () => this.#outcomes.get(requestId) ?? { kind: 'undone' });
  }

  async #attachSaved(): Promise<void> {
    for (const saved of loadAttached(this.#context.paths.stateDir, this.#context.emit)) {
      try {
        await attachVolume(this.#context, saved, () => this.#wakeWatch());
      } catch (error) {
        this.#context.emit({
          event: 'volume.lost',
          level: 'error',
          message: `${saved.name} (${saved.origin}) was not attached again: ${messageOf(error)}`,
          volume: saved.name,
        });
      }
    }
  }

  /** Looks at mounts, failures and stores until the engine ends. */
  #watchForEver(): void {
    const turn = async (): Promise<void> => {
      this.#attention = false;
      const point = takeFailPoint(this.#context.paths.runDir);
      if (point !== undefined) this.#context.pool.armFailPoint(point);
      try {
        await this.#mutex.run(async () => {
          if (this.#stopped) return;
          await this.#watch.look();
          await growWhereLow(this.#context);
          this.#statusFile.update();
        });
      } catch (error) {
        this.#context.emit({ event: 'watch.failed', level: 'error', message: messageOf(error) });
      }
      if (!this.#stopped) setTimeout(() => void turn(), this.#attention ? 0 : WATCH_MS);
    };
    setTimeout(() => void turn(), WATCH_MS);
  }

  /** A worker saw something, and may know why. */
  #noticed(volumeId: string, cause: string | undefined): void {
    const snapshot = this.#context.volumes.get(volumeId)?.record.snapshot;
    if (cause !== undefined && snapshot != null && snapshot.failure === '') snapshot.failure = cause;
    this.#wakeWatch();
  }

  /** The next look comes at once. */
  #wakeWatch(): void {
    if (this.#attention) return;
    this.#attention = true;
    this.#mutex
      .run(async () => {
        await this.#watch.look();
        await growWhereLow(this.#context);
        this.#statusFile.update();
        this.#attention = false;
      })
      .catch((error: unknown) =>
        this.#context.emit({ event: 'watch.failed', level: 'error', message: messageOf(error) }),
      );
  }

  /**
   * An operation that takes snapshots. What was taken is looked at before it returns: a look that came afterwards, by itself, would have the
   * COW file open just when the caller goes on, who may unmount.
   */
  #take<T>(operation: () => Promise<T>): Promise<T> {
    return this.#change(async () => {
      try {
        return await operation();
      } finally {
        await this.#watch.look();
      }
    });
  }

  /** One changing operation at a time; the status file is right when it returns. */
  #change<T>(operation: () => Promise<T>): Promise<T> {
    return this.#mutex.run(async () => {
      try {
        await this.#watch.look();
        return await operation();
      } finally {
        this.#statusFile.update();
      }
    });
  }

  attach(params: AttachParams): Promise<AttachedVolume> {
    return this.#change(async () => {
      const { volume, attached } = await attachVolume(this.#context, params, () => this.#wakeWatch());
      this.#context.emit({
        event: 'volume.attached',
        level: 'info',
        message: `${volume.record.origin} is ${volume.record.device.node}`,
        volume: volume.record.name,
      });
      for (const message of attached.warnings ?? []) {
        this.#context.emit({ event: 'volume.warning', level: 'warning', message, volume: volume.record.name });
      }
      return attached;
    });
  }

  async detach(reference: string): Promise<Record<string, never>> {
    const name = await this.#change(() => detachVolume(this.#context, reference));
    this.#context.emit({ event: 'volume.detached', level: 'info', message: `${reference} is detached`, volume: name });
    return {};
  }

  async list(): Promise<{ volumes: VolumeInfo[] }> {
    return { volumes: [...this.#context.volumes.values()].map(({ record }) => describeVolume(record)) };
  }

  /** Right at the moment of the call: looks at the mounts itself. */
  async info(minor: number | undefined): Promise<StatusDocument> {
    const look = this.#mutex.run(() => this.#watch.look());
    await Promise.race([look, new Promise((resolve) => setTimeout(resolve, LOOK_MS_MAX))]);
    return statusDocument(this.#context.volumes.values(), minor);
  }

  setupSnapshot(params: SetupParams & HookParams): Promise<{ device: string }> {
    return this.#take(() => setupSnapshot(this.#context, params));
  }

  setupTogether(params: { snapshots: SetupParams[] } & HookParams): Promise<TakenTogether> {
    return this.#take(() => setupTogether(this.#context, params));
  }

  transitionTogether(params: { snapshots: ToSnapshotParams[] } & HookParams): Promise<TakenTogether> {
    return this.#take(() => transitionTogether(this.#context, params));
  }

  async reload(params: ReloadParams, mode: 'snapshot' | 'incremental'): Promise<Record<string, never>> {
    await this.#change(() => reload(this.#context, params, mode));
    return {};
  }

  async destroy(minor: number): Promise<Record<string, never>> {
    await this.#change(() => destroy(this.#context, minor));
    return {};
  }

  async transitionToIncremental(minor: number): Promise<Record<string, never>> {
    await this.#change(() => transitionToIncremental(this.#context, minor));
    return {};
  }

  transitionToSnapshot(params: ToSnapshotParams & HookParams): Promise<{ device: string }> {
    return this.#take(() => transitionToSnapshot(this.#context, params));
  }

  async reconfigure(minor: number, cacheBytes: number | undefined): Promise<Record<string, never>> {
    await this.#change(async () => {
      const target = tracked(this.#context, minor);
      requireTransition(target, 'reconfigure');
      target.snapshot.cacheBytes = cacheBytes === undefined || cacheBytes === 0 ? DEFAULT_CACHE_BYTES : cacheBytes;
      await saveRecord(this.#context, target.volume);
    });
    return {};
  }

  expandCowFile(minor: number, bytes: number): Promise<{ storeBytes: number }> {
    return this.#change(() => expandCowFile(this.#context, minor, bytes));
  }

  async reconfigureAutoExpand(minor: number, stepBytes: number, reservedBytes: number): Promise<Record<string, never>> {
    await this.#change(() => reconfigureAutoExpand(this.#context, minor, stepBytes, reservedBytes));
    return {};
  }

  async getFreeMinor(): Promise<{ minor: number }> {
    const used = new Set(attachedRecords(this.#context).map(({ snapshot }) => snapshot?.minor));
    for (let minor = 0; minor <= LAST_MINOR; minor++) if (!used.has(minor)) return { minor };
    throw new CowbirdError('ENOENT', 'All 256 minors are in use');
  }

  async changes(minor: number, fromBlock: number | undefined): Promise<ChangesReport> {
    return changesReport(this.#context, minor, fromBlock);
  }

  /** Makes every series dormant and clean, takes every device down. What was attached is attached again at the next start. */
  async stop(force: boolean): Promise<Record<string, never>> {
    await this.#mutex.run(async () => {
      const volumes = [...this.#context.volumes.values()];
      if (!force) {
        for (const volume of volumes) {
          const { snapshot } = volume.record;
          if (snapshot?.device != null) await refuseInUse(this.#context, snapshot.device.node);
          await refuseInUse(this.#context, volume.record.device.node);
        }
      }
      this.#stopped = true;
      try {
        for (const volume of volumes) await this.#stopVolume(volume, force);
      } catch (error) {
        this.#stopped = false;
        this.#watchForEver();
        throw error;
      }
      rmSync(this.#context.paths.info, { force: true });
    });
    return {};
  }

  async #stopVolume(volume: Volume, force: boolean): Promise<void> {
    const { snapshot } = volume.record;
    try {
      if (snapshot !== null) {
        await closeSnapshotDevice(this.#context, { volume, snapshot });
        if (snapshot.file.path !== '' && volume.memory.get(Word.FAILED) === 0) await this.#cleanForStop(volume);
      }
      await removeVolume(this.#context, volume, false);
    } catch (error) {
      if (!force) throw error;
      for (const device of [snapshot?.device, volume.record.device])
        if (device != null) await abandonDevice(this.#context, device);
      const where = mountsOn(volume.record.device.node).map((entry) => entry.mountPoint);
      this.#context.emit({
        event: 'volume.forced',
        level: 'error',
        message: `${volume.record.name} was ended while in use (${where.join(', ') || messageOf(error)}): it gives I/O errors from now on`,
        volume: volume.record.name,
        errno: errnoOfError(error),
      });
    }
  }

  async #cleanForStop(volume: Volume): Promise<void> {
    const { snapshot } = volume.record;
    if (snapshot === null) return;
    for (let attempt = 0; attempt < 5; attempt++) if (await makeClean(this.#context, { volume, snapshot })) return;
    this.#context.emit({
      event: 'snapshot.unclean',
      level: 'error',
      message: `Minor ${snapshot.minor} stays unclean: it was written until the end`,
      minor: snapshot.minor,
    });
  }
}
