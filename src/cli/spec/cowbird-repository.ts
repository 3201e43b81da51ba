/** The commands of `cowbird` for backups and their repositories. */
import { HOOKS, WAIT } from './operands.js';
import { type CommandSpec, JSON_OPTION, type OptionSpec } from './types.js';

const REPO = { name: 'REPO', help: 'Directory of the repository.' } as const;
const REPO_AT = {
  name: 'REPO',
  help: 'Directory of the repository, for its newest version; REPO@N for version N.',
} as const;
const REPO_ALL = {
  name: 'REPO',
  help: 'Directory of the repository, for all of its versions; REPO@N for what version N is read from.',
} as const;
const TOGETHER: OptionSpec = {
  long: '--together',
  help: 'Back up several sources at one instant, each to a repository of its own: all of them get a version, or none does.',
};
const TARGET = { name: 'REPO|MINOR', help: 'Repository (REPO@N for version N), or the minor of a snapshot.' } as const;
const WRITABLE: OptionSpec = {
  long: '--writable',
  help: 'Take writes, which are kept in a file without a name in TMPDIR, and thrown away with the device.',
};
const RULES: readonly OptionSpec[] = [
  { long: '--keep', value: 'N', help: 'Keep the newest N versions.' },
  { long: '--keep-daily', value: 'N', help: 'Keep the last version of each of the last N days that have one.' },
  { long: '--keep-weekly', value: 'N', help: 'Keep the last version of each of the last N weeks that have one.' },
  { long: '--keep-monthly', value: 'N', help: 'Keep the last version of each of the last N months that have one.' },
];

