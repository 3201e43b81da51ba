/** The control socket's server: HTTP on a unix socket that only root can open. It knows operations, not what they do. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import * as v from 'valibot';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { API_MAJOR, type EventRecord, type OperationName, operations } from './schema.js';

const BODY_BYTES_MAX = 65_536;

export interface ControlHandlers {
  /** Executes an operation whose parameters are valid. */
  call(operation: OperationName, params: unknown): Promise<unknown>;
  /** Subscribes to events; returns how to end that. */
  subscribe(listener: (event: EventRecord) => void): () => void;
}

/** A server that is not listening yet. */
export function createControlServer(handlers: ControlHandlers): Server {
  return createServer((request, response) => {
    serve(request, response, handlers).catch((error: unknown) => answerError(response, error));
  });
}

async function serve(request: IncomingMessage, response: ServerResponse, handlers: ControlHandlers): Promise<void> {
  const [, major, operation] = (request.url ?? '').split('/');
  if (major !== `v${API_MAJOR}`) {
    throw new CowbirdError(
      'EPROTO',
      `This daemon speaks version ${API_MAJOR} of the control API, and was asked for ${major ?? 'none'}: use the same version of Cowbird for both`,
    );
  }
  if (operation === 'ping') {
    answer(response, 200, { result: {} });
    return;
  }
  if (operation === 'events') {
    streamEvents(response, handlers);
    return;
  }
  if (operation === undefined || !isOperation(operation)) {
    throw new CowbirdError(
      'ENOSYS',
      `This daemon has no operation ${operation ?? ''}: it may be older than the command`,
    );
  }
  const parsed = v.safeParse(operations[operation], parseBody(await readBody(request)));
  if (!parsed.success) throw invalid(parsed.issues[0]);
  answer(response, 200, { result: (await handlers.call(operation, parsed.output)) ?? {} });
}

/** Which parameter, which value, and what was expected. */
function invalid(issue: v.BaseIssue<unknown>): CowbirdError {
  const path = v.getDotPath(issue);
  return new CowbirdError(
    'EINVAL',
    `${path ?? 'Parameters'}: ${issue.message} (value ${JSON.stringify(issue.input)?.slice(0, 80)})`,
  );
}

function isOperation(name: string): name is OperationName {
  return Object.hasOwn(operations, name);
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let lengthBytes = 0;
  for await (const chunk of request) {
    const bytes = Buffer.from(chunk);
    lengthBytes += bytes.byteLength;
    if (lengthBytes > BODY_BYTES_MAX)
      throw new CowbirdError('EMSGSIZE', `A request has ${BODY_BYTES_MAX} bytes at most`);
    chunks.push(bytes);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parseBody(body: string): unknown {
  try {
    return body === '' ? {} : JSON.parse(body);
  } catch (cause) {
    throw new CowbirdError('EINVAL', 'The request is not JSON', { cause });
  }
}

function streamEvents(response: ServerResponse, handlers: ControlHandlers): void {
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
  const end = handlers.subscribe((event) => response.write(`${JSON.stringify(event)}\n`));
  response.on('close', end);
}

function answer(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent) return;
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

function answerError(response: ServerResponse, error: unknown): void {
  const errno = errnoOfError(error);
  const known = error instanceof CowbirdError;
  const body = {
    code: known ? error.code : codeOf(errno),
    errno,
    message: messageOf(error),
    outcome: known ? error.outcome : 'failed',
  };
  answer(response, known && error.outcome === 'refused' ? 409 : 500, { error: body });
}
