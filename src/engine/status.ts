/** What `info` and the status file say: dattobd's fields, in its order, under its conditions. */
import { chmodSync, renameSync, writeFileSync } from 'node:fs';
import { dataOffsetBytes } from '../cow/geometry.js';
import { CowbirdError } from '../sys/errors.js';
import { allMounts, type MountEntry } from '../sys/mounts.js';
import { Word } from '../tracer/layout.js';
import { VERSION } from '../version.js';
import type { EngineContext } from './context.js';
import { attachWarnings } from './doctor.js';
import { mountsOn } from './lookup.js';
import type { SnapshotRecord, VolumeRecord } from './records.js';
import { stateNumber } from './states.js';
import { isActive, usedBytes, type VolumeView } from './tracking.js';
import type { AttachedVolume, SnapshotStatus, StatusDocument, VolumeInfo } from './types.js';

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
