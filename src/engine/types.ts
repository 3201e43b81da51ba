/** What the operations answer: shared by engine, control API, library and command line. */

/** One attached volume, as `cowbird list --json` prints it. */
export interface VolumeInfo {
  name: string;
  /** The device node, `/dev/loop3`. */
  device: string;
  /** The stable link, `/dev/cowbird/NAME`. */
  link: string;
  origin: string;
  sizeBytes: number;
  readOnly: boolean;
  logicalSectorBytes: number;
  workers: number;
  mounted: string[];
  /** Minor of the snapshot or incremental tracking on this volume, or null. */
  minor: number | null;
  mode: 'passthrough' | 'incremental' | 'snapshot';
}

/** A volume that was just attached, and what it lacks on this machine, in words. */
export interface AttachedVolume extends VolumeInfo {
  /** Daemons before 0.2 give none. */
  warnings?: string[];
}

/** One tracked volume: dattobd's `/proc/datto-info` entry, its fields in its order, `cow_used` added, ours at the end. */
export interface SnapshotStatus {
  minor: number;
  cow_file: string;
  block_device: string;
  max_cache: number;
  fallocate?: number;
  cow_size_current?: number;
  cow_used?: number;
  seq_id?: number;
  uuid?: string;
  version?: number;
  nr_changed_blocks?: number;
  auto_expand?: { step_size_mib: number; reserved_space_mib: number };
  ignore_snap_errors?: boolean;
  error?: number;
  /** Why the snapshot failed, in words; only beside `error`. */
  error_reason?: string;
  state: number;
  /** Blocks that were free at T0 read as zeros, and are not saved; only where it is so. */
  free_aware?: boolean;
  free_blocks?: number;
}

export interface StatusDocument {
  version: string;
  devices: SnapshotStatus[];
}

export interface ChangesReport {
  minor: number;
  uuid: string;
  seq_id: number;
  block_size: 4096;
  nr_changed_blocks: number;
  bytes: number;
  /** Byte ranges, ascending, cut at the end of the volume. */
  extents: Array<{ offset: number; length: number }>;
  /** Of one page of the list: where the next one begins; absent from the last one, and from a whole list. */
  next_block?: number;
}

/** What an operation on several volumes answers. */
export interface TakenTogether {
  /** In the order in which the volumes were named. */
  devices: string[];
  /** How long the writes of all volumes were held at once; null when the engine ended meanwhile. */
  windowMs: number | null;
  /** How long the file systems were frozen; null when the engine ended meanwhile. */
  freezeMs: number | null;
}

export interface DoctorCheck {
  name: string;
  status: 'ok' | 'warning' | 'missing';
  detail: string;
  /** What to do about it; absent when nothing is to be done. */
  fix?: string;
}

export interface DoctorReport {
  version: string;
  checks: DoctorCheck[];
}

export interface DaemonStatus {
  running: boolean;
  /** Of the keeper: it stays until the daemon is stopped. */
  version: string;
  /** Of the engine: `daemon restart` brings it to the version on disk. Absent from a daemon that does not tell. */
  engineVersion?: string | null;
  /** Why no engine runs, when the one on disk cannot be used. */
  engineProblem?: string | null;
  apiMajor: number;
  keeperPid: number;
  /** Null while the engine is being started again. */
  enginePid: number | null;
  /** False while it is being started, or waits for a device: then `list` and `info` are answered without it. */
  engineAnswers: boolean;
  uptimeSeconds: number;
  engineRestarts: number;
}

/** One line of `cowbird events --json`; `docs/events.md` has the names and fields. */
export interface EventRecord {
  /** RFC 3339. */
  time: string;
  /** `volume.attached`, `snapshot.failed`, `store.fill` … A newer daemon may have more of them. */
  event: string;
  level: 'info' | 'warning' | 'error';
  message: string;
  [field: string]: string | number | boolean | null;
}
