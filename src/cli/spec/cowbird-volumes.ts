/** The commands of `cowbird` for volumes and for the daemon. */
import { type CommandSpec, JSON_OPTION } from './types.js';

const VOLUME = { name: 'VOLUME', help: 'Name of the volume, its device node, its link or its origin.' } as const;

export const VOLUME_COMMANDS: readonly CommandSpec[] = [
  {
    name: 'attach',
    summary: 'Attach a disk, partition or image',
    description: [
      'Puts Cowbird between a disk and its users. The volume is a block device with the same bytes at the same places; nothing is written to the origin by attaching it. From then on mount the volume, not the origin.',
      "Prints the volume's device node, and nothing else, on stdout. A stable link to it is made as /dev/cowbird/NAME.",
      'Refused (EBUSY) while the origin is mounted, open exclusively, behind a loop device, attached already, or holds what Cowbird itself runs from.',
    ],
    operands: [{ name: 'ORIGIN', help: 'Disk, partition or image file.' }],
    options: [
      {
        long: '--name',
        value: 'NAME',
        help: 'Name of the volume, 1 to 64 of A-Z a-z 0-9 . _ -. Default: the base name of the origin.',
      },
      {
        long: '--workers',
        value: 'N',
        help: 'How many threads may serve the volume at once, 1 to 64. Default: one a CPU, 2 to 8.',
      },
      { long: '--read-only', help: 'Let nobody write to the volume.' },
      { long: '--raw', help: 'Take a file that looks like another image format (qcow2) as raw bytes.' },
      {
        long: '--boot',
        help: 'Attach it at every boot too, before file systems are mounted: writes units for systemd and a udev rule. The line for fstab is printed on stderr.',
      },
      { long: '--if-needed', help: 'Succeed if ORIGIN is attached as NAME already.' },
      JSON_OPTION,
    ],
    examples: [
      {
        command: 'DEV=$(cowbird attach /dev/sdb1) && mount "$DEV" /srv',
        meaning: 'Attach a partition and mount the volume.',
      },
      {
        command: 'cowbird attach --boot /dev/sdb1 --name data',
        meaning: 'Attach it now and at every boot, for an fstab line on /dev/cowbird/data.',
      },
      { command: 'cowbird attach disk.img --name test', meaning: 'Attach an image file as /dev/cowbird/test.' },
    ],
  },
  {
    name: 'detach',
    summary: 'Detach a volume',
    description: [
      'Takes a volume away; the origin can then be mounted directly. Returns when the device node is free again.',
      'Refused (EBUSY, naming the holder) while the volume is mounted, open or tracked: unmount it and destroy its snapshot first.',
    ],
    operands: [VOLUME],
    options: [
      {
        long: '--boot',
        help: 'Remove what attaches it at boot as well. A volume that is not attached now is named by its name.',
      },
      JSON_OPTION,
    ],
  },
  {
    name: 'list',
    summary: 'List the attached volumes',
    description: ['One line a volume: name, device node, origin, size, mode, minor and where it is mounted.'],
    operands: [],
    options: [JSON_OPTION],
  },
  {
    name: 'doctor',
    summary: 'Check what this machine has and lacks for Cowbird',
    description: [
      'One line a check, and what to do about each that is not well: kernel, limits, which of the ways of seeing writes work on this machine, programs that single commands call.',
    ],
    operands: [],
    options: [JSON_OPTION],
    exits: [{ status: 1, meaning: 'Something that Cowbird needs is missing.' }],
  },
  {
    name: 'events',
    summary: 'Print what happens, as it happens',
    description: [
      "Prints the daemon's events from now on, one line each: what was done, changes of state, stores that fill, what failed and why. docs/events.md lists them with their fields. Ends with the daemon or at Ctrl-C.",
    ],
    operands: [],
    options: [{ ...JSON_OPTION, help: 'Print one JSON object a line; errors are then JSON on stderr.' }],
  },
  {
    name: 'completion',
    summary: 'Print completions for a shell',
    description: [
      'For bash: `cowbird completion bash > /etc/bash_completion.d/cowbird`, or `source <(cowbird completion bash)` in ~/.bashrc. For zsh: `cowbird completion zsh > /usr/local/share/zsh/site-functions/_cowbird`, or `source <(cowbird completion zsh)` behind compinit in ~/.zshrc.',
      'They complete the commands, options and operands of `cowbird`, `dbdctl`, `elioctl` and `update-img`. Volumes and minors are looked up under /dev; no daemon is asked, or started.',
    ],
    operands: [{ name: 'SHELL', help: 'bash or zsh.' }],
    options: [JSON_OPTION],
  },
  {
    name: 'help',
    summary: 'Show help',
    description: ['Shows the help of Cowbird, or of one command.'],
    operands: [
      {
        name: 'COMMAND',
        help: 'A command: `cowbird help attach`, `cowbird help daemon start`.',
        optional: true,
        many: true,
      },
    ],
    options: [JSON_OPTION],
  },
];

export const DAEMON_COMMANDS: readonly CommandSpec[] = [
  {
    name: 'daemon start',
    summary: 'Start the daemon',
    description: [
      'Starts the daemon and attaches again what was attached and not detached, so that reload-snapshot and reload-incremental find it. Does nothing where it runs. Commands that need the daemon start it themselves.',
    ],
    operands: [],
    options: [JSON_OPTION],
  },
  {
    name: 'daemon stop',
    summary: 'Stop the daemon',
    description: [
      'Makes snapshots dormant and their COW files clean, detaches the volumes and ends the daemon. Refused while a volume is mounted or open, unless forced. Does nothing where none runs.',
    ],
    operands: [],
    options: [
      {
        long: '--wait',
        value: 'SECONDS',
        help: 'While a volume is in use, try again for so long before refusing. Default: 0.',
      },
      { long: '--force', help: 'Stop although a volume is in use: its users get I/O errors from then on.' },
      JSON_OPTION,
    ],
  },
  {
    name: 'daemon restart',
    summary: 'Start the engine anew under the attached volumes',
    description: [
      "Swaps the engine's process while volumes stay attached and mounted: their users wait, and see no error. The new one is the version that is installed: this is the live upgrade. The keeper's own code stays until `daemon stop`.",
      'Refused, with the old engine left running, when the installed one does not start or cannot work under the running keeper.',
    ],
    operands: [],
    options: [JSON_OPTION],
  },
  {
    name: 'daemon status',
    summary: 'Say whether the daemon runs',
    description: [
      'Prints the process ids and for how long the daemon has run, and the versions of keeper, engine and command where they differ. Never starts one.',
    ],
    operands: [],
    options: [JSON_OPTION],
    exits: [{ status: 1, meaning: 'No daemon runs, or failed.' }],
  },
  {
    name: 'daemon unit',
    summary: "Print the daemon's unit for systemd",
    description: [
      'For `cowbird daemon unit > /etc/systemd/system/cowbird.service`, which makes systemd start the daemon, also where a command needs it. `cowbird attach --boot` writes it itself where it is missing.',
    ],
    operands: [],
    options: [JSON_OPTION],
  },
];
