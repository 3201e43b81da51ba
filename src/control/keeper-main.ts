/**
 * Program of the daemon: the keeper, with the control socket. It answers `daemon status` even while no engine does.
 */
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { examineMachine } from '../engine/doctor.js';
import { EngineKeeper } from '../engine/keeper.js';
import { cleanUpStale } from '../engine/stale.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { pathsFrom } from './paths.js';
import { API_MAJOR, type DaemonStatus, type EventInput, type EventRecord, type OperationName } from './schema.js';
import { createControlServer } from './server.js';

const paths = pathsFrom(process.env);
const startedAt = Date.now();
const listeners = new Set<(event: EventRecord) => void>();
const log = pino({ base: null, timestamp: pino.stdTimeFunctions.isoTime });

function emit(event: EventInput): void {
  const { level, message, ...fields } = event;
  const record: EventRecord = { ...event, time: new Date().toISOString() };
  if (level === 'error') log.error(fields, message);
  else if (level === 'warning') log.warn(fields, message);
  else log.info(fields, message);
  for (const listener of listeners) listener(record);
}

const keeper = new EngineKeeper({
  enginePath: join(dirname(fileURLToPath(import.meta.url)), 'engine-main.js'),
  engineStart: null,
  onEvent: emit,
});

function status(): DaemonStatus {
  return {
    running: true,
    version: VERSION,
    apiMajor: API_MAJOR,
    keeperPid: process.pid,
    enginePid: keeper.enginePid,
    uptimeSeconds: Math.floor((Date.now() - startedAt) / 1000),
    engineRestarts: keeper.restarts,
  };
}

async function call(operation: OperationName, params: unknown): Promise<unknown> {
  switch (operation) {
    case 'daemonStatus':
      return status();
    case 'doctor':
      return { version: VERSION, checks: examineMachine() };
    case 'daemonRestart':
      await keeper.restart();
      return status();
    case 'daemonStop':
      await keeper.request(operation, params);
      setImmediate(() => {
        shutDown().catch((error: unknown) => {
          log.error(messageOf(error));
          process.exit(1);
        });
      });
      return {};
    default:
      return keeper.request(operation, params);
  }
}

const server = createControlServer({
  call,
  subscribe: (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
});

async function shutDown(): Promise<void> {
  emit({ event: 'daemon.stopped', level: 'info', message: 'The daemon ends' });
  await keeper.stop();
  server.close();
  server.closeAllConnections();
  for (const file of [paths.socket, paths.info, paths.pidFile]) rmSync(file, { force: true });
  process.exit(0);
}

/** Whether somebody listens on the socket; a file that nobody listens on is left from a daemon that was killed. */
function isServed(): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(paths.socket, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

/** One daemon a run directory: the pid file's holder lives, or its file is stale. */
async function claimRunDirectory(): Promise<void> {
  mkdirSync(paths.runDir, { recursive: true, mode: 0o755 });
  mkdirSync(paths.stateDir, { recursive: true, mode: 0o700 });
  const mine = `${paths.pidFile}.${process.pid}`;
  writeFileSync(mine, `${process.pid}\n`);
  try {
    if (existsSync(paths.pidFile) && (isOurDaemon(Number(readFileSync(paths.pidFile, 'utf8'))) || (await isServed()))) {
      throw new CowbirdError('EBUSY', `A Cowbird daemon runs already in ${paths.runDir}`);
    }
    renameSync(mine, paths.pidFile);
  } finally {
    rmSync(mine, { force: true });
  }
}

function isOurDaemon(pid: number): boolean {
  try {
    const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    return command.includes('keeper-main.js') && environment.includes(`COWBIRD_RUN_DIR=${paths.runDir}`);
  } catch {
    // No such process, or not ours to look at: not a daemon of root's.
    return false;
  }
}

async function main(): Promise<void> {
  await claimRunDirectory();
  for (const message of cleanUpStale(paths.fuseDir)) emit({ event: 'stale', level: 'warning', message });
  await keeper.start();
  if (existsSync(paths.socket)) unlinkSync(paths.socket);
  const mask = process.umask(0o177);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(paths.socket, () => resolve());
  });
  process.umask(mask);
  chmodSync(paths.socket, 0o600);
  emit({ event: 'daemon.started', level: 'info', message: `Cowbird ${VERSION} serves ${paths.runDir}` });
}

process.on('SIGTERM', () => {
  call('daemonStop', { force: false }).catch((error: unknown) =>
    emit({ event: 'daemon.refused', level: 'error', message: `SIGTERM: ${messageOf(error)}` }),
  );
});
process.on('SIGINT', () => undefined);
process.on('SIGHUP', () => undefined);

main().catch((error: unknown) => {
  log.fatal(messageOf(error));
  const report = process.env['COWBIRD_START_ERROR'];
  if (report !== undefined) writeFileSync(report, messageOf(error));
  process.exit(1);
});
