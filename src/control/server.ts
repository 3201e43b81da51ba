/** The control socket's server: HTTP on a unix socket that only root can open. It knows operations, not what they do. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import * as v from 'valibot';
import { describeIssue } from '../sys/checks.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { API_MAJOR, type EventRecord, type OperationName, operations } from './schema.js';

const BODY_BYTES_MAX = 65_536;
/** How much of a name that nobody knows is repeated in the answer. */
const NAME_CHARS_MAX = 80;
/** Events that wait for a client which does not read them; beyond it the client is cut off. */
const BACKLOG_BYTES_MAX = 1_048_576;

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
      `This daemon speaks version ${API_MAJOR} of the control API, and was asked for ${major?.slice(0, NAME_CHARS_MAX) ?? 'none'}: use the same version of Cowbird for both`,
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
      `This daemon has no operation ${operation?.slice(0, NAME_CHARS_MAX) ?? ''}: it may be older than the command`,
    );
  }
  const parsed = v.safeParse(operations[operation], parseBody(await readBody(request)));
  if (!parsed.success) throw new CowbirdError('EINVAL', describeIssue(parsed.issues[0], 'Parameters'));
  answer(response, 200, { result: (await handlers.call(operation, parsed.output)) ?? {} });
}

function isOperation(name: string): name is OperationName {
  return Object.hasOwn(operations, name);
}

/** The whole body. What is too long is read to its end and dropped, so that the next request on the connection is heard. */
function readBody(request: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let lengthBytes = 0;
    request.on('data', (chunk: Buffer) => {
      lengthBytes += chunk.byteLength;
      if (lengthBytes <= BODY_BYTES_MAX) {
        chunks.push(chunk);
        return;
      }
      chunks.length = 0;
      reject(new CowbirdError('EMSGSIZE', `A request has ${BODY_BYTES_MAX} bytes at most`));
    });
    request.on('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    request.on('error', reject);
  });
}

function parseBody(body: string): unknown {
  let parameters: unknown;
  try {
    parameters = body === '' ? {} : JSON.parse(body);
  } catch (cause) {
    throw new CowbirdError('EINVAL', 'The request is not JSON', { cause });
  }
  // To the schema a list is an object: an empty one would pass as "no parameters".
  if (Array.isArray(parameters)) throw new CowbirdError('EINVAL', 'Parameters: Expected Object but received a list');
  return parameters;
}

function streamEvents(response: ServerResponse, handlers: ControlHandlers): void {
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
  const end = handlers.subscribe((event) => {
    response.write(`${JSON.stringify(event)}\n`);
    if (response.writableLength <= BACKLOG_BYTES_MAX) return;
    end();
    response.destroy();
  });
  response.on('close', end);
}

function answer(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent) return;
  // Before the head is sent: what cannot be written as JSON is still answered, with an error.
  const text = JSON.stringify(body);
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(text);
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
