/**
 * A process that makes versions with the tracker as it is told, and can be killed anywhere: the other half of
 * `tracking-kills.test.ts`.
 */
import { setImmediate as turn } from 'node:timers/promises';
import {
  BlockBitmap,
  type ContinuityToken,
  type LiveTracking,
  openTracking,
  startTracking,
} from '../src/live/tracking.js';

export type Order =
  | { do: 'start' }
  | { do: 'open'; token: ContinuityToken }
  | { do: 'take' | 'commit' | 'abandon' | 'close' | 'stopSpinning' }
  /** Takes again and again, until it is told otherwise or killed. */
  | { do: 'spin' };

export interface Answer {
  /** Everything taken since the last open, commit or abandon. */
  blocks: number[];
  token?: ContinuityToken;
  next?: ContinuityToken;
  doubt?: string;
  reason?: string;
}

const [device = '', user = '', runDir = ''] = process.argv.slice(2);
let tracking: LiveTracking | undefined;
let taken = new BlockBitmap(0);
let isSpinning = false;

function begin(begun: LiveTracking): void {
  tracking = begun;
  taken = new BlockBitmap(begun.blockCount);
}

function obey(order: Order): string | undefined {
  if (order.do === 'start') begin(startTracking(device, user, runDir));
  else if (order.do === 'open') {
    const opened = openTracking(device, user, runDir, order.token);
    if ('reason' in opened) return opened.reason;
    begin(opened);
  } else if (order.do === 'take') tracking?.take(taken);
  else if (order.do === 'commit') tracking?.commit();
  else if (order.do === 'abandon') tracking?.abandon();
  else if (order.do === 'close') {
    tracking?.close();
    tracking = undefined;
  }
  if (order.do === 'commit' || order.do === 'abandon') taken.clearAll();
  return undefined;
}

async function spin(): Promise<void> {
  isSpinning = true;
  while (isSpinning) {
    for (let i = 0; i < 20; i++) tracking?.take(taken);
    await turn();
  }
}

function answer(reason: string | undefined): Answer {
  const blocks = [...taken.runs()].flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => first + i));
  if (reason !== undefined) return { blocks, reason };
  if (tracking === undefined) return { blocks };
  const doubt = tracking.doubt();
  return { blocks, token: tracking.token, next: tracking.next, ...(doubt === undefined ? {} : { doubt }) };
}

process.on('message', (order: Order) => {
  isSpinning = false;
  const reason = obey(order);
  process.send?.(answer(reason));
  if (order.do === 'spin') void spin();
});
// Without its test it has nothing to do.
process.on('disconnect', () => process.exit(0));
