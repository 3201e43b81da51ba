/**
 * A laboratory for one test: directories, daemon, images and mounts of its own, all taken down on every path.
 *
 * Programs run asynchronously with a time limit each, so that a hung mount fails the test and not the run.
 */
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  realpathSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { cleanUpStale } from '../src/engine/stale.js';
import * as cowbird from '../src/index.js';
import { DirectReader } from '../src/sys/direct-reader.js';
import { LOCK_EX, LOCK_SH, tryFlock } from '../src/sys/libc.js';

const COMMAND_TIMEOUT_MS = 30_000;
export const MIB = 1_048_576;

/** Why the whole-system tests cannot run here; false where they can. */
export const CANNOT: string | false =
  process.getuid?.() !== 0
    ? 'needs root'
    : !existsSync('/dev/fuse') || !existsSync('/dev/loop-control')
      ? 'needs /dev/fuse and loop devices'
      : false;

/** Runs a program; rejects with its stderr when it fails or takes too long. */
export function run(program: string, ...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    // Some programs (fio) leave files where they run.
    const options = { cwd: tmpdir(), timeout: COMMAND_TIMEOUT_MS, killSignal: 'SIGKILL' as const, maxBuffer: 64 * MIB };
    execFile(program, args, options, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`${program} ${args.join(' ')}: ${stderr.trim() || error.message}`));
    });
  });
}

/** Whether a program succeeds. */
export async function succeeds(program: string, ...args: string[]): Promise<boolean> {
  return run(program, ...args).then(
    () => true,
    () => false,
  );
}

