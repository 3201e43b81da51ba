/** `dbdctl` and `elioctl`: one grammar, dattobd's, with what elastio-snap added and left out. */
import { COWFILE, DEVICE, MINOR, RELOAD_COWFILE } from './operands.js';
import {
  type CommandSpec,
  ENVIRONMENT,
  type ExitSpec,
  FILES,
  HELP_OPTION,
  type OptionSpec,
  type ProgramSpec,
  VERSION_OPTION,
} from './types.js';

export const DRIVER_FAILED = 255;

const CACHE: OptionSpec = {
  short: '-c',
  value: 'CACHE',
  help: 'Memory for the index, in bytes. Default, and meaning of 0: 300 MiB.',
};
const FALLOCATE: OptionSpec = {
  short: '-f',
  value: 'FALLOCATE',
  help: 'Size of the COW file, in MiB. Default, and meaning of 0: 10 % of the volume.',
};
const IGNORE: OptionSpec = {
  short: '-i',
  help: 'Accepted and shown in the status. Reads of a failed snapshot give an error all the same: never wrong data.',
};

const EXITS: readonly ExitSpec[] = [
  { status: 0, meaning: 'Done.' },
  {
    status: DRIVER_FAILED,
    meaning: 'Failed: wrong arguments, refused, or an error; the last line on stderr says which.',
  },
  { status: 130, meaning: 'Interrupted by Ctrl-C.' },
];

function setupAndReload(extra: readonly OptionSpec[], where: string): CommandSpec[] {
  return [
    {
      name: 'setup-snapshot',
      summary: 'Take the first snapshot of a volume',
      description: [`DEVICE has to be attached (\`cowbird attach\`) and mounted read-write. ${where}`],
      operands: [DEVICE, COWFILE, MINOR],
      options: [CACHE, FALLOCATE, ...extra],
    },
    {
      name: 'reload-snapshot',
      summary: 'Go on with a snapshot after a clean stop',
      description: ['To be called while the volume is not mounted read-write; verified when it is mounted.'],
      operands: [DEVICE, RELOAD_COWFILE, MINOR],
      options: [CACHE, ...extra],
    },
    {
      name: 'reload-incremental',
      summary: 'Go on with incremental tracking after a clean stop',
      description: ['As reload-snapshot, for a COW file that was left in incremental mode.'],
      operands: [DEVICE, RELOAD_COWFILE, MINOR],
      options: [CACHE, ...extra],
    },
  ];
}

const TRANSITIONS: readonly CommandSpec[] = [
  {
    name: 'destroy',
    summary: 'End a snapshot or incremental tracking',
    description: [
      'Deletes the COW file when the snapshot is active or failed; leaves it when it is unverified, or dormant and on the volume itself.',
    ],
    operands: [MINOR],
    options: [],
  },
  {
    name: 'transition-to-incremental',
    summary: 'From snapshot to incremental mode',
    description: ["The snapshot's device goes; from then on changes are only marked."],
    operands: [MINOR],
    options: [],
  },
  {
    name: 'transition-to-snapshot',
    summary: 'From incremental mode to the next snapshot',
    description: ['The old COW file is left behind with the list of what changed: update-img takes it.'],
    operands: [COWFILE, MINOR],
    options: [{ ...FALLOCATE, help: 'Size of the COW file, in MiB. Default, and meaning of 0: as at setup.' }],
  },
  {
    name: 'reconfigure',
    summary: 'Change the index cache of a snapshot',
    description: ['Without -c it goes back to the default.'],
    operands: [MINOR],
    options: [CACHE],
  },
];

const EXPANSION: readonly CommandSpec[] = [
  {
    name: 'expand-cow-file',
    summary: 'Make the COW file larger',
    description: ['For an active snapshot.'],
    operands: [{ name: 'SIZE', help: 'By how much, in MiB.' }, MINOR],
    options: [],
  },
  {
    name: 'reconfigure-auto-expand',
    summary: 'Let the COW file grow by itself',
    description: ['A STEP of 0 ends that.'],
    operands: [{ name: 'STEP', help: 'By how much it grows each time, in MiB.' }, MINOR],
    options: [
      { short: '-r', value: 'RESERVED', help: 'Space that stays free on the file system, in MiB. Default: 0.' },
    ],
  },
];

const QUERIES: readonly CommandSpec[] = [
  {
    name: 'info',
    summary: 'Print the status of a snapshot as JSON',
    description: ['The fields of /run/cowbird/info.'],
    operands: [MINOR],
    options: [],
  },
  {
    name: 'get-free-minor',
    summary: 'Print the lowest minor in no use',
    description: ['The number alone on stdout.'],
    operands: [],
    options: [],
  },
];

const HELP: CommandSpec = {
  name: 'help',
  summary: 'Show help',
  description: ['Shows this help.'],
  operands: [],
  options: [],
};

const COMMON = [
  'Success prints nothing. A failure says cause and advice on stderr, and last the line that the original tool prints.',
  'Numbers are decimal: 010 is ten. Options may stand before or after the operands.',
];

export const DBDCTL: ProgramSpec = {
  name: 'dbdctl',
  summary: "dattobd's command, for Cowbird",
  description: [
    "Has the verbs, options and units of dattobd's dbdctl, and works on volumes that are attached to Cowbird.",
    ...COMMON,
  ],
  commands: [
    ...setupAndReload([], 'The COW file has to lie on the volume itself.'),
    ...TRANSITIONS,
    ...EXPANSION,
    HELP,
  ],
  operands: [],
  options: [VERSION_OPTION, HELP_OPTION],
  exits: EXITS,
  environment: ENVIRONMENT,
  files: [
    { name: '/dev/dattoMINOR', help: 'Link to the device node of a snapshot that was made through dbdctl.' },
    ...FILES,
  ],
  seeAlso: ['cowbird(8)', 'elioctl(8)', 'update-img(8)'],
  examples: [
    {
      command: 'dbdctl setup-snapshot -f 4096 /dev/loop3 /srv/.datto 0',
      meaning: 'Snapshot 0 with a COW file of 4096 MiB.',
    },
  ],
};

export const ELIOCTL: ProgramSpec = {
  name: 'elioctl',
  summary: "elastio-snap's command, for Cowbird",
  description: [
    "Has the verbs, options and units of elastio-snap's elioctl, and works on volumes that are attached to Cowbird.",
    ...COMMON,
  ],
  commands: [
    ...setupAndReload([IGNORE], 'The COW file may lie on the volume itself or anywhere else.'),
    ...TRANSITIONS,
    ...QUERIES,
    HELP,
  ],
  operands: [],
  options: [VERSION_OPTION, HELP_OPTION],
  exits: EXITS,
  environment: ENVIRONMENT,
  files: [
    { name: '/dev/elastio-snapMINOR', help: 'Link to the device node of a snapshot that was made through elioctl.' },
    ...FILES,
  ],
  seeAlso: ['cowbird(8)', 'dbdctl(8)', 'update-img(8)'],
  examples: [
    {
      command: 'elioctl setup-snapshot /dev/loop3 /var/tmp/store 0',
      meaning: 'Snapshot 0 with a COW file on another file system.',
    },
  ],
};
