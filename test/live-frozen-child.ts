/**
 * A live backup that comes to grief while the file system is frozen:
 * `live-frozen-child NODE REPOSITORY TIMEOUT_SECONDS HOW POST_THAW`, or `NODE,NODE REPOSITORY,REPOSITORY …` for two at one moment.
 *
 * Says `frozen` on stdout in the freeze, then is killed, stopped, hangs for a while, or kills the helper that guards the freeze; the
 * version or the error's code at last.
 */
import { readFileSync, writeSync } from 'node:fs';
import * as cowbird from '../src/index.js';
import { CowbirdError } from '../src/sys/errors.js';

const HANG_MS = 2_500;
const [node = '', repository = '', timeoutSeconds = '5', how = '', postThaw = ''] = process.argv.slice(2);

let isFrozen = false;

/** Is called for each disk: all are frozen by then. */
function onFrozen(): void {
  if (isFrozen) return;
  isFrozen = true;
  writeSync(1, 'frozen\n');
  if (how === 'killed') process.kill(process.pid, 'SIGKILL');
  else if (how === 'stopped') process.kill(process.pid, 'SIGSTOP');
  else if (how === 'unguarded') {
    const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ');
    const isHelper = (pid: string): boolean => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('freeze-helper');
    for (const pid of children.filter(isHelper)) process.kill(Number(pid), 'SIGKILL');
  } else if (how === 'hung') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, HANG_MS);
}

try {
  const live = { freezeTimeoutSeconds: Number(timeoutSeconds), postThaw, onFrozen };
  const [nodes, repositories] = [node.split(','), repository.split(',')];
  if (nodes.length > 1) {
    const pairs = nodes.map((source, i) => ({ source, repository: repositories[i] ?? '' }));
    const { backups } = await cowbird.backupTogether(pairs, { live });
    writeSync(1, `version ${backups.map(({ version }) => version).join()}\n`);
  } else {
    const { version } = await cowbird.backup(node, repository, { whole: true, live });
    writeSync(1, `version ${version}\n`);
  }
} catch (error) {
  writeSync(1, `${error instanceof CowbirdError ? error.code : 'other'}: ${String(error)}\n`);
}
