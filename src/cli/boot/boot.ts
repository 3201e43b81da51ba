/**
 * `attach --boot` and `detach --boot`: the files by which systemd attaches a volume before it mounts.
 *
 * Written before the volume is attached, so that udev names it by the new rule and systemd starts the daemon by its unit;
 * taken back when attaching fails (I7).
 */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Paths, pathsFrom } from '../../control/paths.js';
import type { AttachedVolume } from '../../index.js';
import { CowbirdError, errnoOfError, messageOf } from '../../sys/errors.js';
import { stablePath } from '../../sys/stable-path.js';
import { type BootFile, OURS, ownerOf, refuseForeign, removeFile, writeFiles } from './files.js';
import { fstabAdvice, linesOfVolume, pathsOn } from './fstab.js';
import { rulesFileName, volumeRules } from './udev.js';
import {
  attachUnit,
  attachUnitName,
  type BootVolume,
  DAEMON_UNIT,
  daemonUnit,
  fuseMounts,
  type Installation,
} from './unit.js';

/** The machine as this module sees it; tests give their own. */
export interface BootHost {
  installation: Installation & { paths: Paths };
  /** `/etc`, or what stands for it. */
  etcDir: string;
  /** Whether the running systemd reads `etcDir`: else nothing is told to it. */
  live: boolean;
  systemdRuns: boolean;
  diskFolder: string;
  /** Text of `/proc/PID/cgroup`, empty where there is no such process. */
  cgroupOf(pid: number): string;
  /** Runs systemctl or udevadm. */
  tell(program: string, args: readonly string[]): Promise<void>;
}

/** This process's machine. `COWBIRD_ETC_DIR`: write there instead of /etc, and leave the running systemd alone. */
export function bootHost(env: NodeJS.ProcessEnv = process.env): BootHost {
  const moved = env['COWBIRD_ETC_DIR'];
  return {
    installation: { nodePath: process.execPath, packageDir: packageDirectory(), paths: pathsFrom(env) },
    etcDir: resolve(moved || '/etc'),
    live: !moved,
    // sd_booted(3)
    systemdRuns: existsSync('/run/systemd/system'),
    diskFolder: '/dev/disk',
    cgroupOf,
    tell,
  };
}

function cgroupOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8');
  } catch (error) {
    if (errnoOfError(error) === 2) return '';
    throw error;
  }
}

/** The directory above `dist`, or the one that holds this program. */
function packageDirectory(): string {
  return resolve(fileURLToPath(new URL('../../../../', import.meta.url)));
}

/** A volume's unit has 90 s itself. */
const TELL_MS_MAX = 120_000;

function tell(program: string, args: readonly string[]): Promise<void> {
  return new Promise((done, reject) => {
    execFile(program, args, { timeout: TELL_MS_MAX }, (error, _stdout, stderr) => {
      if (error === null) done();
      else reject(new Error(`${program} ${args.join(' ')}: ${stderr.trim() || error.message}`));
    });
  });
}

const DEFAULT_RUN_DIR = '/run/cowbird';

/** The daemon, as far as it is asked here. */
export interface BootDaemon {
  attach(origin: string): Promise<AttachedVolume>;
  /** Its process, undefined where none runs. */
  pid(): Promise<number | undefined>;
  /** Ends it; refused while a volume is in use. */
  stop(): Promise<void>;
}

export interface BootReport {
  volume: AttachedVolume;
  /** Files that were written now: none where all was as it should be. */
  files: string[];
  fstab: string;
  /** For people, a line each. */
  notes: string[];
}

interface BootFiles {
  /** What every volume needs. */
  common: BootFile[];
  ofVolume: BootFile[];
}

const unitsFolder = (etcDir: string): string => join(etcDir, 'systemd', 'system');

function commonPaths({ etcDir, installation }: BootHost): { unit: string; mounts: string } {
  const { folder } = fuseMounts(installation.paths.fuseDir, OURS);
  const units = unitsFolder(etcDir);
  return { unit: join(units, DAEMON_UNIT), mounts: join(units, folder, 'cowbird.conf') };
}

