/** The commands of `cowbird` for tracking inside the kernel. */
import { type CommandSpec, JSON_OPTION } from './types.js';

const DISK = { name: 'DISK', help: 'Disk or partition, mounted or not.' } as const;

export const LIVE_COMMANDS: readonly CommandSpec[] = [
  {
    name: 'track',
    summary: 'Track what changes on a disk, inside the kernel',
    description: [
      'Starts an eBPF program that marks each 4 KiB block of the disk that is written or discarded. Nothing is attached or unmounted, and it goes on when no process of Cowbird runs, until untrack or a reboot. Does nothing where DISK is tracked for NAME already and the map can be trusted.',
      '`cowbird backup` tracks by itself, for its repository: this command is for seeing beforehand how much changes.',
      'Refused (ENOTSUP, with the reason) where the kernel or the disk does not let every write be seen; `cowbird doctor` says what a machine lacks.',
    ],
    operands: [DISK],
    options: [
      { long: '--user', value: 'NAME', help: 'For whom: each user has changes of its own. Default: track.' },
      JSON_OPTION,
    ],
    examples: [
      { command: 'cowbird track /dev/sda1', meaning: 'Begin; `cowbird tracking` tells how much has changed.' },
    ],
  },
  {
    name: 'untrack',
    summary: 'End tracking of a disk',
    description: [
      'Forgets what is known of the changes of DISK. With the last user of a disk its map and its program leave the kernel. The next backup of each repository then compares contents. Refused (EBUSY) while a version is being made.',
    ],
    operands: [DISK],
    options: [{ long: '--user', value: 'NAME', help: 'Only for this user. Default: for all of them.' }, JSON_OPTION],
  },
  {
    name: 'tracking',
    summary: 'List what is tracked inside the kernel',
    description: [
      'One line for each device and user: since when, how much has changed since the newest version, and whether the map can be trusted, or why not.',
    ],
    operands: [],
    options: [JSON_OPTION],
  },
];
