/** Answers as people read them. */
import { API_MAJOR } from '../control/schema.js';
import type { DaemonStatus, DoctorReport, EventRecord, SnapshotStatus, StatusDocument, VolumeInfo } from '../index.js';
import { counted, formatSize } from './quantities.js';

const STATES = [
  'dormant incremental',
  'dormant snapshot',
  'active incremental',
  'active snapshot',
  'unverified incremental',
  'unverified snapshot',
] as const;

/** Columns two spaces apart, no lines: what `awk` and people read alike. */
export async function columns(rows: ReadonlyArray<readonly string[]>): Promise<string> {
  const { default: Table } = await import('cli-table3');
  const blank = Object.fromEntries(
    ['top', 'bottom', 'left', 'right', 'mid'].flatMap((side) =>
      ['', '-mid', '-left', '-right'].map((suffix) => [`${side}${suffix}`, ''] as const),
    ),
  );
  const table = new Table({
    chars: { ...blank, middle: '  ' },
    style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [] },
  });
  table.push(...rows.map((row) => [...row]));
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** `cowbird list` */
export async function volumesText(volumes: readonly VolumeInfo[]): Promise<string> {
  if (volumes.length === 0) return 'No volume is attached';
  const rows = volumes.map((volume) => [
    volume.name,
    volume.device,
    volume.origin,
    formatSize(volume.sizeBytes) + (volume.readOnly ? ' read-only' : ''),
    volume.mode,
    volume.minor === null ? '-' : String(volume.minor),
    volume.mounted.join(', ') || '-',
  ]);
  return columns([['NAME', 'DEVICE', 'ORIGIN', 'SIZE', 'MODE', 'MINOR', 'MOUNTED'], ...rows]);
}

/** `cowbird info` */
export async function infoText({ devices }: StatusDocument): Promise<string> {
  if (devices.length === 0) return 'Nothing is tracked';
  const rows = devices.map((device) => [
    String(device.minor),
    stateText(device),
    device.block_device,
    device.cow_file,
    usedText(device),
    device.nr_changed_blocks === undefined ? '-' : counted(device.nr_changed_blocks, 'block'),
    device.seq_id === undefined ? '-' : String(device.seq_id),
  ]);
  const table = await columns([['MINOR', 'STATE', 'DEVICE', 'COW FILE', 'USED', 'CHANGED', 'SEQ'], ...rows]);
  const failures = devices
    .filter(({ error }) => error !== undefined)
    .map(
      ({ minor, error, error_reason: reason }) =>
        `minor ${minor}: error ${error}${reason === undefined ? '' : `: ${reason}`}`,
    );
  return [table, ...failures].join('\n');
}

function stateText({ state, error }: SnapshotStatus): string {
  const name = STATES[state] ?? `state ${state}`;
  return error === undefined ? name : `${name}, failed`;
}

function usedText({ cow_used: used, cow_size_current: size }: SnapshotStatus): string {
  return used === undefined || size === undefined ? '-' : `${formatSize(used)} of ${formatSize(size)}`;
}

/** `cowbird doctor` */
export function doctorText({ checks }: DoctorReport): string {
  const width = Math.max(0, ...checks.map(({ name }) => name.length));
  return checks
    .flatMap(({ name, status, detail, fix }) => {
      const line = `${status.padEnd(8)} ${name.padEnd(width)} ${detail}`;
      return fix === undefined ? [line] : [line, `${' '.repeat(width + 10)}to do: ${fix}`];
    })
    .join('\n');
}

/** `cowbird events` */
export function eventText({ time, level, event, message }: EventRecord): string {
  return `${time} ${level} ${event}: ${message}`;
}

/** `cowbird daemon status`; a second line where the versions of command, keeper and engine are not all one. */
export function daemonText(status: DaemonStatus, commandVersion: string): string {
  const engine = status.enginePid === null ? 'engine being started again' : `engine ${status.enginePid}`;
  const silence = status.enginePid !== null && !status.engineAnswers ? ' (does not answer now)' : '';
  const restarts = status.engineRestarts === 0 ? '' : `, engine restarted ${status.engineRestarts} times`;
  const lines = [
    `cowbird ${status.version} runs: keeper ${status.keeperPid}, ${engine}${silence}, up ${status.uptimeSeconds} s${restarts}`,
  ];
  const engineVersion = status.engineVersion ?? status.version;
  if (status.version !== commandVersion || engineVersion !== commandVersion) {
    lines.push(
      `keeper ${status.version}, engine ${engineVersion}, this command ${commandVersion}: ${advice(status, commandVersion)}`,
    );
  }
  if (status.engineProblem != null) lines.push(status.engineProblem);
  return lines.join('\n');
}

function advice({ version, engineVersion, apiMajor }: DaemonStatus, commandVersion: string): string {
  const anew = 'unmount the volumes, `cowbird daemon stop`, and the next command starts the installed version';
  if (apiMajor !== API_MAJOR) return `they speak versions ${apiMajor} and ${API_MAJOR} of the control API: ${anew}`;
  if ((engineVersion ?? version) !== commandVersion)
    return '`cowbird daemon restart` brings the engine to the installed version';
  return `the engine is up to date; for the keeper: ${anew}`;
}
