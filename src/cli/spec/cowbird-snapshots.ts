/** The commands of `cowbird` for snapshots: dattobd's verbs, and what it has no verb for. */
import { CACHE, COWFILE, DEVICE, HOOKS, MINOR, RELOAD_COWFILE, STORE_SIZE, WAIT } from './operands.js';
import { type CommandSpec, JSON_OPTION, type OperandSpec, type OptionSpec } from './types.js';

const TOGETHER: OptionSpec = {
  long: '--together',
  help: 'Take several volumes at one instant: all of them, or none. Prints the devices, one a line, and last how many milliseconds the writes of all of them were held (windowMs).',
};
const FREE_AWARE: OptionSpec = {
  long: '--free-aware',
  help: 'Do not save blocks that are free at this instant (ext4 and xfs): they read as zeros, so the snapshot holds every file but is not the volume bit for bit.',
};
const SETUP_TOGETHER: OperandSpec = {
  name: 'DEVICE:COWFILE:MINOR',
  help: 'With --together: a volume, its COW file and its minor. A DEVICE has no colon in this form: /dev/cowbird/NAME has none.',
  many: true,
};
const NEXT_TOGETHER: OperandSpec = {
  name: 'COWFILE:MINOR',
  help: 'With --together: the new COW file of a series, and its minor.',
  many: true,
};

export const SNAPSHOT_COMMANDS: readonly CommandSpec[] = [
  {
    name: 'setup-snapshot',
    summary: 'Take the first snapshot of a volume',
    description: [
      'Freezes the volume for a moment and keeps it as it is then, as a read-only block device /dev/cowbirdMINOR, whose path is printed. What is overwritten afterwards is saved in the COW file first, which may lie on the volume itself or anywhere else.',
      'DEVICE has to be attached (`cowbird attach`) and, for a COW file on the volume itself, mounted read-write.',
    ],
    operands: [DEVICE, COWFILE, MINOR],
    options: [TOGETHER, CACHE, STORE_SIZE, FREE_AWARE, ...HOOKS, JSON_OPTION],
    otherForm: { option: TOGETHER, operands: [SETUP_TOGETHER] },
    examples: [
      {
        command: 'cowbird setup-snapshot --together /dev/cowbird/data:/srv/.cow:0 /dev/cowbird/log:/log/.cow:1',
        meaning: 'A database and its log, on two volumes, at one instant.',
      },
      {
        command: 'cowbird setup-snapshot -f 4GiB /dev/loop3 /srv/.cow1 0',
        meaning: 'Snapshot 0 with a COW file of 4 GiB.',
      },
    ],
  },
  {
    name: 'reload-snapshot',
    summary: 'Go on with a snapshot after a clean stop',
    description: [
      'Takes up a snapshot whose COW file was left clean, after a reboot or a restart of the daemon. To be called while the volume is not mounted read-write; the snapshot is verified when it is mounted.',
    ],
    operands: [DEVICE, RELOAD_COWFILE, MINOR],
    options: [CACHE, JSON_OPTION],
  },
  {
    name: 'reload-incremental',
    summary: 'Go on with incremental tracking after a clean stop',
    description: ['As reload-snapshot, for a COW file that was left in incremental mode.'],
    operands: [DEVICE, RELOAD_COWFILE, MINOR],
    options: [CACHE, JSON_OPTION],
  },
  {
    name: 'destroy',
    summary: 'End a snapshot or incremental tracking',
    description: [
      "Removes the snapshot's device and ends tracking. The COW file is deleted when the snapshot is active or failed; an unverified one is left, and so is a dormant one on the volume itself, which is not mounted then. Refused (EBUSY) while the snapshot's device is open.",
    ],
    operands: [MINOR],
    options: [JSON_OPTION],
  },
  {
    name: 'transition-to-incremental',
    summary: 'From snapshot to incremental mode',
    description: [
      "The snapshot's device goes; from then on changes are only marked, which costs next to nothing. The COW file shrinks to its index.",
    ],
    operands: [MINOR],
    options: [JSON_OPTION],
  },
  {
    name: 'transition-to-snapshot',
    summary: 'From incremental mode to the next snapshot',
    description: [
      'Takes the next snapshot of the series into a new COW file and prints its device. The old COW file is left behind with the list of what changed between the two: `update-img` takes it. Allowed from a failed snapshot too.',
    ],
    operands: [COWFILE, MINOR],
    otherForm: { option: TOGETHER, operands: [NEXT_TOGETHER] },
    options: [
      TOGETHER,
      { ...STORE_SIZE, help: 'Size of the COW file; a bare number is MiB. Default, and meaning of 0: as at setup.' },
      FREE_AWARE,
      ...HOOKS,
      JSON_OPTION,
    ],
  },
  {
    name: 'reconfigure',
    summary: 'Change the index cache of a snapshot',
    description: ['Sets the index cache. Without -c it goes back to the default.'],
    operands: [MINOR],
    options: [CACHE, JSON_OPTION],
  },
  {
    name: 'expand-cow-file',
    summary: 'Make the COW file larger',
    description: ['Makes the COW file of an active snapshot larger by SIZE and prints its new size.'],
    operands: [{ name: 'SIZE', help: 'By how much; a bare number is MiB.' }, MINOR],
    options: [JSON_OPTION],
  },
  {
    name: 'reconfigure-auto-expand',
    summary: 'Let the COW file grow by itself',
    description: [
      'Lets the COW file of an active snapshot grow by STEP whenever it is about to be full. A STEP of 0 ends that.',
    ],
    operands: [{ name: 'STEP', help: 'By how much it grows each time; a bare number is MiB.' }, MINOR],
    options: [
      {
        short: '-r',
        long: '--reserve',
        value: 'RESERVED',
        help: 'Space that stays free on the file system; a bare number is MiB. Default: 0.',
      },
      JSON_OPTION,
    ],
  },
  {
    name: 'get-free-minor',
    summary: 'Print the lowest minor in no use',
    description: ['Prints the number alone on stdout.'],
    operands: [],
    options: [JSON_OPTION],
  },
  {
    name: 'info',
    summary: 'Show snapshots and incremental tracking',
    description: [
      "One line each: minor, state, device, COW file, how full it is, changed blocks and sequence number. With --json dattobd's fields, in its order.",
    ],
    operands: [{ ...MINOR, optional: true, help: 'Only this one.' }],
    options: [JSON_OPTION],
  },
  {
    name: 'changes',
    summary: 'Print what changed',
    description: [
      'Of a snapshot: what was written since it was taken (snapshot mode) or since the last transition (incremental mode). Of a repository: where two versions differ, found by their checksums.',
      'Prints count and size, then one byte range a line, as offset and length.',
    ],
    operands: [{ name: 'WHAT', help: 'Number of a snapshot, or REPO@A..B for two versions of a repository.' }],
    options: [WAIT, JSON_OPTION],
    examples: [{ command: 'cowbird changes /backup/data@3..7', meaning: 'What changed between versions 3 and 7.' }],
  },
];
