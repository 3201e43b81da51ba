/**
 * The text of systemd's units: the daemon's, and one for each volume that is attached at boot.
 *
 * How they hang together. At boot: a volume's unit comes after the daemon's and after its origin's device, and before
 * local-fs.target; the mount waits for /dev/cowbird/NAME. Not before local-fs-pre.target, which would be a circle where /var is
 * a file system of its own: every mount comes after that target, and the daemon after the mount of its state.
 *
 * At shutdown systemd goes the other way round: services and sessions end, which come after sysinit.target and so after
 * local-fs.target; then mounts by fstab on /dev/cowbird/NAME, which come after the volume's unit by `x-systemd.requires`; then
 * the volume's unit, and then the daemon's, whose ExecStop makes every series clean and detaches. What somebody mounted by hand
 * is in order with nothing but local-fs.target, so ExecStop waits for it.
 */
import { join } from 'node:path';
import type { Paths } from '../../control/paths.js';
import { command, escapePath, word } from './syntax.js';

export const DAEMON_UNIT = 'cowbird.service';
const STOP_WAIT_SECONDS = 20;

/** Where this installation lies. It differs between installs, so units are written, not shipped. */
export interface Installation {
  nodePath: string;
  /** The directory with `bin` and `dist`. */
  packageDir: string;
  paths: Pick<Paths, 'runDir' | 'stateDir'>;
}

export interface BootVolume {
  name: string;
  origin: string;
  originIsFile: boolean;
  /** Further options of `cowbird attach`, as words. */
  options: readonly string[];
}

/** The unit of a volume that is attached at boot. */
export function attachUnitName(volume: string): string {
  return `cowbird-attach-${volume}.service`;
}

function cowbird({ nodePath, packageDir }: Installation, args: readonly string[]): string {
  return command(nodePath, [join(packageDir, 'bin', 'cowbird'), ...args]);
}

/** RuntimeDirectory= and StateDirectory= where systemd can make them; the daemon makes them elsewhere. */
function directoryLines({ runDir, stateDir }: Installation['paths']): string[] {
  const lines = environmentLines({ runDir, stateDir });
  if (runDir.startsWith('/run/')) {
    lines.push(
      '# Kept over a restart: what a killed daemon left in it is cleared away by name.',
      `RuntimeDirectory=${word(runDir.slice('/run/'.length))}`,
      'RuntimeDirectoryPreserve=yes',
    );
  }
  if (stateDir.startsWith('/var/lib/')) {
    lines.push(`StateDirectory=${word(stateDir.slice('/var/lib/'.length))}`, 'StateDirectoryMode=0700');
  }
  return lines;
}

function environmentLines({ runDir, stateDir }: Installation['paths']): string[] {
  return [
    ...(runDir === '/run/cowbird' ? [] : [`Environment=${word(`COWBIRD_RUN_DIR=${runDir}`)}`]),
    ...(stateDir === '/var/lib/cowbird' ? [] : [`Environment=${word(`COWBIRD_STATE_DIR=${stateDir}`)}`]),
  ];
}

/** Capabilities that the unit leaves to the daemon, without `CAP_` and in lower case. */
export const CAPABILITIES = [
  'sys_admin',
  'sys_ptrace',
  'dac_override',
  'dac_read_search',
  'fowner',
  'linux_immutable',
  'ipc_lock',
  'sys_resource',
] as const;

/**
 * What the daemon can do without. Nothing here may give it a mount namespace of its own, as PrivateTmp=, PrivateDevices=,
 * Protect{System,Home,Proc,ControlGroups,Kernel…}=, …Paths=, PrivateNetwork=, PrivateIPC= and PrivateMounts= do: such a namespace
 * keeps unmounted file systems alive and hides new ones. ProtectClock= would close /dev but for one device.
 */
