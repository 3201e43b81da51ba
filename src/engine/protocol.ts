/**
 * The protocol between keeper, engine and helpers, as a number.
 *
 * The three may be of different versions: `daemon restart` starts the engine that is on disk under a keeper that has run for
 * months, and a package that was replaced leaves an old engine that starts new helpers. The number covers all that crosses
 * between them or outlives one of them: `KeeperCalls`, `HelperCalls`, the records, the layout of a volume's memory file.
 *
 * Raise {@link ENGINE_PROTOCOL} with every change by which the other side would be misled, and {@link OLDEST_KEEPER} when
 * such a change cannot be bridged. A new optional field or a new call that is not needed is no such change.
 */
import { execFile } from 'node:child_process';
import * as v from 'valibot';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { VERSION } from '../version.js';

export const ENGINE_PROTOCOL = 3;
/** The oldest keeper that this engine can work for. */
export const OLDEST_KEEPER = 3;

/** Argument of the engine's program that makes it print its {@link EngineReport} and end. */
export const REPORT_ARGUMENT = '--protocol';
const REPORT_TIMEOUT_MS = 20_000;

/** What an engine's program says of itself. Fields may be added; these three stay. */
export interface EngineReport {
  version: string;
  protocol: number;
  oldestKeeper: number;
}

const Report = v.object({ version: v.string(), protocol: v.number(), oldestKeeper: v.number() });

/** What this version of the engine says of itself. */
export function engineReport(): EngineReport {
  return { version: VERSION, protocol: ENGINE_PROTOCOL, oldestKeeper: OLDEST_KEEPER };
}

/** Whether an engine can work for a keeper of this protocol. */
export function worksFor(engine: EngineReport, keeperProtocol: number): boolean {
  return keeperProtocol >= engine.oldestKeeper && keeperProtocol <= engine.protocol;
}

/**
 * Refuses, on the engine's side, to work for a keeper of another protocol. To be called before anything is touched: the
 * keeper then lets the volumes wait and tries again, so that they go on when a fitting version is on disk.
 *
 * @throws {CowbirdError} EPROTO
 */
export function requireKeeper(keeperProtocol: number): void {
  const engine = engineReport();
  if (worksFor(engine, keeperProtocol)) return;
  throw new CowbirdError(
    'EPROTO',
    `The engine on disk is Cowbird ${engine.version} and cannot work under the running daemon, whose version was replaced on disk: the volumes wait until that version is installed again`,
  );
}

/**
 * Makes sure, before a running engine is ended, that the program on disk can take its place: that it starts at all, and works
 * for a keeper of this protocol.
 *
 * @throws {CowbirdError} EPROTO or ENOEXEC; nothing was changed.
 */
export async function requireSuccessor(program: string, keeper: { protocol: number; version: string }): Promise<void> {
  const engine = await reportOf(program);
  if (worksFor(engine, keeper.protocol)) return;
  throw new CowbirdError(
    'EPROTO',
    `The engine on disk is Cowbird ${engine.version}, which cannot go on under the running daemon of Cowbird ${keeper.version}: unmount the volumes, \`cowbird daemon stop\`, and the next command starts ${engine.version}. Nothing was changed`,
  );
}

function reportOf(program: string): Promise<EngineReport> {
  return new Promise((resolve, reject) => {
    const options = { timeout: REPORT_TIMEOUT_MS, killSignal: 'SIGKILL' as const, cwd: '/' };
    execFile(process.execPath, [program, REPORT_ARGUMENT], options, (error, stdout, stderr) => {
      try {
        if (error !== null) throw error;
        resolve(v.parse(Report, JSON.parse(stdout)));
      } catch (cause) {
        const why = stderr.split('\n').find((line) => /Error/.test(line)) ?? messageOf(cause).split('\n')[0];
        const message = `The engine on disk (${program}) does not run: ${why}. Install Cowbird again; the running engine was left alone`;
        reject(new CowbirdError('ENOEXEC', message, { cause }));
      }
    });
  });
}
