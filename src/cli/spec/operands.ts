/** Operands and options that several commands of all four programs share. */
import type { OperandSpec, OptionSpec } from './types.js';

export const MINOR: OperandSpec = { name: 'MINOR', help: 'Number of the snapshot, 0 to 255, decimal.' };

export const DEVICE: OperandSpec = {
  name: 'DEVICE',
  help: 'The attached volume: its device node, its link in /dev/cowbird, or its origin.',
};

export const COWFILE: OperandSpec = {
  name: 'COWFILE',
  help: 'Path of the COW file that is made; nothing may be there yet.',
};

export const RELOAD_COWFILE: OperandSpec = {
  name: 'COWFILE',
  help: "Path of the COW file from the root of the volume's file system (/.cow), or in full when it lies elsewhere.",
};

export const CACHE: OptionSpec = {
  short: '-c',
  long: '--cache',
  value: 'CACHE',
  help: 'Memory for the index, as dattobd counts it; a bare number is bytes. Default, and meaning of 0: 300 MiB.',
};

export const STORE_SIZE: OptionSpec = {
  short: '-f',
  long: '--size',
  value: 'SIZE',
  help: 'Size of the COW file; a bare number is MiB. Default, and meaning of 0: 10 % of the volume.',
};

export const HOOKS: readonly OptionSpec[] = [
  {
    long: '--pre-freeze',
    value: 'CMD',
    help: 'Command to run before the file systems are frozen. When it fails nothing is taken. The daemon runs it as root by `sh -c` in /, with COWBIRD_HOOK, COWBIRD_MINORS and COWBIRD_VOLUMES in its environment; under cowbird.service it can neither change user nor open network sockets (docs/limits.md). In a backup by engine live a helper of the command runs it, with COWBIRD_HOOK and COWBIRD_DEVICES and without these limits.',
  },
  {
    long: '--post-thaw',
    value: 'CMD',
    help: 'Command to run after they are thawed, whatever happened before. It may run twice when the engine ends meanwhile.',
  },
  { long: '--hook-timeout', value: 'SECONDS', help: 'How long each of them may take, 1 to 3600. Default: 30.' },
];

/** Of the commands that open a repository. */
export const WAIT: OptionSpec = {
  long: '--wait',
  value: 'SECONDS',
  optionalValue: true,
  help: 'Wait while another process has the repository, at most SECONDS; without a number as long as it takes. Default: give up at once.',
};
