/** Requests of any kind to the control socket: each is answered in JSON, and no handler sees what the schema does not allow. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { Agent } from 'node:http';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import * as v from 'valibot';
import { CowbirdError, SystemError } from '../sys/errors.js';
import { call } from './client.js';
import { parseParams, unknownOperation } from './params.js';
import { type EventRecord, type OperationName, operations } from './schema.js';
import { createControlServer } from './server.js';
import { type Answer, type Ask, askSocket, VALID } from './testing.js';

const BODY_BYTES_MAX = 65_536;
const folder = mkdtempSync(join(tmpdir(), 'cowbird-control-'));
const socketPath = join(folder, 'control.sock');
const agent = new Agent({ keepAlive: true });

const listeners = new Set<(event: EventRecord) => void>();
let calls: Array<{ operation: OperationName; params: unknown }> = [];
let respond: () => unknown = () => ({});
const server = createControlServer({
  // As keeper and engine do: what the server hands on unchecked is checked by who executes it.
  call: async (operation, params) => {
    if (!isOperation(operation)) throw unknownOperation(operation);
    calls.push({ operation, params: parseParams(operation, params) });
    return respond();
  },
  subscribe: (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
});

before(async () => {
  server.listen(socketPath);
  await once(server, 'listening');
});
beforeEach(() => {
  calls = [];
  respond = () => ({});
});
after(() => {
  agent.destroy();
  server.close();
  server.closeAllConnections();
  rmSync(folder, { recursive: true });
});

function isOperation(name: string): name is OperationName {
  return Object.hasOwn(operations, name);
}

/** What reached the handler satisfies the schema, whatever was asked. */
async function ask(request: Ask): Promise<Answer> {
  const answer = await askSocket(socketPath, agent, request);
  for (const { operation, params } of calls) {
    assert.ok(v.is(operations[operation], params), `${operation} ${JSON.stringify(params)}`);
  }
  return answer;
}

const post = (operation: string, body: Uint8Array | string): Promise<Answer> => ask({ path: `/v1/${operation}`, body });

function requireError(answer: Answer, code: string, message: RegExp): void {
  assert.ok('error' in answer, 'it is refused');
  assert.equal(answer.error.code, code);
  assert.match(answer.error.message, message);
  assert.equal(calls.length, 0, 'no handler was called');
}

/** The server answers as before. */
async function requireAlive(): Promise<void> {
  calls = [];
  assert.deepEqual(await post('destroy', '{"minor":3}'), { result: {} });
  assert.deepEqual(calls, [{ operation: 'destroy', params: { minor: 3 } }]);
}

const NAMES = Object.keys(VALID) as OperationName[];
const FIELDS = NAMES.flatMap((operation) => Object.keys(VALID[operation]).map((field) => ({ operation, field })));
const PROTOTYPE_NAMES = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'valueOf', 'prototype'];

const wrong = fc.oneof(
  fc.constantFrom<unknown>(null, '', -1, 256, 0.5, 1e300, 2 ** 53, -(2 ** 53), '0', [], {}, [1], true, 'relative'),
  fc.constantFrom('/nul\0here', '\0', `/${'x'.repeat(5000)}`, '../..', 'a/b', { toString: 1 }, { length: 3 }),
  fc.jsonValue(),
);