export async function until(what: string, isSo: () => Promise<boolean> | boolean, timeoutMs = 5_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await isSo())) {
    if (Date.now() > deadline) throw new Error(`Not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Of {@link Lab.writer}. One process: a shell that starts three programs for each file costs more than all that it writes. */
const WRITER = `
  const { closeSync, fsyncSync, openSync, rmSync, writeSync } = require('node:fs');
  const { randomFillSync } = require('node:crypto');
  const [folder, restMs] = process.argv.slice(1);
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  const bytes = Buffer.alloc(12 * 16_384);
  for (let i = 1; ; i++) {
    const fd = openSync(folder + '/w' + (i % 9), 'w');
    const length = ((i % 12) + 1) * 16_384;
    randomFillSync(bytes, 0, length);
    for (let at = 0; at < length; ) at += writeSync(fd, bytes, at, Math.min(16_384, length - at));
    fsyncSync(fd);
    closeSync(fd);
    rmSync(folder + '/w' + ((i + 4) % 9), { force: true });
    if (i === 1) writeSync(1, 'begun');
    Atomics.wait(nobody, 0, 0, Number(restMs));
  }`;

const labs = new Set<Lab>();
let labCount = 0;

/** How the folders of laboratories begin; `leftovers.ts` clears away those of runs that were killed. */
export const LAB_PREFIX = join(realpathSync(tmpdir()), 'cowbird-lab-');
/** Held by each process that has a laboratory. */
export const LOCK_PATH = join(tmpdir(), 'cowbird-test.lock');
const LOCK_LOOK_MS = 50;
let hasTurn = false;

/**
 * Waits until no other process has a laboratory, or only such as the runner has together (`scripts/test.mjs`): minors, names
 * under /dev and the machine's time are shared. Given back by the end of the process, whatever that is.
 */
function takeTurn(): void {
  if (hasTurn) return;
  const fd = openSync(LOCK_PATH, 'a', 0o600);
  const word = new Int32Array(new SharedArrayBuffer(4));
  const kind = process.env['COWBIRD_TEST_TOGETHER'] === '1' ? LOCK_SH : LOCK_EX;
  while (!tryFlock(fd, kind)) Atomics.wait(word, 0, 0, LOCK_LOOK_MS);
  hasTurn = true;
}

// The runner ends test files with SIGTERM, also after Ctrl-C: what they put up is taken down first.
process.once('SIGTERM', () => {
  void Promise.all([...labs].map((lab) => lab.takeDown())).finally(() => process.exit(143));
});

export class Lab {
  readonly folder = mkdtempSync(LAB_PREFIX);
  readonly env: NodeJS.ProcessEnv;
  readonly client: { env: NodeJS.ProcessEnv };
  /** Ends the names of its volumes: several test files, and several tests of one, run at a time. */
  readonly tag = `${process.pid}-${++labCount}`;
  readonly #cleanups: Array<() => Promise<unknown>> = [];

  /** `env`: more of the daemon's environment. */
  constructor(t: TestContext, env: NodeJS.ProcessEnv = {}) {
    takeTurn();
    labs.add(this);
    this.env = {
      ...process.env,
      ...env,
      COWBIRD_RUN_DIR: join(this.folder, 'run'),
      COWBIRD_STATE_DIR: join(this.folder, 'state'),
    };
    this.client = { env: this.env };
    t.after(() => this.takeDown());
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  onEnd(action: () => Promise<unknown>): void {
    this.#cleanups.push(action);
  }

  image(name: string, sizeBytes: number): string {
    const path = this.path(name);
    closeSync(openSync(path, 'w'));
    truncateSync(path, sizeBytes);
    return path;
  }

  /** An attached image; returns its node. */
  async attached(name: string, sizeBytes: number): Promise<string> {
    return (await cowbird.attach(this.image(name, sizeBytes), { name: `${name}-${this.tag}` }, this.client)).device;
  }

  /** The stable link of an attached image: a restart may give it another number. */
  link(name: string): string {
    return `/dev/cowbird/${name}-${this.tag}`;
  }

  /** Newer mkfs makes an XFS below 300 MiB only when it is told that nobody will rely on it. */
  async mkfs(node: string, type: string): Promise<void> {
    if (type !== 'xfs') {
      await run(`mkfs.${type}`, '-q', '-b', '4096', node);
      return;
    }
    const isMade = await succeeds('mkfs.xfs', '-q', '-f', '--unsupported', node);
    if (!isMade) await run('mkfs.xfs', '-q', '-f', node);
  }

  async mount(node: string, name = 'mnt', ...options: string[]): Promise<string> {
    const at = this.path(name);
    mkdirSync(at, { recursive: true });
    await run('mount', ...options, node, at);
    this.onEnd(() =>
      until(`${at} is unmounted`, async () => {
        await succeeds('umount', at);
        return !(await succeeds('mountpoint', '-q', at));
      }),
    );
    return at;
  }

  /**
   * Writes, rewrites and removes files until it is stopped, which says whether no write had failed until then. Resolves when the
   * first is there. `restMs`: between two writes, so that something else gets on too.
   */
  async writer(mountPoint: string, restMs = 10): Promise<() => Promise<boolean>> {
    const args = ['-e', WRITER, mountPoint, String(restMs)];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'ignore'], detached: true });
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    const stop = async (): Promise<boolean> => {
      const goesOn = child.exitCode === null && child.signalCode === null;
      if (goesOn && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      await ended;
      return goesOn;
    };
    this.onEnd(stop);
    await Promise.race([once(child.stdout, 'data'), ended]);
    return stop;
  }

  async status(minor: number): Promise<cowbird.SnapshotStatus> {
    const [device] = (await cowbird.info(minor, this.client)).devices;
    if (device === undefined) throw new Error(`minor ${minor} is listed`);
    return device;
  }

  async takeDown(): Promise<void> {
    labs.delete(this);
    for (const action of this.#cleanups.reverse()) await action().catch(() => undefined);
    const status = await cowbird.daemonStatus(this.client).catch(() => undefined);
    if (status !== undefined) {
      for (const { minor } of (await cowbird.info(undefined, this.client).catch(() => ({ devices: [] }))).devices) {
        await cowbird.destroy(minor, this.client).catch(() => undefined);
      }
      for (const { name } of await cowbird.listVolumes(this.client).catch(() => [])) {
        await cowbird.detach(name, this.client).catch(() => undefined);
      }
      await cowbird.stopDaemon({ force: true }, this.client).catch(() => process.kill(status.keeperPid, 'SIGKILL'));
    }
    // What a dead daemon left would disturb every later test.
    cleanUpStale(join(this.folder, 'run', 'fuse'));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Contents of a file or device past the page cache, as a digest. */
export function digestOf(path: string): string {
  const reader = new DirectReader(path);
  try {
    const hash = createHash('sha256');
    const buffer = Buffer.alloc(MIB);
    for (let at = 0; at < reader.lengthBytes; ) {
      const count = reader.read(buffer, at);
      hash.update(buffer.subarray(0, count));
      at += count;
    }
    return hash.digest('hex');
  } finally {
    reader.close();
  }
}

/** Copies a device past the page cache. */
export async function copy(from: string, to: string): Promise<void> {
  await run('dd', `if=${from}`, `of=${to}`, 'bs=1M', 'iflag=direct', 'status=none');
}

/** Random bytes to a file, durable. */
export async function fill(path: string, mib: number, ...options: string[]): Promise<void> {
  await run(
    'dd',
    'if=/dev/urandom',
    `of=${path}`,
    'bs=1M',
    `count=${mib}`,
    'status=none',
    'conv=fsync,notrunc',
    ...options,
  );
}

/** The log of a lab's daemon, for failures. */
export function logOf(lab: Lab): string {
  return readFileSync(lab.path('run/daemon.log'), 'utf8');
}
