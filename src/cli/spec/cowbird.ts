/** `cowbird`, whole. */
import { LIVE_COMMANDS } from './cowbird-live.js';
import { REPOSITORY_COMMANDS } from './cowbird-repository.js';
import { SNAPSHOT_COMMANDS } from './cowbird-snapshots.js';
import { DAEMON_COMMANDS, VOLUME_COMMANDS } from './cowbird-volumes.js';
import { ENVIRONMENT, FILES, HELP_OPTION, JSON_OPTION, type ProgramSpec, VERSION_OPTION } from './types.js';

/** What each exit code of `cowbird` means. */
export const EXIT = { done: 0, failed: 1, usage: 2, refused: 3, partial: 4, interrupted: 130 } as const;

const volumes = VOLUME_COMMANDS.filter(({ name }) => ['attach', 'detach', 'list'].includes(name));
const others = VOLUME_COMMANDS.filter((command) => !volumes.includes(command));

export const COWBIRD: ProgramSpec = {
  name: 'cowbird',
  summary: 'block-level snapshots and incremental backups of live volumes, in user space',
  description: [
    'Cowbird takes instant copy-on-write snapshots of mounted, busy volumes and keeps track of what changes, so that a backup copies only that. It needs no kernel module: a volume is attached once (`cowbird attach`) and mounted through Cowbird from then on.',
    'Backups go to a repository (`cowbird backup`): a directory with the newest version as a plain image, and those before as what differs. Any version can be listed, verified and restored.',
    'Sizes take suffixes: K, M, G, T, KiB, MiB, GiB and TiB count by 1024; KB, MB, GB and TB by 1000. What a bare number means is said with each option.',
  ],
  commands: [
    ...REPOSITORY_COMMANDS,
    ...LIVE_COMMANDS,
    ...volumes,
    ...SNAPSHOT_COMMANDS,
    ...others.filter(({ name }) => name !== 'help'),
    ...DAEMON_COMMANDS,
    ...others.filter(({ name }) => name === 'help'),
  ],
  operands: [],
  options: [JSON_OPTION, VERSION_OPTION, HELP_OPTION],
  exits: [
    { status: EXIT.done, meaning: 'Done.' },
    { status: EXIT.failed, meaning: 'Failed.' },
    { status: EXIT.usage, meaning: 'Wrong usage: unknown command or option, or wrong number of operands.' },
    { status: EXIT.refused, meaning: 'Refused: nothing was changed.' },
    { status: EXIT.partial, meaning: 'Done in part.' },
    { status: EXIT.interrupted, meaning: 'Interrupted by Ctrl-C or SIGTERM.' },
  ],
  environment: [
    ...ENVIRONMENT,
    {
      name: 'COWBIRD_ETC_DIR',
      help: 'Where --boot writes and removes files instead of /etc; the running systemd is then not told. For images of other machines.',
    },
  ],
  files: FILES,
  seeAlso: ['dbdctl(8)', 'elioctl(8)', 'update-img(8)', 'losetup(8)'],
  examples: [
    { command: 'cowbird backup disk.img /backup/disk', meaning: 'Make a version of an image in a repository.' },
    { command: 'cowbird restore /backup/disk@3 /dev/sdc1', meaning: 'Write version 3 to a disk.' },
    { command: 'cowbird attach /dev/sdb1', meaning: 'Attach a partition; prints /dev/loop3.' },
    { command: 'cowbird setup-snapshot /dev/loop3 /srv/.cow1 0', meaning: 'Take snapshot 0.' },
    { command: 'dd if=/dev/cowbird0 of=backup.img bs=1M', meaning: 'Copy it.' },
    { command: 'cowbird transition-to-incremental 0', meaning: 'Track changes until the next backup.' },
    { command: 'cowbird transition-to-snapshot /srv/.cow2 0', meaning: 'Take the next snapshot.' },
    { command: 'update-img /dev/cowbird0 /srv/.cow1 backup.img', meaning: 'Copy only what changed.' },
  ],
};