describe('parameters', () => {
  it('that are right reach the handler as they are', async () => {
    for (const operation of NAMES) await post(operation, JSON.stringify(VALID[operation]));
    assert.deepEqual(
      calls,
      NAMES.map((operation) => ({ operation, params: VALID[operation] })),
    );
  });

  it('of a wrong type or out of range are refused by their name, in every field of every operation', async () => {
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...FIELDS), wrong, async ({ operation, field }, value) => {
        calls = [];
        const params = { ...VALID[operation], [field]: value };
        const isRight = v.is(operations[operation], params);
        const answer = await post(operation, JSON.stringify(params));
        if (isRight) assert.equal(calls.length, 1);
        else requireError(answer, 'EINVAL', new RegExp(`^${field}(\\.[^:]*)?: .* \\(value `, 's'));
      }),
      { numRuns: 700 },
    );
    await requireAlive();
  });

  it('that no minor, count or path can be are refused', async () => {
    const impossible: ReadonlyArray<readonly [RegExp, readonly unknown[]]> = [
      [/^minor$/, [-1, 256, 0.5, '1', null]],
      [/^workers$/, [0, 65, 1.5]],
      [/Bytes$|^bytes$/, [-1, 0.5, 2 ** 53, '1']],
      [/^(origin|cowFile)$/, ['', 'relative', './a', 5]],
    ];
    for (const { operation, field } of FIELDS) {
      for (const value of impossible.find(([name]) => name.test(field))?.[1] ?? []) {
        const body = JSON.stringify({ ...VALID[operation], [field]: value });
        requireError(await post(operation, body), 'EINVAL', new RegExp(`^${field}: `));
      }
    }
  });

  it('that a C string would cut at a NUL are refused in every field that takes text', async () => {
    const texts = FIELDS.filter(
      ({ operation, field }) =>
        typeof Object.entries(VALID[operation]).find(([key]) => key === field)?.[1] === 'string',
    );
    assert.ok(texts.length > 10);
    for (const { operation, field } of texts) {
      const body = JSON.stringify({ ...VALID[operation], [field]: '/mnt/a\0/b' });
      requireError(await post(operation, body), 'EINVAL', new RegExp(`^${field}: `));
    }
  });

  it('that nobody knows are refused, also by the names that every object has', async () => {
    for (const operation of NAMES) {
      for (const name of [...PROTOTYPE_NAMES, '', 'minors']) {
        const inner = JSON.stringify(VALID[operation]).slice(1, -1);
        const body = `{${inner}${inner === '' ? '' : ','}${JSON.stringify(name)}:{"minor":9,"force":true}}`;
        requireError(await post(operation, body), 'EINVAL', /does not know the parameter `/);
      }
    }
    assert.equal(Object.getOwnPropertyNames(Object.prototype).includes('minor'), false);
  });

  it('that are a list, a text or nothing are none, also for an operation without any', async () => {
    for (const operation of NAMES) {
      for (const body of ['[]', '[[]]', 'null', '"{}"', '0', 'true'])
        requireError(await post(operation, body), 'EINVAL', /Expected Object/);
    }
  });

  it('of any bytes or any JSON are answered, and reach a handler only if the schema allows them', async () => {
    const bodies = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.json({ noUnicodeString: false }),
      fc.tuple(fc.json(), fc.nat(50)).map(([text, keep]) => text.slice(0, keep)),
    );
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...NAMES), bodies, async (operation, body) => {
        calls = [];
        const answer = await post(operation, body);
        assert.equal(calls.length, 'result' in answer ? 1 : 0);
      }),
      { numRuns: 400 },
    );
    await requireAlive();
  });

  it('nested as deep as a request can be are refused with their name', async () => {
    const depth = 32_000;
    const lists = '['.repeat(depth) + ']'.repeat(depth);
    const objects = `${'{"a":'.repeat(10_000)}0${'}'.repeat(10_000)}`;
    for (const nested of [lists, objects]) {
      requireError(await post('destroy', `{"minor":${nested}}`), 'EINVAL', /^minor: /);
      requireError(
        await post('attach', `{"origin":"/a","extra":${nested}}`),
        'EINVAL',
        /does not know the parameter `extra`/,
      );
    }
    requireError(await post('list', lists), 'EINVAL', /a list/);
    requireError(await post('list', '['.repeat(BODY_BYTES_MAX)), 'EINVAL', /not JSON/);
    await requireAlive();
  });
});

describe('requests', () => {
  it('of unknown operations are refused by their name, also by the names that every object has', async () => {
    for (const name of [...PROTOTYPE_NAMES, '', 'Attach', 'attach%20', 'x'.repeat(8000)])
      requireError(await post(name, '{}'), 'ENOSYS', /does not know the operation `/);
    const paths = fc.webPath().map((path) => (path.startsWith('/') ? path : `/${path}`));
    await fc.assert(
      fc.asyncProperty(paths, fc.constantFrom('GET', 'POST', 'PUT', 'DELETE', 'OPTIONS'), async (path, method) => {
        await ask({ path, method, body: '' });
      }),
      { numRuns: 200 },
    );
    await requireAlive();
  });

  it('that are no POST execute nothing', async () => {
    for (const method of ['GET', 'PUT', 'DELETE', 'OPTIONS']) {
      requireError(await ask({ path: '/v1/daemonStop', method, body: '{}' }), 'EINVAL', /POST/);
    }
    await requireAlive();
  });

  it('that are too long are answered with the limit, and their connection goes on', async () => {
    for (const lengthBytes of [BODY_BYTES_MAX + 1, 1_000_000, 20_000_000]) {
      for (const chunked of [false, true]) {
        const answer = await ask({ path: '/v1/list', body: Buffer.alloc(lengthBytes, 0x20), chunked });
        requireError(answer, 'EMSGSIZE', /65536 bytes at most/);
      }
    }
    const padded = Buffer.alloc(BODY_BYTES_MAX, 0x20);
    padded.write('{}');
    assert.deepEqual(await post('list', padded), { result: {} });
    await requireAlive();
  });

  it('that are too long do not keep the next one on their connection waiting', async () => {
    const socket = connect(socketPath);
    const head = (lengthBytes: number): string =>
      `POST /v1/list HTTP/1.1\r\nHost: a\r\nContent-Length: ${lengthBytes}\r\n\r\n`;
    let answers = '';
    socket.on('data', (chunk) => {
      answers += String(chunk);
    });
    const limit = setTimeout(() => socket.destroy(), 3000);
    const closed = once(socket, 'close');
    socket.write(head(5_000_000));
    socket.write(Buffer.alloc(5_000_000, 0x20));
    socket.end(`${head(2)}{}`);
    await closed;
    clearTimeout(limit);
    assert.match(answers, /^HTTP\/1\.1 409 .*HTTP\/1\.1 200 .*{"result":{}}/s);
  });

  it('that end early or come byte by byte leave nothing behind', async () => {
    const head = 'POST /v1/destroy HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n';
    const whole = `${head}{"minor":3}`;
    for (const keep of [0, 1, 10, head.length, head.length + 4, whole.length - 1]) {
      const socket = connect(socketPath);
      await once(socket, 'connect');
      socket.write(whole.slice(0, keep));
      await new Promise((resolve) => setImmediate(resolve));
      socket.destroy();
      await once(socket, 'close');
    }
    assert.deepEqual(calls, []);
    const slow = connect(socketPath);
    for (const byte of whole) {
      slow.write(byte);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [answer] = await once(slow, 'data');
    assert.match(String(answer), /^HTTP\/1\.1 200 /);
    slow.destroy();
    await requireAlive();
  });

  it('that are garbage end their own connection and nothing else', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.uint8Array({ minLength: 1, maxLength: 200 }),
          fc.constantFrom(
            'GET',
            'POST /v1/list HTTP/9.9\r\n\r\n',
            'POST /v1/list HTTP/1.1\r\nContent-Length: -1\r\n\r\n',
          ),
          fc.constantFrom(
            'POST /v1/list HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n',
            '\r\n\r\n\0\0',
          ),
          fc.constant(`GET /${'x'.repeat(40_000)} HTTP/1.1\r\n\r\n`),
          fc.constant(`CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n`),
        ),
        async (bytes) => {
          const socket = await garbage(Buffer.from(bytes));
          socket.destroy();
        },
      ),
      { numRuns: 150 },
    );
    assert.deepEqual(calls, []);
    await requireAlive();
  });
});

