/**
 * Program of the daemon: the keeper, with the control socket. It answers `daemon status` even while no engine does.
 */
import {
  chmodSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  rmSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { examineMachine } from '../engine/doctor.js';
import { EngineKeeper } from '../engine/keeper.js';
import { infoFromRecords, listFromRecords } from '../engine/keeper-view.js';
import { GroupGuard, lockProgramText, protectKeeper } from '../engine/protection.js';
import { ENGINE_PROTOCOL, requireSuccessor } from '../engine/protocol.js';
import { cleanUpStale } from '../engine/stale.js';
import { nodesOf, requireSwappable } from '../engine/swap.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { tryLockFile } from '../sys/fsfile.js';
import { notify } from '../sys/notify.js';
import { VERSION } from '../version.js';
import { EXIT_RUNS_ALREADY } from './launch.js';
import { LogStream } from './log-stream.js';
import { parseParams } from './params.js';
import { pathsFrom } from './paths.js';
import { API_MAJOR, type DaemonStatus, type EventInput, type EventRecord } from './schema.js';
import { createControlServer } from './server.js';

const paths = pathsFrom(process.env);
/** How long an engine may take to say what the keeper could say as well. */
const ANSWER_MS_MAX = 2_000;
const LATE = Symbol('late');
const startedAt = Date.now();
// Ours alone: engine and helpers must not inherit it.
const notifySocket = process.env['NOTIFY_SOCKET'];
delete process.env['NOTIFY_SOCKET'];
const listeners = new Set<(event: EventRecord) => void>();
const log = pino({ base: null, timestamp: pino.stdTimeFunctions.isoTime }, new LogStream(1, paths.log));

function emit(event: EventInput): void {
  const { level, message, ...fields } = event;
  const record: EventRecord = { ...event, time: new Date().toISOString() };
  if (level === 'error') log.error(fields, message);
  else if (level === 'warning') log.warn(fields, message);
  else log.info(fields, message);
  for (const listener of listeners) listener(record);
}

const enginePath = join(dirname(fileURLToPath(import.meta.url)), 'engine-main.js');
const keeper = new EngineKeeper({
  enginePath,
  engineStart: null,
  onEvent: emit,
  beforeProcess: () => guard.leaveNow(),
});
const guard = new GroupGuard(() => keeper.enginePid, emit);

async function status(): Promise<DaemonStatus> {
  return {
    running: true,
    version: VERSION,
    engineVersion: keeper.engineVersion,
    engineProblem: keeper.refusal,
    apiMajor: API_MAJOR,
    keeperPid: process.pid,
    enginePid: keeper.enginePid,
    engineAnswers: await keeper.engineAnswers(),
    uptimeSeconds: Math.floor((Date.now() - startedAt) / 1000),
    engineRestarts: keeper.restarts,
  };
}

async function call(operation: string, params: unknown): Promise<unknown> {
  switch (operation) {
    case 'daemonStatus':
      return status();
    case 'doctor':
      return { version: VERSION, checks: examineMachine() };
    case 'daemonRestart':
      // The old engine is the only one that is known to work: what is on disk must show itself first.
      await requireSuccessor(enginePath, { protocol: ENGINE_PROTOCOL, version: VERSION });
      await requireSwappable(nodesOf(keeper.volumes));
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
    case 'list':
      return orInstead(keeper.request(operation, params), () => listFromRecords(keeper.volumes));
    case 'info':
      return orInstead(keeper.request(operation, params), () =>
        infoFromRecords(keeper.volumes, parseParams('info', params).minor),
      );
    default:
      return keeper.request(operation, params);
  }
}

/** The engine's answer, or what the keeper knows itself when that does not come in time. */
async function orInstead(answer: Promise<unknown>, instead: () => unknown): Promise<unknown> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<typeof LATE>((resolve) => {
    timer = setTimeout(() => resolve(LATE), ANSWER_MS_MAX);
  });
  // Should it still come, or fail, nobody waits for it any more.
  answer.catch(() => undefined);
  const first = await Promise.race([answer, late]);
  clearTimeout(timer);
  return first === LATE ? instead() : first;
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
  for (const file of [paths.socket, paths.info]) rmSync(file, { force: true });
  process.exit(0);
}

/** One daemon a run directory: the lock is held as long as this process lives, and by nobody else. */
function claimRunDirectory(): void {
  mkdirSync(paths.runDir, { recursive: true, mode: 0o755 });
  mkdirSync(paths.stateDir, { recursive: true, mode: 0o700 });
  const fd = openSync(paths.pidFile, 'a+', 0o644);
  if (!tryLockFile(fd)) throw new CowbirdError('EBUSY', `A Cowbird daemon runs already in ${paths.runDir}`);
  ftruncateSync(fd);
  writeSync(fd, `${process.pid}\n`);
}

/** A service manager that cannot be told is no reason to end: that would be an I/O error for every volume. */
function tellReady(): void {
  try {
    notify('READY=1', { NOTIFY_SOCKET: notifySocket });
  } catch (error) {
    emit({ event: 'notify.failed', level: 'warning', message: `Not told to the service manager: ${messageOf(error)}` });
  }
}

async function main(): Promise<void> {
  claimRunDirectory();
  protectKeeper(emit);
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
  // What is ordered after this service may call from here on.
  tellReady();
  emit({ event: 'daemon.started', level: 'info', message: `Cowbird ${VERSION} serves ${paths.runDir}` });
  // The next engine starts from the same pages: they stay in memory with the keeper's lock. The engine reports a refusal.
  await lockProgramText(() => undefined);
}

process.on('SIGTERM', () => {
  call('daemonStop', { force: false }).catch((error: unknown) =>
    emit({ event: 'daemon.refused', level: 'error', message: `SIGTERM: ${messageOf(error)}` }),
  );
});
process.on('SIGINT', () => undefined);
process.on('SIGHUP', () => undefined);

// This process holds every volume's descriptor: its end is an I/O error for all of them. Whatever went wrong in one
// operation is reported, and the others go on.
// Node's own words about a warning would go to standard error, and wait for its reader.
process.removeAllListeners('warning');
process.on('warning', (warning) => log.warn(warning.stack ?? warning.message));

for (const name of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(name, (error: unknown) => {
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
    emit({ event: 'keeper.error', level: 'error', message: `${name}: ${stack}` });
  });
}

main().catch((error: unknown) => {
  const runsAlready = error instanceof CowbirdError && error.code === 'EBUSY';
  try {
    log.fatal(messageOf(error));
    const report = process.env['COWBIRD_START_ERROR'];
    if (report !== undefined && !runsAlready) writeFileSync(report, messageOf(error));
  } finally {
    // Whatever cannot be told: one that stayed would start engines for ever, and nobody could reach it.
    process.exit(runsAlready ? EXIT_RUNS_ALREADY : 1);
  }
});
