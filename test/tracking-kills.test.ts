/**
 * The tracker's promise under kill -9: whatever is written, taken, killed and opened again in whichever order, a version gets
 * exactly the blocks that were written since the version before. Repeat a failure with COWBIRD_TEST_SEED.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { ContinuityToken } from '../src/live/tracking.js';
import { Lab, MIB } from './lab.js';
import {
  BLOCK,
  CANNOT_TRACK,
  DirectWriter,
  loopDevice,
  notedBlocks,
  recoveredSectors,
  trackerPlace,
} from './tracking-lab.js';
import type { Answer, Order } from './tracking-user.js';

const ROUNDS = 200;
const DISK_BYTES = 64 * MIB;
const ANSWER_TIMEOUT_MS = 20_000;
const PROGRAM = fileURLToPath(new URL('tracking-user.js', import.meta.url));

/** Of a write whose beginning and end both were not shown to the tracker. It is noticed: then everybody begins anew. */
const NOT_RUN = /without running the tracker/;
class NotRun extends Error {}
/** More often, and the test shows nothing. */
const NOT_RUN_SHARE_MAX = 0.02;

/** mulberry32 */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** One repository, as far as tracking matters: the token of its newest version, and what was written since. */
class User {
  readonly written = new Set<number>();
  /** What happened, for a failure: orders, kills, and writes as `first+count`. */
  readonly log: string[] = [];
  token: ContinuityToken | undefined;
  #next: ContinuityToken | undefined;
  #process: ChildProcess | undefined;
  /** Started beforehand: it takes longer than everything else. */
  #spare: ChildProcess | undefined;
  readonly #args: string[];
  readonly #running: Set<ChildProcess>;

  constructor(args: string[], running: Set<ChildProcess>) {
    this.#args = args;
    this.#running = running;
    this.#spare = this.#spawn();
  }