/** Those of a volume, its unit the last one: as long as that is there, `detach --boot` knows the volume. */
function volumePaths({ etcDir }: BootHost, name: string): { rules: string; wants: string; unit: string } {
  const units = unitsFolder(etcDir);
  const unit = attachUnitName(name);
  return {
    rules: join(etcDir, 'udev', 'rules.d', rulesFileName(name)),
    wants: join(units, 'local-fs.target.wants', unit),
    unit: join(units, unit),
  };
}

function filesOf(host: BootHost, volume: BootVolume): BootFiles {
  const { installation } = host;
  const { fuseDir } = installation.paths;
  const common = commonPaths(host);
  const { rules, wants, unit } = volumePaths(host, volume.name);
  return {
    common: [
      { path: common.unit, text: daemonUnit(installation, OURS) },
      { path: common.mounts, text: fuseMounts(fuseDir, OURS).text },
    ],
    ofVolume: [
      { path: rules, text: volumeRules(volume.name, fuseDir, OURS) },
      { path: unit, text: attachUnit(installation, volume, OURS) },
      { path: wants, target: `../${attachUnitName(volume.name)}` },
    ],
  };
}

/** Writes what attaches a volume at boot, and attaches it now. All is as it was when that fails. */
export async function attachAtBoot(
  host: BootHost,
  volume: Omit<BootVolume, 'originIsFile'>,
  daemon: BootDaemon,
): Promise<BootReport> {
  requireSystemd(host);
  const { origin, originIsFile, notes } = lastingOrigin(volume.origin, host.diskFolder);
  const fstab = readFstab(host);
  const advice = fstabAdvice(fstab, volume.name, origin, host.diskFolder);
  for (const mountPoint of advice.mountPoints) refuseCircle(host, fstab, mountPoint);
  if (advice.replaces !== undefined) notes.push(`in fstab, this line has to go: ${advice.replaces}`);
  if (advice.isThere) notes.push('fstab has the line for it already');
  const files = filesOf(host, { ...volume, origin, originIsFile });
  refuseForeign(files.ofVolume);
  const ranBefore = (await daemon.pid()) !== undefined;
  // A daemon's unit that somebody wrote is the daemon's unit.
  const common = writeFiles(files.common.filter(({ path }) => ownerOf(path) !== 'other'));
  let undoVolume = (): void => undefined;
  try {
    const { written, undo } = writeFiles(files.ofVolume);
    undoVolume = undo;
    common.written.push(...written);
    if (common.written.length > 0) await reload(host);
    const attached = await daemon.attach(origin);
    notes.push(...(await takeEffect(host, volume.name, attached.device, await daemon.pid().catch(() => undefined))));
    return { volume: attached, files: common.written, fstab: advice.line, notes };
  } catch (error) {
    undoVolume();
    // One that systemd started by the new unit keeps it until it ends: without it, systemd would end it as anything else.
    if (ranBefore || !host.live || (await ends(daemon))) common.undo();
    await reload(host).catch(() => undefined);
    throw error;
  }
}

async function ends(daemon: BootDaemon): Promise<boolean> {
  return daemon.stop().then(
    () => true,
    async () => (await daemon.pid()) === undefined,
  );
}

/** What the daemon itself needs cannot wait for it. */
function refuseCircle({ installation, etcDir }: BootHost, fstab: string, mountPoint: string): void {
  const { nodePath, packageDir, paths } = installation;
  const own = pathsOn(fstab, mountPoint, [nodePath, packageDir, paths.stateDir]);
  if (own.length === 0) return;
  throw new CowbirdError(
    'EINVAL',
    `${join(etcDir, 'fstab')} mounts this volume on ${mountPoint}, where Cowbird itself has ${own.join(' and ')}: at boot, each would wait for the other. Move that elsewhere, or leave this volume as it is`,
  );
}

/** The units are those of the one daemon of this machine; a second instance must not write over them. */
function requireSystemd(host: BootHost): void {
  if (!host.live) return;
  const { runDir } = host.installation.paths;
  if (runDir !== DEFAULT_RUN_DIR) {
    throw new CowbirdError(
      'EINVAL',
      `--boot writes the units of the daemon in ${DEFAULT_RUN_DIR}, and COWBIRD_RUN_DIR is ${runDir}: unset it`,
    );
  }
  if (host.systemdRuns) return;
  throw new CowbirdError(
    'ENOSYS',
    'systemd does not run this machine (/run/systemd/system is missing): attach without --boot, and have this machine’s own start scripts run `cowbird attach` before they mount; nothing was changed',
  );
}

