/**
 * A live backup that comes to grief while the file system is frozen: `live-frozen-child NODE REPOSITORY TIMEOUT_SECONDS HOW POST_THAW`.
 *
 * Says `frozen` on stdout in the freeze, then is killed, stopped, or hangs for a while; the version or the error's code at last.
 */
import { writeSync } from 'node:fs';
import * as cowbird from '../src/index.js';
import { CowbirdError } from '../src/sys/errors.js';

const HANG_MS = 2_500;
const [node = '', repository = '', timeoutSeconds = '5', how = '', postThaw = ''] = process.argv.slice(2);

function onFrozen(): void {
  writeSync(1, 'frozen\n');
  if (how === 'killed') process.kill(process.pid, 'SIGKILL');
  else if (how === 'stopped') process.kill(process.pid, 'SIGSTOP');
  else if (how === 'hung') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, HANG_MS);
}

try {
  const live = { freezeTimeoutSeconds: Number(timeoutSeconds), postThaw, onFrozen };
  const { version } = await cowbird.backup(node, repository, { whole: true, live });
  writeSync(1, `version ${version}\n`);
} catch (error) {
  writeSync(1, `${error instanceof CowbirdError ? error.code : 'other'}: ${String(error)}\n`);
}
