/**
 * The client of the control socket: one typed call an operation, and the daemon started where it is not running.
 *
 * A call that finds no socket, or one that nobody listens on, starts the daemon first (own session, `/` as working
 * directory, no descriptor of the caller's), so that `DEV=$(cowbird attach …)` returns at once and Ctrl-C reaches only the
 * command.
 */
import { type IncomingMessage, request } from 'node:http';
import { createInterface } from 'node:readline';
import * as v from 'valibot';
import { CowbirdError } from '../sys/errors.js';
import { launchDaemon } from './launch.js';
import { type Paths, pathsFrom } from './paths.js';
import {
  API_MAJOR,
  type DaemonStatus,
  type EventRecord,
  MAJORLESS_OPERATIONS,
  type OperationName,
  type OperationParams,
  type OperationResults,
} from './schema.js';
import { otherMajor, strangeAnswer } from './skew.js';

export interface ClientOptions {
  /** Environment that names the directories. @default process.env */
  env?: NodeJS.ProcessEnv;
  /** Start the daemon when it is not running. @default true */
  autostart?: boolean;
  signal?: AbortSignal;
}

const ErrorAnswer = v.object({
  error: v.object({
    code: v.string(),
    errno: v.number(),
    message: v.string(),
    /** A newer daemon may have more of them: then something was done, and nobody here knows what. */
    outcome: v.fallback(v.picklist(['refused', 'failed', 'partial']), 'failed'),
  }),
});

/**
 * Calls one operation on the daemon.
 *
 * @throws {CowbirdError} what the daemon answered; `ENOTCONN` when no daemon runs and `autostart` is off.
 */
export async function call<N extends OperationName>(
  operation: N,
  params: OperationParams<N>,
  options: ClientOptions = {},
): Promise<OperationResults[N]> {
  const env = options.env ?? process.env;
  const paths = pathsFrom(env);
  try {
    return await post(paths, operation, params, options.signal);
  } catch (error) {
    if (!isNobodyThere(error)) throw error;
    if (options.autostart === false) {
      throw new CowbirdError(
        'ENOTCONN',
        `No Cowbird daemon runs in ${paths.runDir}: start it with \`cowbird daemon start\``,
      );
    }
    await launchDaemon(paths, env);
    return await post(paths, operation, params, options.signal);
  }
}

/** The running daemon's status, or undefined where none runs. Never starts one. */
export async function daemonStatus(options: ClientOptions = {}): Promise<DaemonStatus | undefined> {
  try {
    return await call('daemonStatus', {}, { ...options, autostart: false });
  } catch (error) {
    if (error instanceof CowbirdError && error.code === 'ENOTCONN') return undefined;
    throw error;
  }
}

/**
 * The daemon's events from now on; ends with the daemon or when `signal` is aborted. `onOpen` is called when no event can be
 * missed any more.
 */
export async function* events(
  options: ClientOptions & { onOpen?: () => void } = {},
): AsyncGenerator<EventRecord, void, undefined> {
  const paths = pathsFrom(options.env ?? process.env);
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const path = `/v${API_MAJOR}/events`;
    const req = request({ socketPath: paths.socket, agent: false, path, signal: options.signal }, resolve);
    req.on('error', (error) => reject(isNobodyThere(error) ? noDaemon(paths) : error));
    req.end();
  });
  if (response.statusCode !== 200) {
    response.destroy();
    throw otherMajor(paths, response) ?? new CowbirdError('EPROTO', `The daemon in ${paths.runDir} has no events`);
  }
  options.onOpen?.();
  try {
    for await (const line of createInterface({ input: response })) {
      if (line !== '') yield parseEvent(line);
    }
  } catch (error) {
    if (options.signal?.aborted !== true) throw error;
  } finally {
    response.destroy();
  }
}

const EventLine = v.looseObject({
  time: v.string(),
  event: v.string(),
  level: v.fallback(v.picklist(['info', 'warning', 'error']), 'info'),
  message: v.string(),
});
const EventField = v.union([v.string(), v.number(), v.boolean(), v.null()]);

/** One event. Fields of a newer daemon that no {@link EventRecord} can have are left out. */
export function parseEvent(line: string): EventRecord {
  const { time, event, level, message, ...others } = v.parse(EventLine, JSON.parse(line));
  const fields = Object.entries(others).flatMap(([name, value]) => {
    const field = v.safeParse(EventField, value);
    return field.success ? [[name, field.output] as const] : [];
  });
  return { time, event, level, message, ...Object.fromEntries(fields) };
}

function noDaemon(paths: Paths): CowbirdError {
  return new CowbirdError(
    'ENOTCONN',
    `No Cowbird daemon runs in ${paths.runDir}: start it with \`cowbird daemon start\``,
  );
}

function isNobodyThere(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') &&
    'syscall' in error
  );
}

async function post<N extends OperationName>(
  paths: Paths,
  operation: N,
  params: OperationParams<N>,
  signal: AbortSignal | undefined,
): Promise<OperationResults[N]> {
  const body = JSON.stringify(params);
  const response = await new Promise<{ text: string; message: IncomingMessage }>((resolve, reject) => {
    const req = request(
      {
        socketPath: paths.socket,
        // A connection of its own: one that is kept may have been closed by the daemon while this program was busy.
        agent: false,
        method: 'POST',
        path: `/v${API_MAJOR}/${operation}`,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
        signal,
      },
      (message) => {
        let text = '';
        message.setEncoding('utf8');
        message.on('data', (chunk: string) => {
          text += chunk;
        });
        message.on('end', () => resolve({ text, message }));
        message.on('error', reject);
      },
    );
    req.on('error', reject);
    req.end(body);
  });
  if (!MAJORLESS_OPERATIONS.has(operation)) {
    const skew = otherMajor(paths, response.message);
    if (skew !== undefined) throw skew;
  }
  return parseAnswer<N>(paths, operation, response.text);
}

/** The result is taken as it comes: what a newer daemon has more is no harm. */
function parseAnswer<N extends OperationName>(paths: Paths, operation: N, text: string): OperationResults[N] {
  let answer: { result?: OperationResults[N] } | null;
  try {
    answer = JSON.parse(text);
  } catch (cause) {
    throw strangeAnswer(paths, operation, cause);
  }
  const failed = v.safeParse(ErrorAnswer, answer);
  if (failed.success) {
    const { code, message, outcome } = failed.output.error;
    throw new CowbirdError(code, message, { outcome });
  }
  if (answer?.result === undefined) throw strangeAnswer(paths, operation);
  return answer.result;
}
