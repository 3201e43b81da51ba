/** What `info`, the status file and `changes` say: dattobd's fields, in its order, under its conditions. */
import { chmodSync, renameSync, writeFileSync } from 'node:fs';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { allMounts, type MountEntry } from '../sys/mounts.js';
import { BLOCK_BYTES, setRuns, Word } from '../tracer/layout.js';
import { VERSION } from '../version.js';
import type { EngineContext } from './context.js';
import { attachWarnings } from './doctor.js';
import { mountsOn } from './lookup.js';
import type { SnapshotRecord, VolumeRecord } from './records.js';
import { stateNumber } from './states.js';
import { isActive, tracked, usedBytes, type VolumeView } from './tracking.js';
import type { AttachedVolume, ChangesReport, SnapshotStatus, StatusDocument, VolumeInfo } from './types.js';

const MIB = 1_048_576;

/** The status of everything that is tracked, ordered by minor. */
export function statusDocument(volumes: Iterable<VolumeView>, minor?: number): StatusDocument {
  const mounts = allMounts();
  const devices: SnapshotStatus[] = [];
  for (const volume of volumes) {
    const { snapshot } = volume.record;
    if (snapshot !== null && (minor === undefined || snapshot.minor === minor)) {
      devices.push(statusOf(volume, snapshot, mounts));
    }
  }
  if (minor !== undefined && devices.length === 0) {
    throw new CowbirdError('ENOENT', `Minor ${minor} is not in use: \`cowbird info\` shows which are`);
  }
  return { version: VERSION, devices: devices.sort((a, b) => a.minor - b.minor) };
}

function statusOf(volume: VolumeView, snapshot: SnapshotRecord, mounts: readonly MountEntry[]): SnapshotStatus {
  const failed = volume.memory.get(Word.FAILED);
  const verified = snapshot.unverified
    ? {}
    : {
        fallocate: snapshot.fallocateBytes,
        cow_size_current: snapshot.mode === 'incremental' ? dataOffsetBytes(volume.blockCount) : snapshot.storeBytes,
        cow_used: usedBytes(volume, snapshot),
        seq_id: snapshot.sequenceId,
        uuid: snapshot.uuid,
        version: 1,
        nr_changed_blocks: volume.memory.get(Word.CHANGED) >>> 0,
        ...(snapshot.autoExpand === null
          ? {}
          : {
              auto_expand: {
                step_size_mib: Math.floor(snapshot.autoExpand.stepBytes / MIB),
                reserved_space_mib: Math.floor(snapshot.autoExpand.reservedBytes / MIB),
              },
            }),
      };
  return {
    minor: snapshot.minor,
    cow_file: snapshot.cowFile,
    block_device: volume.record.device.node,
    max_cache: snapshot.cacheBytes,
    ...verified,
    ...(snapshot.ignoreErrors ? { ignore_snap_errors: true } : {}),
    ...(failed === 0 ? {} : { error: -failed, error_reason: snapshot.failure }),
    state: stateNumber({
      mode: snapshot.mode,
      unverified: snapshot.unverified,
      active: isActive(volume, snapshot, mounts),
      failed: failed !== 0,
    }),
    ...(snapshot.freeAware === true && snapshot.mode === 'snapshot'
      ? { free_aware: true, free_blocks: volume.memory.get(Word.FREE_BLOCKS) >>> 0 }
      : {}),
  };
}

/** Writes the status file aside and renames it, so that every open finds whole JSON. */
export class StatusFile {
  readonly #context: EngineContext;
  #last = '';

  constructor(context: EngineContext) {
    this.#context = context;
  }

  update(): void {
    const text = `${JSON.stringify(statusDocument(this.#context.volumes.values()), null, '\t')}\n`;
    if (text === this.#last) return;
    const path = this.#context.paths.info;
    const aside = `${path}.new`;
    writeFileSync(aside, text, { mode: 0o444 });
    chmodSync(aside, 0o444);
    renameSync(aside, path);
    this.#last = text;
  }
}

/** The change map as byte extents. */
export function changesReport(context: EngineContext, minor: number): ChangesReport {
  const { volume, snapshot } = tracked(context, minor);
  if (snapshot.unverified) {
    throw new CowbirdError('EINVAL', `Minor ${minor} is not verified yet: mount ${volume.record.device.node} first`);
  }
  const { sizeBytes } = volume.record.opened;
  const extents: ChangesReport['extents'] = [];
  let blocks = 0;
  let bytes = 0;
  for (const run of setRuns(volume.memory.map, volume.blockCount)) {
    const offset = run.firstBlock * BLOCK_BYTES;
    const length = Math.min(run.blockCount * BLOCK_BYTES, sizeBytes - offset);
    extents.push({ offset, length });
    blocks += run.blockCount;
    bytes += length;
  }
  return {
    minor,
    uuid: snapshot.uuid,
    seq_id: snapshot.sequenceId,
    block_size: BLOCK_BYTES,
    nr_changed_blocks: blocks,
    bytes,
    extents,
  };
}

/** What `list` says of a volume. */
export function describeVolume(record: VolumeRecord): VolumeInfo {
  const mounts = mountsOn(record.device.node);
  return {
    name: record.name,
    device: record.device.node,
    link: record.device.links[0] ?? '',
    origin: record.origin,
    sizeBytes: record.opened.sizeBytes,
    readOnly: record.opened.readOnly,
    logicalSectorBytes: record.opened.logicalSectorBytes,
    workers: record.workers,
    mounted: mounts.map((entry) => entry.mountPoint),
    minor: record.snapshot?.minor ?? null,
    mode: record.snapshot === null ? 'passthrough' : record.snapshot.mode,
  };
}

/** As {@link describeVolume}, with what the volume lacks on this machine. */
export function describeAttached(record: VolumeRecord): AttachedVolume {
  return { ...describeVolume(record), warnings: attachWarnings() };
}
