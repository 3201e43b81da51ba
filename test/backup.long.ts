/** The long run (`npm run test:long`): backups killed many times more. */
import { test } from 'node:test';
import { killBackups } from './backup-scenarios.js';
import { CANNOT, Lab } from './lab.js';

const KILLS = Number(process.env['COWBIRD_LONG_BACKUP_KILLS'] ?? 100);

test(`killed ${KILLS} times under a busy writer, the next backup misses nothing`, { skip: CANNOT }, (t) =>
  killBackups(t, new Lab(t), KILLS),
);
