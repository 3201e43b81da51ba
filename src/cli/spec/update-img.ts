/** `update-img`. */
import { ENVIRONMENT, FILES, HELP_OPTION, type ProgramSpec, VERSION_OPTION } from './types.js';

export const UPDATE_EXIT = { blockErrors: 1, noSnapshot: 2, mismatch: 22, interrupted: 130 } as const;

export const UPDATE_IMG: ProgramSpec = {
  name: 'update-img',
  summary: 'bring a backup image up to a snapshot by copying only what changed',
  description: [
    'Copies the blocks that COWFILE lists from SNAPSHOT over IMAGE, which must be an image of the snapshot before. Nothing else of IMAGE is written, and it is synced to its disk before success is told. Interrupted or killed at any point it can be run again with the same arguments.',
    'COWFILE has to be the one that the transition to SNAPSHOT left behind: same series, one sequence number less, closed cleanly. Otherwise nothing is written.',
    'With --scan no COWFILE is needed: snapshot and image are both read and compared, and the blocks that differ are written. That is the way on after a power failure, when the list of changes may have holes.',
  ],
  commands: [],
  operands: [
    { name: 'SNAPSHOT', help: 'Device of the snapshot: /dev/cowbird0, /dev/datto0 or the node behind it.' },
    { name: 'COWFILE', help: 'COW file of the sequence before. Left out with --scan.' },
    { name: 'IMAGE', help: 'Image of the snapshot before; a file or a block device.' },
  ],
  options: [
    { long: '--scan', help: 'Compare the contents instead of trusting a list of changes.' },
    VERSION_OPTION,
    HELP_OPTION,
  ],
  exits: [
    { status: 0, meaning: 'Done: the image is the snapshot.' },
    { status: UPDATE_EXIT.blockErrors, meaning: 'Some blocks could not be read or written; the others were copied.' },
    { status: UPDATE_EXIT.noSnapshot, meaning: 'SNAPSHOT, COWFILE or IMAGE does not exist.' },
    {
      status: UPDATE_EXIT.mismatch,
      meaning: 'Wrong usage, or COWFILE or IMAGE does not belong to SNAPSHOT; nothing was written.',
    },
    {
      status: UPDATE_EXIT.interrupted,
      meaning: 'Interrupted by Ctrl-C. Any other status is the errno of what failed.',
    },
  ],
  environment: ENVIRONMENT,
  files: FILES,
  seeAlso: ['cowbird(8)', 'dbdctl(8)', 'elioctl(8)'],
  examples: [
    {
      command: 'update-img /dev/cowbird0 /srv/.cow1 backup.img',
      meaning: 'Update an image after transition-to-snapshot.',
    },
    { command: 'update-img --scan /dev/cowbird0 backup.img', meaning: 'Update it with no list of changes.' },
  ],
};
