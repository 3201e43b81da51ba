/** The long run (`npm run test:long`): chains of ten live versions, on each kind of file system and disk. */
import { test } from 'node:test';
import { titleOf, versionsOfBusyDisk } from './live-scenarios.js';
import { CANNOT_TRACK } from './tracking-lab.js';

const VERSIONS = Number(process.env['COWBIRD_LONG_LIVE_VERSIONS'] ?? 10);

for (const type of ['ext4', 'xfs'] as const)
  for (const isPartitioned of [false, true]) {
    const configuration = { type, isPartitioned, versions: VERSIONS };
    test(titleOf(configuration), { skip: CANNOT_TRACK }, (t) => versionsOfBusyDisk(t, configuration));
  }
