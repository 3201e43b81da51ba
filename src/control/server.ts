/**
 * The control socket's server: HTTP on a unix socket that only root can open. It knows operations, not what they do.
 *
 * Operations that the keeper answers are checked here; all others are handed on as they came, and checked by the engine,
 * which may be newer than this process. Every answer says the version and the API's major in its headers.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { isKeeperOperation, parseParams, unknownOperation } from './params.js';
import { API_MAJOR, type EventRecord, MAJOR_HEADER, MAJORLESS_OPERATIONS, VERSION_HEADER } from './schema.js';

const BODY_BYTES_MAX = 65_536;
/** Events that wait for a client which does not read them; beyond it the client is cut off. */
const BACKLOG_BYTES_MAX = 1_048_576;
/** How much of a name that nobody knows is repeated in the answer. */
const NAME_CHARS_MAX = 80;
const OPERATION_NAME = /^[a-zA-Z]{1,64}$/;

export interface ControlHandlers {
  /** Executes an operation. The parameters are valid where the keeper answers it itself, and unchecked elsewhere. */
  call(operation: string, params: unknown): Promise<unknown>;
  /** Subscribes to events; returns how to end that. */
  subscribe(listener: (event: EventRecord) => void): () => void;
}

/** A server that is not listening yet. */
export function createControlServer(handlers: ControlHandlers): Server {
  return createServer((request, response) => {
    response.setHeader(VERSION_HEADER, VERSION);
    response.setHeader(MAJOR_HEADER, API_MAJOR);
    serve(request, response, handlers).catch((error: unknown) => answerError(response, error));
  });
}

async function serve(request: IncomingMessage, response: ServerResponse, handlers: ControlHandlers): Promise<void> {
  const [, major = '', operation = ''] = (request.url ?? '').split('/');
  if (major !== `v${API_MAJOR}` && !MAJORLESS_OPERATIONS.has(operation)) {
    throw new CowbirdError(
      'EPROTO',
      `This daemon is Cowbird ${VERSION} and speaks version ${API_MAJOR} of the control API, not ${major.slice(0, NAME_CHARS_MAX) || 'none'}: unmount its volumes, \`cowbird daemon stop\`, and the next command starts its own version`,
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
  if (!OPERATION_NAME.test(operation)) throw unknownOperation(operation.slice(0, NAME_CHARS_MAX));
  if (request.method !== 'POST') {
    throw new CowbirdError('EINVAL', `An operation is asked for by POST, not by ${request.method}`);
  }
  const body = parseBody(await readBody(request));
  const params = isKeeperOperation(operation) ? parseParams(operation, body) : body;
  answer(response, 200, { result: (await handlers.call(operation, params)) ?? {} });
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
