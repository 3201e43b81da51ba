/** For tests of the control socket: a plain client that checks that an answer is one, and parameters that are right. */
import { type Agent, type IncomingMessage, request } from 'node:http';
import * as v from 'valibot';
import { assert, errnoOf } from '../sys/errors.js';
import type { OperationName, OperationParams } from './schema.js';

const Answer = v.union([
  v.strictObject({ result: v.unknown() }),
  v.strictObject({
    error: v.strictObject({
      code: v.pipe(v.string(), v.regex(/^E[A-Z0-9]+$/)),
      errno: v.pipe(v.number(), v.integer(), v.minValue(1)),
      message: v.pipe(v.string(), v.minLength(1), v.maxLength(1000)),
      outcome: v.picklist(['refused', 'failed', 'partial']),
    }),
  }),
]);
export type Answer = v.InferOutput<typeof Answer>;

export interface Ask {
  path: string;
  body: Uint8Array | string;
  /** @default 'POST' */
  method?: string;
  /** @default false: the length is in the head */
  chunked?: boolean;
}

/** Sends a request; its answer is JSON of one of two kinds, and its status fits. */
export async function askSocket(socketPath: string, agent: Agent, ask: Ask): Promise<Answer> {
  const { path, body, method = 'POST', chunked = false } = ask;
  const bytes = Buffer.from(body);
  const headers = chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': bytes.byteLength };
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const asked = request({ socketPath, agent, method, path, headers }, resolve);
    asked.on('error', reject);
    asked.end(bytes);
  });
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(Buffer.from(chunk));
  const answer = v.parse(Answer, JSON.parse(Buffer.concat(chunks).toString('utf8')));
  const refused = 'error' in answer && answer.error.outcome === 'refused';
  const status = 'result' in answer ? 200 : refused ? 409 : 500;
  assert(response.statusCode === status, `status ${response.statusCode} is ${status}`);
  if ('error' in answer) assert(answer.error.errno === errnoOf(answer.error.code), `errno of ${answer.error.code}`);
  return answer;
}

const HOOKS = { preFreeze: 'true', postThaw: 'true', hookTimeoutSeconds: 5 } as const;

/** Every parameter of every operation, with a value that is right. */
export const VALID: { [N in OperationName]: Required<OperationParams<N>> } = {
  attach: { origin: '/dev/sdb', name: 'data', workers: 4, readOnly: true, raw: false },
  detach: { volume: 'data' },
  list: {},
  info: { minor: 0 },
  setupSnapshot: {
    device: '/dev/loop1',
    cowFile: '/mnt/.cow',
    minor: 1,
    cacheBytes: 0,
    storeBytes: 4096,
    onVolumeOnly: true,
    alias: 'datto',
    ignoreErrors: false,
    freeAware: true,
    ...HOOKS,
  },
  setupTogether: { snapshots: [{ device: '/dev/loop1', cowFile: '/mnt/.cow', minor: 1 }], ...HOOKS },
  reloadSnapshot: {
    device: '/dev/loop1',
    cowFile: '/.cow',
    minor: 1,
    cacheBytes: 1,
    alias: 'datto',
    ignoreErrors: true,
  },
  reloadIncremental: { device: 'a', cowFile: '/.cow', minor: 255, cacheBytes: 1, alias: 'datto', ignoreErrors: true },
  destroy: { minor: 7 },
  transitionToIncremental: { minor: 7 },
  transitionToSnapshot: {
    minor: 7,
    cowFile: '/mnt/.cow2',
    storeBytes: 9,
    onVolumeOnly: false,
    freeAware: false,
    ...HOOKS,
  },
  transitionTogether: { snapshots: [{ minor: 7, cowFile: '/mnt/.cow2' }], ...HOOKS },
  reconfigure: { minor: 7, cacheBytes: 5 },
  expandCowFile: { minor: 7, bytes: 4096 },
  reconfigureAutoExpand: { minor: 7, stepBytes: 0, reservedBytes: 1 },
  getFreeMinor: {},
  changes: { minor: 7, fromBlock: 32 },
  doctor: {},
  daemonStatus: {},
  daemonStop: { force: true },
  daemonRestart: {},
};