export const REPOSITORY_COMMANDS: readonly CommandSpec[] = [
  {
    name: 'backup',
    summary: 'Make a backup as a new version in a repository',
    description: [
      'Makes a version of SOURCE in REPO, a directory, which is made where it does not exist; it belongs on another disk than SOURCE. The first version is a full image without its zeros and unused blocks; later ones copy only what changed. Whatever is killed or loses power, the repository has the versions that it had, or the new one too.',
      'Engine driver, for an attached volume (its node, /dev/cowbird/NAME, or its origin) that is in use: takes a snapshot, copies, and goes on to incremental mode by itself; the next backup copies what the driver lists as changed. The COW file is .cowbird-N in the root of the file system; minors are taken from 255 downwards. Where nothing proves that the list is whole (an unclean stop, a full COW file, use of the disk without Cowbird, a backup to another repository in between) it says so, and compares the contents of the snapshot with the checksums in the repository. A volume that is tracked under a minor of your own is refused (EBUSY).',
      'Engine live, for any other disk or partition in use: nothing is attached, unmounted or started anew. An eBPF program marks in the kernel what changes. The disk is read while it is in use, then what changed meanwhile, again and again, until little is left; that is read while its file systems are frozen, for some milliseconds. The kernel goes on tracking, also while no process of Cowbird runs, and the next backup reads only what changed. Where that is not known for sure (a reboot, another disk, a version by another engine) it says so, and compares contents. Refused: what the kernel cannot track (`cowbird doctor` says why), file systems that cannot be frozen, and swap, RAID, LVM or databases on the disk, unless hooks make them stand still. A disk that is written faster than it is read fails clearly. See docs/live.md.',
      'Engine scan, for everything else: reads SOURCE and compares it with the checksums. SOURCE is claimed meanwhile. An attached volume that is not mounted is claimed, too; tracking that a clean stop of the daemon left goes on.',
      'A source that grew goes on in the same repository. A smaller one, or another disk, is refused.',
      'With --together attached volumes in use are snapshotted at one instant, or disks in use are frozen at one moment by engine live; everything else is claimed before it and until the end. Volumes and other disks in use cannot be of one instant, but with `--engine live` all are read as disks. The manifests have the same id. A run that is cut off while the versions are being committed is ended by the next command on each repository, which looks at the others: they have to be where they were.',
      'Engine scan needs neither daemon nor root. On a terminal a bar shows rate and time left; stdout stays empty, and a line on stderr sums up. With --json the last line on stdout is an object of type "summary".',
    ],
    operands: [{ name: 'SOURCE', help: 'Attached volume, image file, disk or partition, in use or not.' }, REPO],
    otherForm: {
      option: TOGETHER,
      operands: [
        {
          name: 'SOURCE:REPO',
          help: 'With --together: a source and its repository, cut at the last colon.',
          many: true,
        },
      ],
    },
    options: [
      TOGETHER,
      { long: '--engine', value: 'ENGINE', help: '`auto`, `driver`, `live` or `scan`. Default: auto.' },
      {
        long: '--cow',
        value: 'DIRECTORY',
        help: 'Where engine driver puts its COW files. Default: the root of the file system on the volume; where there is none, or no room, `cow` in COWBIRD_STATE_DIR.',
      },
      {
        long: '--freeze-timeout',
        value: 'SECONDS',
        help: 'Engine live: a freeze ends after this time whatever happens, and the backup fails then; at most 60. Default: 5.',
      },
      { long: '--keep', value: 'N', help: 'Then drop all but the newest N versions.' },
      { long: '--whole', help: 'Copy blocks that no file uses, too.' },
      {
        long: '--skip-bad-blocks',
        help: 'Make a version although blocks cannot be read. They are recorded, and hold what the version before had, or zeros.',
      },
      ...HOOKS,
      {
        ...WAIT,
        help: 'Wait while another process has the repository or SOURCE, at most SECONDS; without a number as long as it takes. Default: give up at once.',
      },
      JSON_OPTION,
    ],
    examples: [
      { command: 'cowbird backup /dev/cowbird/data /backup/data', meaning: 'Back up an attached volume in use.' },
      { command: 'cowbird backup /dev/sda1 /backup/root', meaning: 'Back up a mounted disk, the root volume too.' },
      { command: 'cowbird backup disk.img /backup/disk', meaning: 'Back up an image file.' },
      { command: 'cowbird backup /dev/sdb1 /backup/sdb1 --keep 30', meaning: 'Back up a partition, keep 30 versions.' },
      {
        command: 'cowbird backup --together /dev/cowbird/db:/backup/db /dev/cowbird/log:/backup/log',
        meaning: 'A database and its log, on two volumes, at one instant.',
      },
    ],
    exits: [
      {
        status: 4,
        meaning:
          'The version was made, but older ones could not be dropped, or the command of --post-thaw failed: what it was to start again may stand still.',
      },
    ],
  },
  {
    name: 'versions',
    summary: 'List the versions of a repository',
    description: [
      'One line each: number, time, size, engine, how much is kept for it alone, and what could not be read. Works while a backup runs, too.',
    ],
    operands: [REPO],
    options: [JSON_OPTION],
  },
  {
    name: 'verify',
    summary: 'Find damage in a repository',
    description: [
      'Reads image and history and compares every block with its checksum, and the manifest with its own. A single flipped bit is found anywhere: file, place and versions are named, and the versions that are still whole.',
    ],
    operands: [REPO_ALL],
    options: [WAIT, JSON_OPTION],
    exits: [{ status: 1, meaning: 'Damage was found, or the command failed.' }],
    examples: [{ command: 'cowbird verify /backup/disk@3', meaning: 'Read all that version 3 consists of.' }],
  },
  {
    name: 'restore',
    summary: 'Write a version to a disk or file',
    description: [
      'Writes the blocks of TARGET that differ from the version, syncs them, and reads them back. Interrupted or killed it can be run again. A file is made where there is none, and gets the length of the version; of a larger disk only the beginning is written.',
      'Refused: a target that is mounted or in use, too small, or in the repository. A target that holds a file system or anything else that is known is overwritten only after a question, or with --yes.',
      'Blocks that are damaged in the repository are left out and named; everything else is restored.',
    ],
    operands: [REPO_AT, { name: 'TARGET', help: 'Disk, partition or file.' }],
    options: [
      { long: '--all', help: 'Write every block, also those that are right already.' },
      { long: '--dry-run', help: 'Say how much would be written, and write nothing.' },
      { short: '-y', long: '--yes', help: 'Overwrite what TARGET holds without a question.' },
      WAIT,
      JSON_OPTION,
    ],
    exits: [{ status: 4, meaning: 'Restored but for blocks that are damaged in the repository.' }],
    examples: [
      { command: 'cowbird restore /backup/disk disk-again.img', meaning: 'Restore the newest version to a file.' },
      {
        command: 'cowbird restore --dry-run /backup/sdb1@3 /dev/sdb1',
        meaning: 'See how far a disk is from version 3.',
      },
    ],
  },
  {
    name: 'prune',
    summary: 'Drop versions of a repository',
    description: [
      'Drops every version that no rule keeps; the newest always stays. Days, weeks (Monday to Sunday) and months are counted in local time, and only those that have a version; where there are fewer than were asked for, the oldest version stays too. Numbers of versions do not change.',
      'The others stay whole whenever this is cut off. To drop versions between others takes room for a while.',
    ],
    operands: [REPO],
    options: [...RULES, { long: '--dry-run', help: 'Say what would be dropped, and drop nothing.' }, WAIT, JSON_OPTION],
    examples: [
      {
        command: 'cowbird prune /backup/disk --keep-daily 7 --keep-weekly 5 --keep-monthly 12',
        meaning: 'Keep a week of days, five weeks and a year of months.',
      },
    ],
  },
  {
    name: 'mount',
    summary: 'Mount a version or a snapshot',
    description: [
      'Mounts a version of a repository, or a snapshot, read-only and with the options that its file system needs: ext4 with noload, XFS with norecovery and nouuid. Prints the device. Every block is compared with its checksum when it is read; a damaged one is an I/O error.',
      'The repository is locked against writers until it is unmounted, with `cowbird umount` or umount(8). Needs root.',
    ],
    operands: [TARGET, { name: 'DIR', help: 'Directory to mount on.' }],
    options: [WRITABLE, WAIT, JSON_OPTION],
    examples: [{ command: 'cowbird mount /backup/disk@3 /mnt', meaning: 'Look into version 3.' }],
  },
  {
    name: 'umount',
    summary: 'Unmount a version or a snapshot, end its device',
    description: ['Ends what `cowbird mount` or `cowbird device` began; anything else is left alone (EINVAL).'],
    operands: [{ name: 'DIR|DEVICE', help: 'Directory that is mounted on, or the device.' }],
    options: [JSON_OPTION],
  },
  {
    name: 'device',
    summary: 'Make a block device of a version or a snapshot',
    description: [
      'Prints the node of a read-only block device, for dd, fsck, a virtual machine. Of a snapshot that is its own. That of a version stays until `cowbird umount` ends it; the repository is locked against writers as long. Needs root.',
    ],
    operands: [TARGET],
    options: [WRITABLE, WAIT, JSON_OPTION],
    examples: [
      { command: 'fsck -f $(cowbird device --writable /backup/disk@3)', meaning: 'Check, and even repair, for a try.' },
    ],
  },
];