/** Sends bytes and the end of them; resolves when the other side has had its say. */
async function garbage(bytes: Buffer): Promise<Socket> {
  const socket = connect(socketPath);
  socket.on('error', () => undefined);
  const ended = new Promise<void>((resolve) => socket.on('close', () => resolve()));
  socket.resume();
  socket.end(bytes);
  await ended;
  return socket;
}

describe('answers', () => {
  it('come in JSON whatever a handler returns or throws', async () => {
    const circle: unknown[] = [];
    circle.push(circle);
    const results = fc.constantFrom<unknown>(undefined, null, 0, 10n, circle, { toJSON: 5 }, [undefined]);
    const errors = fc.oneof(
      fc.constantFrom<unknown>(undefined, null, 'text', 5, {}, new Error('no code'), new TypeError('mistake')),
      fc.constantFrom<unknown>(new CowbirdError('EBUSY', 'held'), new CowbirdError('EIO', 'b', { outcome: 'partial' })),
      fc.integer({ min: 1, max: 600 }).map((errno) => new SystemError('call', errno)),
      fc
        .constantFrom('ENOENT', 'ERR_INVALID_ARG_VALUE', '', '__proto__')
        .map((code) => Object.assign(new Error('x'), { code })),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          results.map((value) => ({ value })),
          errors.map((error) => ({ error })),
        ),
        async (outcome) => {
          respond = () => {
            if ('error' in outcome) throw outcome.error;
            return outcome.value;
          };
          const answer = await post('list', '{}');
          assert.ok(!('error' in outcome) || 'error' in answer, 'an error is no result');
        },
      ),
      { numRuns: 150 },
    );
    respond = () => ({});
    await requireAlive();
  });

  it('that are none are an EPROTO of the client', async () => {
    const env = { COWBIRD_RUN_DIR: folder };
    for (const text of ['null', '7', '"x"', '[]', '{}', '', '{"error":{"code":1}}', '{"error":null}', 'x']) {
      server.once('request', (_, response) => {
        response.writeHead(200);
        response.end(text);
      });
      respond = () => new Promise(() => undefined);
      await assert.rejects(call('list', {}, { env, autostart: false }), { code: 'EPROTO' }, text);
    }
    respond = () => ({});
    await requireAlive();
  });
});

describe('events', () => {
  it('pile up for nobody: a client that does not read is cut off, and the others hear them', async () => {
    const deaf = connect(socketPath);
    deaf.on('error', () => undefined);
    const closed = once(deaf, 'close');
    deaf.write('GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n');
    deaf.pause();
    const hearing = connect(socketPath);
    hearing.write('GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n');
    let heard = 0;
    hearing.on('data', (chunk) => {
      heard += String(chunk).split('"event":"test"').length - 1;
    });
    while (listeners.size < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    const message = 'x'.repeat(10_000);
    for (let i = 0; i < 400; i++) {
      for (const listener of listeners) listener({ time: '', event: 'test', level: 'info', message });
      await new Promise((resolve) => setImmediate(resolve));
    }
    while (heard < 400) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.equal(listeners.size, 1, 'the deaf one has no events kept for it');
    deaf.resume();
    await closed;
    hearing.destroy();
    while (listeners.size > 0) await new Promise((resolve) => setTimeout(resolve, 1));
    await requireAlive();
  });
});
