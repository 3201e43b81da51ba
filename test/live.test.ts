/** Live backups of mounted disks that Cowbird was never attached to: every version is the disk at the moment of its freeze. */
import { test } from 'node:test';
import { type Configuration, titleOf, versionsOfBusyDisk } from './live-scenarios.js';
import { CANNOT_TRACK } from './tracking-lab.js';

/** Chains of ten of each are in the long run. */
const CONFIGURATIONS: readonly Configuration[] = [
  { type: 'ext4', isPartitioned: false, versions: 2 },
  { type: 'xfs', isPartitioned: false, versions: 2 },
  { type: 'ext4', isPartitioned: true, versions: 5 },
  { type: 'xfs', isPartitioned: true, versions: 2 },
];

for (const configuration of CONFIGURATIONS)
  test(titleOf(configuration), { skip: CANNOT_TRACK }, (t) => versionsOfBusyDisk(t, configuration));
