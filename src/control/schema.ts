/**
 * The control API: every operation's name, parameters and result, in one place for server, client and library.
 *
 * Transport (`server.ts`, `client.ts`): HTTP/1.1 over the unix socket `$COWBIRD_RUN_DIR/control.sock`, mode 0600 in a
 * directory of root's. `POST /v1/<operation>` with the parameters as JSON answers `{"result": …}` or `{"error": …}`;
 * `GET /v1/events` streams one JSON object a line. The major in the path changes only when an old client would be misled.
 */
import * as v from 'valibot';
import type {
  AttachedVolume,
  ChangesReport,
  DaemonStatus,
  DoctorReport,
  StatusDocument,
  TakenTogether,
  VolumeInfo,
} from '../engine/types.js';
import { AbsolutePath, VOLUME_NAME, WholeNumber } from '../sys/checks.js';

export type { EventInput } from '../engine/events.js';
export type {
  AttachedVolume,
  ChangesReport,
  DaemonStatus,
  DoctorCheck,
  DoctorReport,
  EventRecord,
  SnapshotStatus,
  StatusDocument,
  TakenTogether,
  VolumeInfo,
} from '../engine/types.js';

export const API_MAJOR = 1;

/**
 * Operations that the keeper answers itself. All others it hands to the engine as they came, unknown ones and unknown
 * parameters too: the engine checks them, and `daemon restart` brings it to the version on disk while the keeper stays.
 */
export const KEEPER_OPERATIONS = ['daemonStatus', 'daemonStop', 'daemonRestart', 'doctor'] as const;
/** Understood, with their meaning, under every major: so that no daemon is ever left that a newer command cannot end. */
export const MAJORLESS_OPERATIONS: ReadonlySet<string> = new Set(['ping', 'daemonStatus', 'daemonStop']);
/** Headers of every answer. */
export const VERSION_HEADER = 'cowbird-version';
export const MAJOR_HEADER = 'cowbird-api-major';

const Minor = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(255));
const NO_NUL = 'a name has no NUL character';
/** The volume's node, its link, the origin, or (for detach) its name. */
const VolumeReference = v.pipe(v.string(), v.minLength(1), v.excludes('\0', NO_NUL), v.maxLength(4095));
/** As `VolumeReference`; what an empty one is answered with is the engine's, as the peer's users know it. */
const Device = v.pipe(v.string(), v.excludes('\0', NO_NUL));
/** Which family of extra device links a snapshot gets beside `/dev/cowbird<minor>`. */
const DeviceAlias = v.picklist(['datto', 'elastio-snap']);

const SETUP = {
  device: Device,
  cowFile: AbsolutePath,
  minor: Minor,
  cacheBytes: v.optional(WholeNumber),
  storeBytes: v.optional(WholeNumber),
  /** dbdctl's rule: a store that is not on the volume itself is EINVAL. */
  onVolumeOnly: v.optional(v.boolean()),
  alias: v.optional(DeviceAlias),
  /** elioctl's `-i`: accepted and reported; reads of a failed snapshot give EIO all the same (I2). */
  ignoreErrors: v.optional(v.boolean()),
  /** Blocks that are free at T0 are not saved, and read as zeros. */
  freeAware: v.optional(v.boolean()),
} as const;
const NEXT = {
  minor: Minor,
  cowFile: AbsolutePath,
  storeBytes: v.optional(WholeNumber),
  onVolumeOnly: v.optional(v.boolean()),
  freeAware: v.optional(v.boolean()),
} as const;
/** Run by the daemon as root, by `sh -c`: who may call an operation is root already. */
const HookCommand = v.pipe(
  v.string(),
  v.minLength(1),
  v.excludes('\0', 'a command has no NUL character'),
  v.maxLength(4096),
);
const HOOKS = {
  preFreeze: v.optional(HookCommand),
  postThaw: v.optional(HookCommand),
  /** Of each of them. @default 30 */
  hookTimeoutSeconds: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(3600))),
} as const;
/** As many as there are minors. */
const severalOf = <T extends v.GenericSchema>(schema: T) => v.pipe(v.array(schema), v.minLength(1), v.maxLength(256));

