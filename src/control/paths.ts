/** Where a daemon keeps its files. Both directories are movable so that tests and several instances do not meet. */
import { join, resolve } from 'node:path';

export interface Paths {
  runDir: string;
  stateDir: string;
  /** Control socket, mode 0600. */
  socket: string;
  /** Status JSON, mode 0444, replaced by rename. */
  info: string;
  log: string;
  /** Mount points of the FUSE files. */
  fuseDir: string;
  pidFile: string;
}

/** The paths that the environment asks for; `/run/cowbird` and `/var/lib/cowbird` by default. */
export function pathsFrom(env: NodeJS.ProcessEnv): Paths {
  const runDir = resolve(env['COWBIRD_RUN_DIR'] || '/run/cowbird');
  return {
    runDir,
    stateDir: resolve(env['COWBIRD_STATE_DIR'] || '/var/lib/cowbird'),
    socket: join(runDir, 'control.sock'),
    info: join(runDir, 'info'),
    log: join(runDir, 'daemon.log'),
    fuseDir: join(runDir, 'fuse'),
    pidFile: join(runDir, 'keeper.pid'),
  };
}