function lastingOrigin(path: string, diskFolder: string): { origin: string; originIsFile: boolean; notes: string[] } {
  const absolute = resolve(path);
  try {
    if (statSync(absolute).isFile()) return { origin: absolute, originIsFile: true, notes: [] };
  } catch (error) {
    if (errnoOfError(error) === 2) throw new CowbirdError('ENOENT', `${path} does not exist`);
    throw error;
  }
  const lasting = stablePath(absolute, diskFolder);
  if (lasting === undefined) {
    const note = `${absolute} has no lasting name in ${diskFolder}: it may be another disk after a reboot`;
    return { origin: absolute, originIsFile: false, notes: [note] };
  }
  const notes = lasting === absolute ? [] : [`${absolute} is attached as ${lasting}, which stays its name`];
  return { origin: lasting, originIsFile: false, notes };
}

async function reload(host: BootHost): Promise<void> {
  if (!host.live) return;
  await host.tell('systemctl', ['daemon-reload']);
  await host.tell('udevadm', ['control', '--reload']);
}

/** What is attached stays so whatever happens here: what did not work is said, and will at the next boot. */
async function takeEffect(host: BootHost, name: string, node: string, pid: number | undefined): Promise<string[]> {
  if (!host.live) return [`Written below ${host.etcDir}; the running systemd and udev were not told`];
  const notes: string[] = [];
  const told = (program: string, ...args: string[]): Promise<unknown> =>
    host
      .tell(program, args)
      .catch((error: unknown) => notes.push(`Not done, until the next boot: ${messageOf(error)}`));
  await told('udevadm', 'trigger', '--action=change', '--settle', node);
  if (pid === undefined || host.cgroupOf(pid).includes(`/${DAEMON_UNIT}`)) {
    await told('systemctl', 'start', attachUnitName(name));
  } else {
    notes.push(
      `The daemon (pid ${pid}) was not started by systemd, which may kill it at shutdown while volumes are mounted. When they are unmounted: \`cowbird daemon stop && systemctl start ${DAEMON_UNIT}\`, which attaches them again`,
    );
  }
  return notes;
}

function readFstab(host: BootHost): string {
  const path = join(host.etcDir, 'fstab');
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

/** Whether a volume of this name is attached at boot by files of ours. */
export function isAttachedAtBoot(host: BootHost, name: string): boolean {
  return ownerOf(volumePaths(host, name).unit) === 'ours';
}

/** Removes the files of a volume; with the last one those that all need, where they are ours and no daemon runs by them. */
export async function forgetAtBoot(host: BootHost, name: string, daemonRuns: boolean): Promise<string[]> {
  // With what needs it, which by now is unmounted.
  if (host.live) await host.tell('systemctl', ['stop', attachUnitName(name)]).catch(() => undefined);
  const { wants, rules, unit } = volumePaths(host, name);
  removeOurs([wants, rules, unit]);
  const notes = linesOfVolume(readFstab(host), name).map(
    (line) => `${join(host.etcDir, 'fstab')} still has this line, for which the next boot would wait: ${line}`,
  );
  const common = commonPaths(host);
  const folder = unitsFolder(host.etcDir);
  const isLast = !existsSync(folder) || !readdirSync(folder).some((file) => file.startsWith('cowbird-attach-'));
  if (isLast && ownerOf(common.unit) !== 'other') {
    // A running unit without its file would lose its rules for stopping with the next reload.
    if (!host.live || !daemonRuns) removeOurs([common.mounts, common.unit]);
    else if (ownerOf(common.unit) === 'ours') {
      notes.push(
        `${common.unit} stays while the daemon runs. To be rid of it: \`cowbird daemon stop\`, then rm it and ${common.mounts}`,
      );
    }
  }
  await reload(host);
  return notes;
}

function removeOurs(paths: readonly string[]): void {
  for (const path of paths) if (ownerOf(path) === 'ours') removeFile(path);
}