  #spawn(): ChildProcess {
    const child = fork(PROGRAM, this.#args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.#running.add(child);
    child.once('exit', () => this.#running.delete(child));
    return child;
  }

  async ask(order: Order): Promise<Answer> {
    const child = this.#process;
    assert.ok(child !== undefined, 'the process runs');
    this.log.push(order.do);
    child.send(order);
    const [answer]: Answer[] = await once(child, 'message', { signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    const doubt = answer?.reason ?? answer?.doubt;
    if (doubt !== undefined && NOT_RUN.test(doubt)) throw new NotRun();
    assert.ok(answer !== undefined && doubt === undefined, `${order.do}: ${doubt}`);
    this.#next = answer.next;
    return answer;
  }

  async ensureOpen(): Promise<void> {
    if (this.#process !== undefined) return;
    this.#process = this.#spare ?? this.#spawn();
    this.#spare = this.#spawn();
    await this.#open();
  }

  async #open(): Promise<void> {
    const { token } = this;
    const answer = await this.ask(token === undefined ? { do: 'start' } : { do: 'open', token });
    this.token ??= answer.token;
    assert.equal(answer.token?.mark, this.token?.mark, 'it goes on from the newest version');
    assert.deepEqual(answer.blocks, []);
  }

  /** The repository has the version now. */
  commitManifest(): void {
    assert.ok(this.#next !== undefined);
    this.token = this.#next;
    this.written.clear();
  }

  async beginAnew(): Promise<void> {
    await this.kill();
    this.token = undefined;
    this.written.clear();
  }

  /** Gives it back; the same process opens it again. */
  async close(): Promise<void> {
    await this.ask({ do: 'close' });
    await this.#open();
  }

  async kill(): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (child === undefined) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    this.log.push('kill');
    await ended;
  }
}

async function round(
  users: User[],
  user: User,
  write: () => void,
  noted: ReadonlySet<number>,
  random: (below: number) => number,
): Promise<void> {
  await user.ensureOpen();
  for (let step = random(4); step > 0; step--) {
    write();
    const other = users[random(users.length)];
    if (random(2) === 0) await user.ask({ do: 'take' });
    if (other !== undefined && other.token !== undefined && random(3) === 0) {
      await other.ensureOpen();
      await other.ask({ do: 'take' });
    }
  }
  if (random(2) === 0) {
    await user.ask({ do: 'spin' });
    for (let i = 0; i < 10; i++) write();
    if (random(2) === 0) {
      await pause(random(3));
      for (let i = 0; i < 3; i++) write();
      await user.kill();
      await user.ensureOpen();
    } else await user.ask({ do: 'stopSpinning' });
  }
  write();
  const { blocks } = await user.ask({ do: 'take' });
  const got = new Set(blocks);
  const missed = [...user.written].filter((block) => !got.has(block));
  // What the kernel did not show the end of counts for every version from then on.
  const extra = blocks.filter((block) => !user.written.has(block) && !noted.has(block));
  if (missed.length + extra.length > 0) {
    // Late is another fault than lost.
    const { blocks: later } = await user.ask({ do: 'take' });
    const late = missed.filter((block) => later.includes(block));
    assert.fail(JSON.stringify({ missed, late, extra, before: user.log.slice(-60) }));
  }
  await endVersion(user, random(6));
}

async function endVersion(user: User, outcome: number): Promise<void> {
  if (outcome === 0) await user.kill();
  else if (outcome === 1) await user.ask({ do: 'abandon' });
  else {
    user.commitManifest();
    if (outcome === 2) await user.kill();
    else {
      const { token } = await user.ask({ do: 'commit' });
      assert.deepEqual(token, user.token);
      if (outcome === 3) await user.close();
    }
  }
}

function usersFor(lab: Lab, device: string, runDir: string, names: string[]): User[] {
  const running = new Set<ChildProcess>();
  lab.onEnd(async () => {
    const ends = [...running].map((child) => once(child, 'exit'));
    for (const child of running) child.kill('SIGKILL');
    await Promise.all(ends);
  });
  return names.map((name) => new User([device, name, runDir], running));
}

test(`${ROUNDS} interleavings of write, take, kill and open miss nothing and count nothing twice`, {
  skip: CANNOT_TRACK,
}, async (t) => {
  const seed = Number(process.env['COWBIRD_TEST_SEED'] ?? Date.now() % 1_000_000);
  t.diagnostic(`COWBIRD_TEST_SEED=${seed}`);
  const random = randomFrom(seed);
  const lab = new Lab(t);
  const runDir = trackerPlace(lab);
  const device = await loopDevice(lab, DISK_BYTES);
  const writer = new DirectWriter(lab, device);
  const users = usersFor(lab, device, runDir, ['one', 'two']);
  const noted = new Set<number>();
  const write = (): void => {
    const count = 1 + random(8);
    const first = random(DISK_BYTES / BLOCK - count);
    writer.blocks(first, count);
    for (const block of users.some(({ token }) => token !== undefined) ? notedBlocks(runDir) : []) noted.add(block);
    // Who does not track yet has missed nothing.
    for (const user of users.filter(({ token }) => token !== undefined)) {
      user.log.push(`${first}+${count}`);
      for (let block = first; block < first + count; block++) user.written.add(block);
    }
  };
  let notRun = 0;
  for (let i = 0; i < ROUNDS; i++) {
    const user = users[random(users.length)];
    assert.ok(user !== undefined);
    try {
      await round(users, user, write, noted, random);
    } catch (error) {
      if (!(error instanceof NotRun)) throw error;
      notRun++;
      for (const other of users) await other.beginAnew();
    }
  }
  if (noted.size > 0)
    t.diagnostic(`${noted.size} blocks were known by notes, ${recoveredSectors(runDir)} sectors recovered`);
  if (notRun > 0) t.diagnostic(`the kernel did not run the tracker in ${notRun} rounds, and it was noticed`);
  assert.ok(notRun <= ROUNDS * NOT_RUN_SHARE_MAX);
});
