/** Clients and daemons of different versions: they work together, or one line says what to do. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, request, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { CowbirdError } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { call, daemonStatus, events, parseEvent } from './client.js';
import { launchDaemon } from './launch.js';
import { parseParams } from './params.js';
import { type Paths, pathsFrom } from './paths.js';
import { API_MAJOR } from './schema.js';
import { createControlServer } from './server.js';

interface Place {
  env: NodeJS.ProcessEnv;
  paths: Paths;
}

/** A run directory of our own in which `server` listens. */
async function listening(t: TestContext, server: Server): Promise<Place> {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-skew-'));
  const env = { ...process.env, COWBIRD_RUN_DIR: folder, COWBIRD_STATE_DIR: join(folder, 'state') };
  const paths = pathsFrom(env);
  await new Promise<void>((resolve) => server.listen(paths.socket, resolve));
  t.after(() => {
    server.close();
    server.closeAllConnections();
    rmSync(folder, { recursive: true });
  });
  return { env, paths };
}

/** A daemon that answers whatever it is asked with this. */
function fakeDaemon(status: number, body: unknown, headers: Record<string, string> = {}): Server {
  return createServer((_request, response) => {
    response.writeHead(status, headers);
    response.end(typeof body === 'string' ? body : JSON.stringify(body));
  });
}

const OF_MAJOR_2 = { 'cowbird-version': '2.4.0', 'cowbird-api-major': '2' };

function raw({ paths }: Place, path: string, body: unknown): Promise<{ status: number | undefined; text: string }> {
  return new Promise((resolve, reject) => {
    const req = request({ socketPath: paths.socket, method: 'POST', path }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode, text }));
    });
    req.on('error', reject);
    req.end(JSON.stringify(body));
  });
}

async function refusal(promise: Promise<unknown>): Promise<CowbirdError> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof CowbirdError, String(error));
    assert.ok(!error.message.includes('\n'), 'one line');
    return error;
  }
  throw new Error('it was accepted');
}

/** The server of this version; what it hands on is kept. */
function server(handedOn: unknown[] = []): Server {
  return createControlServer({
    call: async (operation, params) => {
      handedOn.push([operation, params]);
      return { running: true, version: VERSION };
    },
    subscribe: () => () => undefined,
  });
}

describe('a daemon of another major', () => {
  const answer = { error: { code: 'EPROTO', errno: 71, message: 'something', outcome: 'refused' } };

  it('is named with its version and with what to do, by every operation and by events', async (t) => {
    const { env } = await listening(t, fakeDaemon(409, answer, OF_MAJOR_2));
    for (const promise of [call('list', {}, { env }), events({ env }).next()]) {
      const { code, message } = await refusal(promise);
      assert.equal(code, 'EPROTO');
      assert.match(message, /Cowbird 2\.4\.0 \(control API 2\), this command is Cowbird \S+ \(control API 1\): /);
      assert.match(message, /unmount the volumes and `cowbird daemon stop`/);
    }
  });

  it('still answers status and stop', async (t) => {
    const status = { running: true, version: '2.4.0', apiMajor: 2, keeperPid: 1, colour: 'brown' };
    const { env } = await listening(t, fakeDaemon(200, { result: status }, OF_MAJOR_2));
    assert.deepEqual(await daemonStatus({ env }), status);
    await call('daemonStop', {}, { env });
  });

  it('is not waited for by a start', { skip: process.getuid?.() !== 0 && 'needs root' }, async (t) => {
    const { env, paths } = await listening(t, fakeDaemon(409, answer, OF_MAJOR_2));
    const start = performance.now();
    assert.match((await refusal(launchDaemon(paths, env))).message, /Cowbird 2\.4\.0 \(control API 2\)/);
    assert.ok(performance.now() - start < 2_000);
  });

  it('is told from a socket that is no Cowbird at all', async (t) => {
    const { env, paths } = await listening(t, fakeDaemon(200, '<html>hello</html>'));
    const { code, message } = await refusal(call('list', {}, { env }));
    assert.equal(code, 'EPROTO');
    assert.ok(message.startsWith(`What listens on ${paths.socket} does not answer list as a Cowbird daemon does`));
  });
});