const HARDENING = [
  '# Hardened by nothing that would give it a mount namespace of its own: that would keep unmounted file systems busy and',
  '# hide new ones. So no Private…=, ProtectSystem=, ProtectHome=, ProtectProc=, ProtectKernel…=, ReadOnlyPaths= here.',
  '# No program that it runs is setuid.',
  'NoNewPrivileges=yes',
  "# Loop devices, FUSE, freezing; the keeper's descriptors for the engine; anybody's images and COW files; chattr +i; mlock.",
  `CapabilityBoundingSet=${CAPABILITIES.map((name) => `CAP_${name.toUpperCase()}`).join(' ')}`,
  '# Its API is a socket in its run directory.',
  'RestrictAddressFamilies=AF_UNIX',
  '# A helper mounts an unmounted volume where nobody else sees it: the one namespace that is ever made.',
  'RestrictNamespaces=mnt',
  '# What a block device never does. W^X is not among it: V8 compiles.',
  'LockPersonality=yes',
  'ProtectHostname=yes',
  'RestrictRealtime=yes',
  'RestrictSUIDSGID=yes',
  'SystemCallArchitectures=native',
  'SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap',
  '# An error that is logged, not the death of every volume.',
  'SystemCallErrorNumber=EPERM',
];

/** What keeps the memory of the daemon in place: reclaim may need a volume, and so whoever serves it. */
const MEMORY = [
  '# Freeing memory may need a write to a volume: what serves it is neither killed for memory nor swapped out, and has no limit',
  '# at which it would have to free memory itself.',
  'OOMScoreAdjust=-1000',
  'OOMPolicy=continue',
  'ManagedOOMPreference=omit',
  'MemorySwapMax=0',
  '# Buffers are locked in memory.',
  'LimitMEMLOCK=infinity',
  '# Some ten descriptors a volume or snapshot in each process, a thread for each worker.',
  'LimitNOFILE=65536',
  'TasksMax=4096',
];

/** When the daemon starts and ends. */
function daemonOrder({ nodePath, packageDir, paths }: Installation): string[] {
  const needed = [...new Set([nodePath, packageDir, paths.stateDir])].map((path) => word(path)).join(' ');
  return [
    '# Volumes are mounted before sysinit.target, which by default everything waits for: it waits for its own files, its modules',
    '# and device nodes.',
    'DefaultDependencies=no',
    `RequiresMountsFor=${needed}`,
    'Wants=modprobe@fuse.service modprobe@loop.service',
    'After=modprobe@fuse.service modprobe@loop.service systemd-remount-fs.service systemd-tmpfiles-setup-dev.service',
    '# At shutdown it ends after every service and session, which come after this target; and after the mounts by fstab, which',
    "# come after their volumes' units.",
    'Before=local-fs.target',
    '# The end of shutdown waits for it. Not in conflict with umount.target: what is unmounted needs it until then.',
    'Conflicts=shutdown.target',
    'Before=shutdown.target',
    '# Volumes stay mounted in rescue mode.',
    'IgnoreOnIsolate=yes',
    '# Ended by `cowbird daemon stop`, which refuses while a volume is in use, and systemctl could not. So `systemctl restart` is',
    '# refused as well: to go on with an upgraded version is `systemctl reload`.',
    'RefuseManualStop=yes',
    '# Volumes wait for it: however often it failed, it is started again.',
    'StartLimitIntervalSec=0',
  ];
}