/** Parameters of every operation that a client may call. All paths are absolute: the client resolves them. */
export const operations = {
  attach: v.strictObject({
    origin: AbsolutePath,
    name: v.optional(v.pipe(v.string(), v.regex(VOLUME_NAME))),
    workers: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(64))),
    readOnly: v.optional(v.boolean()),
    raw: v.optional(v.boolean()),
  }),
  detach: v.strictObject({ volume: VolumeReference }),
  list: v.strictObject({}),
  info: v.strictObject({ minor: v.optional(Minor) }),
  setupSnapshot: v.strictObject({ ...SETUP, ...HOOKS }),
  /** The first snapshots of several volumes, at one instant. */
  setupTogether: v.strictObject({ snapshots: severalOf(v.strictObject(SETUP)), ...HOOKS }),
  reloadSnapshot: v.strictObject({
    device: Device,
    /** Relative to the file system's root with a leading slash, as dattobd has it, or the store's full path elsewhere. */
    cowFile: AbsolutePath,
    minor: Minor,
    cacheBytes: v.optional(WholeNumber),
    alias: v.optional(DeviceAlias),
    ignoreErrors: v.optional(v.boolean()),
  }),
  reloadIncremental: v.strictObject({
    device: Device,
    cowFile: AbsolutePath,
    minor: Minor,
    cacheBytes: v.optional(WholeNumber),
    alias: v.optional(DeviceAlias),
    ignoreErrors: v.optional(v.boolean()),
  }),
  destroy: v.strictObject({ minor: Minor }),
  transitionToIncremental: v.strictObject({ minor: Minor }),
  transitionToSnapshot: v.strictObject({ ...NEXT, ...HOOKS }),
  /** The next snapshots of several series, at one instant. */
  transitionTogether: v.strictObject({ snapshots: severalOf(v.strictObject(NEXT)), ...HOOKS }),
  reconfigure: v.strictObject({ minor: Minor, cacheBytes: v.optional(WholeNumber) }),
  expandCowFile: v.strictObject({ minor: Minor, bytes: WholeNumber }),
  reconfigureAutoExpand: v.strictObject({
    minor: Minor,
    stepBytes: WholeNumber,
    reservedBytes: v.optional(WholeNumber),
  }),
  getFreeMinor: v.strictObject({}),
  /** Without `fromBlock` the whole list, or EFBIG where it is too long for one answer: then it is asked for in pages. */
  changes: v.strictObject({ minor: Minor, fromBlock: v.optional(WholeNumber) }),
  doctor: v.strictObject({}),
  daemonStatus: v.strictObject({}),
  daemonStop: v.strictObject({ force: v.optional(v.boolean()) }),
  /** Swaps the engine's process under the mounted volumes. */
  daemonRestart: v.strictObject({}),
} as const;

export type OperationName = keyof typeof operations;
export type OperationParams<N extends OperationName> = v.InferOutput<(typeof operations)[N]>;

export interface OperationResults {
  attach: AttachedVolume;
  detach: Record<string, never>;
  list: { volumes: VolumeInfo[] };
  info: StatusDocument;
  setupSnapshot: { device: string };
  setupTogether: TakenTogether;
  reloadSnapshot: Record<string, never>;
  reloadIncremental: Record<string, never>;
  destroy: Record<string, never>;
  transitionToIncremental: Record<string, never>;
  transitionToSnapshot: { device: string };
  transitionTogether: TakenTogether;
  reconfigure: Record<string, never>;
  expandCowFile: { storeBytes: number };
  reconfigureAutoExpand: Record<string, never>;
  getFreeMinor: { minor: number };
  changes: ChangesReport;
  doctor: DoctorReport;
  daemonStatus: DaemonStatus;
  daemonStop: Record<string, never>;
  daemonRestart: DaemonStatus;
}
