/**
 * Every event of the daemon: its name, its fields, its levels, what it means, what to do. The one source of the types with which
 * events are emitted and of `docs/events.md`. Fields may be added; a name and a field that are here stay.
 */
import type { EventRecord } from './types.js';

interface FieldTypes {
  text: string;
  number: number;
  flag: boolean;
}

interface EventSpec {
  levels: ReadonlyArray<EventRecord['level']>;
  fields: Readonly<Record<string, keyof FieldTypes>>;
  meaning: string;
  /** What an administrator does about it; absent where nothing is to be done. */
  remedy?: string;
}

const INFO = ['info'] as const;
const WARNING = ['warning'] as const;
const ERROR = ['error'] as const;

export const EVENTS = {
  'daemon.started': { levels: INFO, fields: {}, meaning: 'The daemon serves its control socket.' },
  'daemon.stopped': { levels: INFO, fields: {}, meaning: 'The daemon ends, as it was told to.' },
  'daemon.refused': {
    levels: ERROR,
    fields: {},
    meaning: 'A SIGTERM was not followed, since a volume is in use.',
    remedy: 'Unmount the volumes first, or `cowbird daemon stop --force`.',
  },
  'engine.ended': {
    levels: ERROR,
    fields: {},
    meaning: 'The engine died; it is started again, and the volumes pause meanwhile.',
    remedy: 'Look for the cause in the log when it comes again and again.',
  },
  'engine.hangs': {
    levels: ERROR,
    fields: {},
    meaning: 'The engine hung while a file system was frozen, and was ended: the next one goes on.',
    remedy: 'Look at the origins: one may not answer.',
  },
  'engine.error': {
    levels: ERROR,
    fields: {},
    meaning: "The engine's process could not be started or reached.",
    remedy: 'Reinstall Node or Cowbird where they were replaced; it is tried again all the time.',
  },
  'engine.failed': {
    levels: ERROR,
    fields: {},
    meaning: 'The engine did not start; it is tried again.',
    remedy: 'The message says why. Until then the volumes wait.',
  },
  'keeper.error': {
    levels: ERROR,
    fields: {},
    meaning: 'A mistake in Cowbird, which cost one operation.',
    remedy: 'Report it, with the message.',
  },
  'helper.error': {
    levels: WARNING,
    fields: {},
    meaning: 'A helper could not be started or reached; its operation fails.',
  },
  'engine.output': {
    levels: WARNING,
    fields: {},
    meaning: 'A line that the engine wrote outside of its events: the last words of one that goes wrong.',
    remedy: 'Report it, with the lines around it.',
  },
  'helper.output': {
    levels: WARNING,
    fields: {},
    meaning: 'The same, of a helper.',
  },
  'memory.group': {
    levels: WARNING,
    fields: {},
    meaning: 'Keeper or engine was found in a limited memory group, and has left it, or cannot.',
    remedy: 'Where it cannot: start the daemon outside of that group; `cowbird doctor` says more.',
  },
  'memory.unlocked': {
    levels: WARNING,
    fields: {},
    meaning: "The program's text could not be locked in memory.",
    remedy: 'Give the daemon CAP_IPC_LOCK, or LimitMEMLOCK=infinity.',
  },
  'notify.failed': {
    levels: WARNING,
    fields: {},
    meaning: 'The service manager could not be told that the daemon is ready.',
  },
  stale: {
    levels: WARNING,
    fields: {},
    meaning: 'Something that a dead daemon had left was cleared away at the start.',
  },
  'volume.attached': { levels: INFO, fields: { volume: 'text' }, meaning: 'A volume was attached.' },
  'volume.detached': { levels: INFO, fields: { volume: 'text' }, meaning: 'A volume was detached.' },
  'volume.warning': {
    levels: WARNING,
    fields: { volume: 'text' },
    meaning: 'What a volume that was just attached lacks on this machine.',
    remedy: '`cowbird doctor` says what to do.',
  },
  'volume.frozen': {
    levels: INFO,
    fields: { volume: 'text', freezeMs: 'number', windowMs: 'number', frozenByOthers: 'flag' },
    meaning:
      'The file systems of a volume, or of several, were frozen for a snapshot: for how long, and for how long all writes were held.',
  },
  'free.mapped': {
    levels: INFO,
    fields: { volume: 'text', blocks: 'number', durationMs: 'number' },
    meaning: 'The free blocks of a volume were looked up for `--free-aware`, before the freeze.',
  },
  'volume.thaw': {
    levels: WARNING,
    fields: { volume: 'text' },
    meaning:
      'A file system was not frozen any more, or did not thaw in time, when Cowbird thawed it. The snapshot is right.',
  },
  'thaw.failed': {
    levels: ERROR,
    fields: {},
    meaning: 'A file system may still be frozen, after the helper that froze it died.',
    remedy: '`fsfreeze -u` on the mount point that the message names.',
  },
  'volume.lost': {
    levels: ERROR,
    fields: { volume: 'text' },
    meaning: 'A volume could not be attached again at the start of the daemon.',
    remedy: '`cowbird attach` when the cause in the message is mended.',
  },
  'volume.stuck': {
    levels: ERROR,
    fields: { volume: 'text' },
    meaning: 'An engine could not go on with a volume: its users wait.',
    remedy: '`cowbird daemon restart` tries again.',
  },
  'volume.kept': {
    levels: WARNING,
    fields: { volume: 'text' },
    meaning: 'A detach that was cut off was undone: the volume stays attached.',
  },
  'volume.forced': {
    levels: ERROR,
    fields: { volume: 'text', errno: 'number' },
    meaning: 'A volume was ended while in use, by `daemon stop --force`: its users get I/O errors.',
  },
  'resend.failed': {
    levels: ERROR,
    fields: { errno: 'number' },
    meaning: 'The kernel cannot send unanswered requests again: a volume may hang.',
    remedy: 'Linux 6.9 or later.',
  },
  'io.error': {
    levels: ERROR,
    fields: { device: 'text', operation: 'text', errno: 'number', count: 'number' },
    meaning:
      'Requests on a volume (`volume-NAME`) or a snapshot (`snapshot-MINOR`) failed, and their users were told: so many (`count`), of which this is the last. At most one such event a second and device.',
    remedy: 'Look at the disk below.',
  },
  'snapshot.created': {
    levels: INFO,
    fields: { minor: 'number', volume: 'text' },
    meaning: 'The first snapshot of a series was taken.',
  },
  'snapshot.destroyed': {
    levels: INFO,
    fields: { minor: 'number' },
    meaning: 'A snapshot or incremental tracking was ended.',
  },
  'state.changed': {
    levels: INFO,
    fields: { minor: 'number', volume: 'text', from: 'text', to: 'text' },
    meaning: 'A tracked volume went from one state to another: `active snapshot`, `dormant incremental` and so on.',
  },
  'snapshot.failed': {
    levels: ERROR,
    fields: { minor: 'number', errno: 'number', code: 'text' },
    meaning: 'A snapshot failed: reads of it give EIO. The volume goes on, and changes go on being marked.',
    remedy: '`transition-to-snapshot` takes the next one; 27 (EFBIG) asks for a larger COW file.',
  },
  'snapshot.unclean': {
    levels: ERROR,
    fields: { minor: 'number' },
    meaning: 'A COW file stays unclean at a stop, since its volume was written until the end.',
    remedy: 'The next backup compares contents: `update-img --scan`.',
  },
  'reload.refused': {
    levels: ERROR,
    fields: { minor: 'number' },
    meaning: 'A reloaded series cannot be trusted; the message says why.',
    remedy: '`destroy`, a new `setup-snapshot`, and `update-img --scan` for its first backup.',
  },
  'store.fill': {
    levels: WARNING,
    fields: { minor: 'number', percent: 'number' },
    meaning: 'A COW file passed 80 or 95 percent.',
    remedy: '`expand-cow-file` or `reconfigure-auto-expand`.',
  },
  'store.grown': {
    levels: INFO,
    fields: { minor: 'number', storeBytes: 'number' },
    meaning: 'A COW file was made larger.',
  },
  'store.autoExpand': {
    levels: WARNING,
    fields: { minor: 'number' },
    meaning: 'A COW file could not grow by itself, which is given up.',
    remedy: 'Free some space, then `reconfigure-auto-expand` again.',
  },
  'store.truncate': {
    levels: WARNING,
    fields: { minor: 'number' },
    meaning: 'A COW file keeps its size in incremental mode.',
  },
  'store.left': {
    levels: WARNING,
    fields: { minor: 'number' },
    meaning: 'A COW file could not be removed, or made removable.',
    remedy: '`chattr -i FILE; rm FILE`.',
  },
  'store.close': {
    levels: ERROR,
    fields: { minor: 'number' },
    meaning: 'The list of changes could not be written into the old COW file of a transition.',
    remedy: '`update-img --scan` for this backup.',
  },
  'hook.ended': {
    levels: ['info', 'warning'],
    fields: { hook: 'text', ok: 'flag', durationMs: 'number', output: 'text' },
    meaning: 'A `pre-freeze` or `post-thaw` command ended: how long it took, and the end of what it printed.',
    remedy: 'Where `ok` is false: the message and the output say why.',
  },
  'operation.cutOff': {
    levels: ERROR,
    fields: { volume: 'text' },
    meaning:
      'An operation in which the engine died could be neither finished nor undone wholly; the message says what is left.',
    remedy: '`cowbird info` shows what is so now.',
  },
  'undo.failed': {
    levels: ERROR,
    fields: {},
    meaning: 'A part of a failed operation could not be undone; the message says which.',
  },
  'settle.failed': {
    levels: ERROR,
    fields: {},
    meaning: 'Operations that were cut off could not be settled after a restart of the engine.',
  },
  'watch.failed': {
    levels: ERROR,
    fields: {},
    meaning: 'A look at mounts and stores failed; the next one is a moment later.',
  },
  'state.damaged': {
    levels: ['warning', 'error'],
    fields: {},
    meaning: 'A file of the state directory cannot be used. As error: nothing was attached again.',
    remedy: 'The message says where the file is kept.',
  },
} as const satisfies Readonly<Record<string, EventSpec>>;

export type EventName = keyof typeof EVENTS;

type FieldsOf<F> = { [N in keyof F]: F[N] extends keyof FieldTypes ? FieldTypes[F[N]] : never };

/** What happened, as whoever reports it knows it. */
export type EventInput = {
  [N in EventName]: {
    event: N;
    level: (typeof EVENTS)[N]['levels'][number];
    message: string;
  } & FieldsOf<(typeof EVENTS)[N]['fields']>;
}[EventName];

/** The names of all events, in the order of the list. */
export function eventNames(): EventName[] {
  return Object.keys(EVENTS).filter((name): name is EventName => name in EVENTS);
}