/** How the daemon is started, swapped and ended. */
function daemonCommands(installation: Installation): string[] {
  const { nodePath, packageDir } = installation;
  const keeper = join(packageDir, 'dist', 'src', 'control', 'keeper-main.js');
  return [
    '# Ready when it answers: what comes after it may call.',
    'Type=notify',
    'NotifyAccess=main',
    "# argv[0] begins with `@`: systemd's last killing at shutdown spares it, so that what could not be unmounted before still",
    '# can be then.',
    `ExecStart=@${command(nodePath, ['@cowbird', '--enable-source-maps', keeper])}`,
    '# A new engine, of the version that is installed, under the volumes as they are.',
    `ExecReload=${cowbird(installation, ['daemon', 'restart'])}`,
    '# Makes series clean, so that backups stay incremental over a reboot. Waits for what somebody mounted by hand.',
    `ExecStop=${cowbird(installation, ['daemon', 'stop', '--wait', String(STOP_WAIT_SECONDS)])}`,
    '# The end of this process is an I/O error for every volume: it gets no signal but a request to end, which it refuses while a',
    '# volume is in use; its children get none.',
    'KillMode=process',
    'SendSIGKILL=no',
    '# Volumes of before are attached while it starts.',
    'TimeoutStartSec=5min',
    'TimeoutStopSec=30s',
    '# But not after 0: ended by `cowbird daemon stop`. Nor after 75: another daemon runs in this run directory.',
    'Restart=always',
    'RestartPreventExitStatus=0 75',
    'RestartSec=1s',
    'WorkingDirectory=/',
  ];
}

/** The daemon's unit. `firstLine`: a comment that says whose it is. */
export function daemonUnit(installation: Installation, firstLine: string): string {
  return `${[
    firstLine,
    '[Unit]',
    'Description=Cowbird, block-level snapshots and backups',
    'Documentation=man:cowbird(8)',
    ...daemonOrder(installation),
    '',
    '[Service]',
    ...daemonCommands(installation),
    ...directoryLines(installation.paths),
    '',
    ...MEMORY,
    '',
    ...HARDENING,
    '',
    '[Install]',
    'WantedBy=multi-user.target',
  ].join('\n')}\n`;
}

/**
 * Name and text of what is added to the mount units that systemd makes of the FUSE files behind the volumes: by default it
 * would unmount them first of all at shutdown, and report each as an error, for they are in use until their volume is detached.
 */
export function fuseMounts(fuseDir: string, firstLine: string): { folder: string; text: string } {
  const text = `${[
    firstLine,
    '# FUSE files behind volumes: unmounted by the daemon when it detaches, not by systemd.',
    '[Unit]',
    'DefaultDependencies=no',
  ].join('\n')}\n`;
  return { folder: `${escapePath(fuseDir)}-.mount.d`, text };
}

/** The unit that attaches a volume at boot. */
export function attachUnit(installation: Installation, volume: BootVolume, firstLine: string): string {
  const { name, origin, originIsFile, options } = volume;
  const device = `${escapePath(origin)}.device`;
  const target = `blockdev@${escapePath(`/dev/cowbird/${name}`)}.target`;
  return `${[
    firstLine,
    '[Unit]',
    `Description=Cowbird volume ${name}`,
    'Documentation=man:cowbird(8)',
    '# Comes before what everything waits for by default, and stays in rescue mode.',
    'DefaultDependencies=no',
    'IgnoreOnIsolate=yes',
    '# Requires and not BindsTo: should the daemon die, systemd starts it again, and then this, and what is mounted from it.',
    `Requires=${DAEMON_UNIT}`,
    `After=${DAEMON_UNIT}`,
    '# What it is attached from.',
    ...(originIsFile ? [`RequiresMountsFor=${word(origin)}`] : [`Requires=${device}`, `After=${device}`]),
    '# What is mounted from the volume is mounted after this, and unmounted before it ends.',
    `Wants=${target}`,
    `Before=${target} local-fs.target`,
    'Conflicts=umount.target',
    'Before=umount.target',
    '',
    '[Service]',
    'Type=oneshot',
    'RemainAfterExit=yes',
    'TimeoutStartSec=90s',
    ...environmentLines(installation.paths),
    '# The daemon may have attached it already: it attaches again what was attached when it ended.',
    `ExecStart=${cowbird(installation, ['attach', '--if-needed', '--name', name, ...options, '--', origin])}`,
    "# No ExecStop: detached by the daemon's own, which leaves a series that is going on clean.",
    '',
    '[Install]',
    'WantedBy=local-fs.target',
  ].join('\n')}\n`;
}
