/**
 * A process of its own beside a live backup: it syncs, runs the hooks, and sees to it that a freeze ends in time.
 *
 *     freeze-helper COUNT   descriptor 3: the way to its maker; 4: the words; from 5: a descriptor in each file system
 *
 * All that it needs to thaw is there before something is frozen: descriptors, code, memory. Armed, it looks at the words every
 * few milliseconds; a freeze that is older than its limit is ended (rescue.ts), whatever its maker does, hangs or is stopped. A maker
 * that has gone (the way to it is closed, so that no call of it is under way any more) has its freeze ended at once, and its
 * `post-thaw` hook run. The helper has a session of its own and takes no SIGTERM, so that it outlives its maker until then.
 */
import { setTimeout as pause } from 'node:timers/promises';
import * as v from 'valibot';
import { messageOf } from '../sys/errors.js';
import { type HookEnd, type HookOrder, runHook } from '../sys/hook.js';
import * as libc from '../sys/libc.js';
import { FreezeState, FreezeWords } from './freeze-words.js';
import { Rescue, Rescuers } from './rescue.js';

const WORDS_FD = 4;
const FIRST_FD = 5;
const LOOK_EVERY_MS = 5;
/** How long `post-thaw` waits for a thaw that does not come. */
const THAW_WAIT_MS = 60_000;

const Hook = v.object({ command: v.string(), timeoutMs: v.number(), environment: v.record(v.string(), v.string()) });

/** What the maker asks. Each is answered with {@link HelperAnswer}. */
const Order = v.variant('kind', [
  v.object({ kind: v.literal('sync') }),
  /** Looks at the clock from now on; `undo` is run when the maker goes before it asked for it itself. */
  v.object({ kind: v.literal('arm'), timeoutMs: v.number(), undo: v.nullable(Hook) }),
  v.object({ kind: v.literal('disarm') }),
  /** Runs a hook; `undo` as above. */
  v.object({ kind: v.literal('hook'), hook: Hook, undo: v.nullable(Hook) }),
]);
export type HelperOrder = v.InferOutput<typeof Order>;
export type HelperAnswer = { ok: true; hook?: HookEnd } | { ok: false; error: string };

const count = Number(process.argv[2]);
const fds = Array.from({ length: count }, (_, i) => FIRST_FD + i);
const words = FreezeWords.map(WORDS_FD);
const rescuers = await Rescuers.start(words, WORDS_FD, fds);
let looking: NodeJS.Timeout | undefined;
let undo: HookOrder | null = null;
let running: Promise<unknown> = Promise.resolve();

function arm(timeoutMs: number): void {
  clearInterval(looking);
  rescuers.reset();
  looking = setInterval(() => {
    if (words.elapsedMs() >= timeoutMs && rescuers.step(Rescue.LATE)) clearInterval(looking);
  }, LOOK_EVERY_MS);
}

async function perform(order: HelperOrder): Promise<HookEnd | undefined> {
  switch (order.kind) {
    case 'sync':
      for (const fd of fds) libc.syncfs(fd);
      return undefined;
    case 'arm':
      undo = order.undo;
      arm(order.timeoutMs);
      return undefined;
    case 'disarm':
      if (fds.some((_, index) => words.stateOf(index) === FreezeState.FROZEN)) return undefined;
      clearInterval(looking);
      rescuers.reset();
      return undefined;
    case 'hook': {
      undo = order.undo;
      const hook = runHook(order.hook);
      running = hook;
      return hook;
    }
  }
}

async function answer(order: HelperOrder): Promise<HelperAnswer> {
  try {
    const hook = await perform(order);
    return hook === undefined ? { ok: true } : { ok: true, hook };
  } catch (error) {
    return { ok: false, error: messageOf(error) };
  }
}

async function leave(): Promise<void> {
  clearInterval(looking);
  for (const deadline = Date.now() + THAW_WAIT_MS; !rescuers.step(Rescue.GONE) && Date.now() < deadline; )
    await pause(LOOK_EVERY_MS);
  await running;
  if (undo !== null) await runHook(undo);
  process.exit();
}

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
process.on('disconnect', () => void leave());
process.on('message', (message) => {
  const order = v.parse(Order, message);
  void answer(order).then((result) => {
    // A maker that has gone needs no answer.
    if (process.connected) process.send?.(result, () => undefined);
  });
});
// A maker that went while the threads were started was not heard to.
if (process.connected) process.send?.({ ok: true } satisfies HelperAnswer, () => undefined);
else void leave();
