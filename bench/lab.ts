/**
 * Where the bench works: one folder with a fixed name in the directory that was asked for, so that a run after `kill -9`
 * finds and clears what that one left. Clearing is one procedure, the same at the start, at the end and after Ctrl-C; it
 * looks at what there is, and remembers nothing.
 */
import { existsSync, mkdirSync, readdirSync, realpathSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { cleanUpStale } from '../src/engine/stale.js';
import * as cowbird from '../src/index.js';
import { backingFileOf, boundLoops, isBoundLoop, releaseLoop } from '../src/sys/blkdev.js';
import { DirectReader } from '../src/sys/direct-reader.js';
import { umount } from '../src/sys/libc.js';
import { ownMounts } from '../src/sys/mounts.js';
import { Processes, type Ran, Refused, type RunOptions, until } from './processes.js';

export const MIB = 1_048_576;
export const GIB = 1_073_741_824;
const FOLDER = 'cowbird-bench';
/** Names that begin so are run directories of daemons. */
const DAEMON_PREFIX = 'daemon-';
const UNMOUNT_WAIT_MS = 30_000;
const SOCKET_NAME_BYTES = 107;

export class Lab {
  readonly folder: string;
  readonly processes: Processes;
  readonly #lock: Server;

  private constructor(folder: string, lock: Server, signal: AbortSignal) {
    this.folder = folder;
    this.#lock = lock;
    this.processes = new Processes(join(folder, 'processes'), folder, signal);
  }

  /** Takes the folder, clears what is left in it. @throws when another bench works there, or it takes no O_DIRECT */
  static async open(dir: string, signal: AbortSignal): Promise<Lab> {
    mkdirSync(dir, { recursive: true });
    const folder = join(realpathSync(dir), FOLDER);
    const lock = await takeLock(folder);
    mkdirSync(folder, { recursive: true });
    const lab = new Lab(folder, lock, signal);
    try {
      await lab.clear();
      await lab.#requireDirect();
    } catch (error) {
      lock.close();
      throw error;
    }
    return lab;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
    return this.processes.run(program, args, options);
  }

  /** A client of a daemon of its own. */
  client(name: string, env: NodeJS.ProcessEnv = {}): { env: NodeJS.ProcessEnv } {
    const run = this.path(`${DAEMON_PREFIX}${name}`);
    return {
      env: { ...process.env, ...env, COWBIRD_RUN_DIR: join(run, 'run'), COWBIRD_STATE_DIR: join(run, 'state') },
    };
  }

  /** Removes everything in the folder and gives it back. @throws with what could not be removed */
  async close(): Promise<void> {
    try {
      await this.#clear();
    } finally {
      this.#lock.close();
    }
  }

  /** Removes everything in the folder: each part begins with nothing. */
  async clear(): Promise<void> {
    await this.#clear();
    mkdirSync(join(this.folder, 'processes'), { recursive: true });
  }

  /**
   * Work first, then from the top of each stack to its bottom: file systems, daemons and loop devices, servers, and what they
   * had open. What fails is told at the end, when everything was tried.
   */
  async #clear(): Promise<void> {
    const failures: string[] = [];
    const attempt = async (action: () => Promise<unknown>): Promise<void> => {
      await action().catch((error: unknown) => failures.push(error instanceof Error ? error.message : String(error)));
    };
    const hasNotes = existsSync(this.path('processes'));
    if (hasNotes) await attempt(() => this.processes.endLeftover('load'));
    for (const entry of this.#mounts().filter(({ source }) => source.startsWith('/dev/loop')))
      await attempt(() => unmounted(entry.mountPoint));
    for (const name of readdirSync(this.folder).filter((entry) => entry.startsWith(DAEMON_PREFIX)))
      await attempt(() => this.#endDaemon(name.slice(DAEMON_PREFIX.length)));
    for (const { node, backingFile } of boundLoops())
      if (backingFile.startsWith(`${this.folder}/`)) await attempt(() => released(node));
    if (hasNotes) await attempt(() => this.processes.endLeftover('server'));
    for (const entry of this.#mounts()) await attempt(() => unmounted(entry.mountPoint));
    if (failures.length > 0) throw new Error(`${this.folder} could not be cleared:\n  ${failures.join('\n  ')}`);
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #endDaemon(name: string): Promise<void> {
    const client = this.client(name);
    const status = await cowbird.daemonStatus(client).catch(() => undefined);
    if (status !== undefined) {
      const { devices } = await cowbird.info(undefined, client).catch(() => ({ devices: [] }));
      for (const { minor } of devices) await cowbird.destroy(minor, client).catch(() => undefined);
      for (const volume of await cowbird.listVolumes(client).catch(() => []))
        await cowbird.detach(volume.name, client).catch(() => undefined);
      await cowbird.stopDaemon({ force: true }, client).catch(() => process.kill(status.keeperPid, 'SIGKILL'));
    }
    cleanUpStale(join(this.path(`${DAEMON_PREFIX}${name}`), 'run', 'fuse'));
  }

  /** What is mounted in the folder, the last first. */
  #mounts() {
    return ownMounts()
      .filter((entry) => entry.mountPoint.startsWith(`${this.folder}/`))
      .reverse();
  }

  async #requireDirect(): Promise<void> {
    const probe = this.path('probe');
    await this.run('dd', ['if=/dev/zero', `of=${probe}`, 'bs=4096', 'count=1', 'status=none']);
    const reader = new DirectReader(probe);
    reader.close();
    rmSync(probe);
    if (!reader.isDirect)
      throw new Refused(`${this.folder} lies on a file system without O_DIRECT: choose another with --dir`);
  }
}

/** Unmounts, waiting for who still uses it. */
export async function unmounted(mountPoint: string): Promise<void> {
  const isThere = (): boolean => ownMounts().some((entry) => entry.mountPoint === mountPoint);
  let reason = '';
  const attempt = (): boolean => {
    try {
      if (isThere()) umount(mountPoint);
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
    }
    return !isThere();
  };
  await until(`${mountPoint} is unmounted`, attempt, UNMOUNT_WAIT_MS).catch((error: Error) => {
    throw new Error(`${error.message}: ${reason}`);
  });
}

/** Unbinds a loop device and waits until it is free. */
export async function released(node: string): Promise<void> {
  const file = backingFileOf(node);
  if (file === undefined) return;
  releaseLoop(node, file);
  await until(`${node} is released`, () => !isBoundLoop(node, file));
}

/** The lock is a listening socket with an abstract name: it goes with its holder, however that ends. */
function takeLock(folder: string): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', (error) => {
      const isHeld = 'code' in error && error.code === 'EADDRINUSE';
      reject(
        isHeld ? new Refused(`Another bench works in ${folder}: wait for its end, or choose another --dir`) : error,
      );
    });
    server.unref();
    server.listen(`\0cowbird-bench-${folder}`.slice(0, SOCKET_NAME_BYTES), () => resolve(server));
  });
}
