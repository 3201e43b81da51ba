/**
 * The client of the control socket: one typed call an operation, and the daemon started where it is not running.
 *
 * A call that finds no socket, or one that nobody listens on, starts the daemon first (own session, `/` as working
 * directory, no descriptor of the caller's), so that `DEV=$(cowbird attach …)` returns at once and Ctrl-C reaches only the
 * command.
 */
import { request } from 'node:http';
import { createInterface } from 'node:readline';
import * as v from 'valibot';
import { CowbirdError } from '../sys/errors.js';
import { launchDaemon } from './launch.js';
import { type Paths, pathsFrom } from './paths.js';
import {
  API_MAJOR,
  type DaemonStatus,
  type EventRecord,
  type OperationName,
  type OperationParams,
  type OperationResults,
} from './schema.js';

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
    outcome: v.picklist(['refused', 'failed', 'partial']),
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

/** The daemon's events from now on; ends with the daemon or when `signal` is aborted. */
export async function* events(options: ClientOptions = {}): AsyncGenerator<EventRecord, void, undefined> {
  const paths = pathsFrom(options.env ?? process.env);
  const response = await new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
    const req = request({ socketPath: paths.socket, path: `/v${API_MAJOR}/events`, signal: options.signal }, resolve);
    req.on('error', (error) => reject(isNobodyThere(error) ? noDaemon(paths) : error));
    req.end();
  });
  try {
    for await (const line of createInterface({ input: response })) {
      if (line !== '') yield v.parse(EventLine, JSON.parse(line));
    }
  } catch (error) {
    if (options.signal?.aborted !== true) throw error;
  } finally {
    response.destroy();
  }
}

const EventLine = v.objectWithRest(
  { time: v.string(), event: v.string(), level: v.picklist(['info', 'warning', 'error']), message: v.string() },
  v.union([v.string(), v.number(), v.boolean(), v.null()]),
);

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
  const text = await new Promise<string>((resolve, reject) => {
    const req = request(
      {
        socketPath: paths.socket,
        method: 'POST',
        path: `/v${API_MAJOR}/${operation}`,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
        signal,
      },
      (response) => {
        let received = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          received += chunk;
        });
        response.on('end', () => resolve(received));
        response.on('error', reject);
      },
    );
    req.on('error', reject);
    req.end(body);
  });
  return parseAnswer<N>(operation, text);
}

function parseAnswer<N extends OperationName>(operation: N, text: string): OperationResults[N] {
  let answer: { result?: OperationResults[N] } | null;
  try {
    answer = JSON.parse(text);
  } catch (cause) {
    throw new CowbirdError('EPROTO', `The daemon's answer to ${operation} is not JSON: it may be of another version`, {
      cause,
    });
  }
  const failed = v.safeParse(ErrorAnswer, answer);
  if (failed.success) {
    const { code, message, outcome } = failed.output.error;
    throw new CowbirdError(code, message, { outcome });
  }
  if (answer?.result === undefined) {
    throw new CowbirdError(
      'EPROTO',
      `The daemon does not know ${operation}: restart it with \`cowbird daemon restart\``,
    );
  }
  return answer.result;
}