describe('a newer daemon', () => {
  it('may answer more than this client knows', async (t) => {
    const result = { minor: 3, colour: 'brown', more: { deep: [1] } };
    const { env } = await listening(t, fakeDaemon(200, { result }, { 'cowbird-api-major': '1' }));
    assert.deepEqual(await call('getFreeMinor', {}, { env }), result);
  });

  it('may say of an error more than this client knows, and an outcome that it does not know is no refusal', async (t) => {
    const error = { code: 'EBUSY', errno: 16, message: 'no', outcome: 'postponed', hint: 'later' };
    const { env } = await listening(t, fakeDaemon(500, { error }, { 'cowbird-api-major': '1' }));
    const { code, outcome } = await refusal(call('list', {}, { env }));
    assert.deepEqual([code, outcome], ['EBUSY', 'failed']);
  });

  it('may send events with fields and levels that this client does not know', () => {
    const line = '{"time":"t","event":"e","level":"alarm","message":"m","minor":1,"list":[1],"volume":"x"}';
    assert.deepEqual(parseEvent(line), { time: 't', event: 'e', level: 'info', message: 'm', minor: 1, volume: 'x' });
  });
});

describe('a client of another major', () => {
  it('is refused with both versions and what to do, and nothing is handed on', async (t) => {
    const handedOn: unknown[] = [];
    const place = await listening(t, server(handedOn));
    for (const path of ['/v2/list', '/list', '/v0/attach', '/']) {
      const { status, text } = await raw(place, path, {});
      assert.equal(status, 409, path);
      const { error } = JSON.parse(text);
      assert.equal(error.code, 'EPROTO');
      assert.match(
        error.message,
        new RegExp(`Cowbird ${VERSION} and speaks version ${API_MAJOR} .*daemon stop`.replaceAll('.0', '\\.0')),
      );
    }
    assert.deepEqual(handedOn, []);
  });

  it('can ask for the status, and end the daemon', async (t) => {
    const handedOn: unknown[] = [];
    const place = await listening(t, server(handedOn));
    for (const operation of ['daemonStatus', 'daemonStop']) {
      assert.equal((await raw(place, `/v7/${operation}`, {})).status, 200);
    }
    assert.deepEqual(handedOn, [
      ['daemonStatus', {}],
      ['daemonStop', {}],
    ]);
  });
});

describe('a newer client', () => {
  it('has its operations and parameters handed on, so that a newer engine under an older keeper gets them', async (t) => {
    const handedOn: unknown[] = [];
    const place = await listening(t, server(handedOn));
    await raw(place, '/v1/attach', { origin: '/dev/x', bandwidth: 5 });
    await raw(place, '/v1/hatch', { eggs: 3 });
    assert.deepEqual(handedOn, [
      ['attach', { origin: '/dev/x', bandwidth: 5 }],
      ['hatch', { eggs: 3 }],
    ]);
    assert.equal(JSON.parse((await raw(place, '/v1/../etc', {})).text).error.code, 'ENOSYS');
  });

  it('is told which parameter the engine does not know, its version, and what to do', () => {
    assert.throws(() => parseParams('attach', { origin: '/dev/x', bandwidth: 5 }), {
      code: 'EINVAL',
      outcome: 'refused',
      message: `attach: the running daemon (Cowbird ${VERSION}) does not know the parameter \`bandwidth\`; if the command is newer: \`cowbird daemon restart\` brings it to the installed version`,
    });
  });

  it('is told to start the daemon anew for what the keeper itself does not know', async (t) => {
    const place = await listening(t, server());
    const { error } = JSON.parse((await raw(place, '/v1/daemonStop', { gently: true })).text);
    assert.match(error.message, /does not know the parameter `gently`; if the command is newer: unmount the volumes/);
  });

  it('is told of a missing or wrong parameter as such', () => {
    assert.throws(() => parseParams('attach', {}), { code: 'EINVAL', message: /^origin: / });
    assert.throws(() => parseParams('destroy', { minor: 256 }), {
      code: 'EINVAL',
      message: /^minor: .*\(value 256\)$/,
    });
  });
});
