/** Versions and snapshots as block devices, and mounted. */
import { execFile, fork } from 'node:child_process';
import { closeSync, mkdirSync, openSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as v from 'valibot';
import type { Signature } from '../block/signature.js';
import { type ClientOptions, call } from '../control/client.js';
import { pathsFrom } from '../control/paths.js';
import { backingFileOf, boundLoops, isBoundLoop, releaseLoop } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import { ownMounts } from '../sys/mounts.js';
import { DEVICE_FOLDER, isServed, sweepDevices } from './device-folder.js';
import type { DeviceStart } from './device-main.js';
import { FREE_MOUNT_OPTIONS, fsTypeOf } from './free-blocks.js';
import { signatureOfNode } from './node-signature.js';
import { parseVersionName } from './repository-at.js';
import { realPathOf } from './scan-source.js';
import { snapshotNode } from './snapshots.js';

/** The index and the checksums of every later version are read before an old one can be looked into. */
const OPEN_TIMEOUT_MS = 3_600_000;
const START_TIMEOUT_MS = 30_000;
/** Of a timer. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1;
const MOUNT_TIMEOUT_MS = 60_000;
const END_WAIT_MS = 10_000;
const LOOK_AGAIN_MS = 50;

export interface DeviceOptions {
  /** Take writes, which are thrown away with the device. */
  writable?: boolean;
  /** How long to wait for a repository that is being written. @default 0 */
  waitMs?: number;
  signal?: AbortSignal;
  client?: ClientOptions;
}

export interface VersionDevice {
  /** The node, `/dev/loop7`. */
  device: string;
  /** Of a repository; null for a snapshot. */
  version: number | null;
}

const Answer = v.union([
  v.object({ opened: v.literal(true) }),
  v.object({ node: v.string(), version: v.nullable(v.number()) }),
  v.object({
    error: v.object({ code: v.string(), message: v.string(), outcome: v.picklist(['refused', 'failed', 'partial']) }),
  }),
]);

interface Started extends VersionDevice {
  /** What becomes of the device: it stays, or it ends with its last user. Without a word it ends with this process. */
  leave(how: 'keep' | 'mounted'): Promise<void>;
}

/**
 * A block device of a version (`REPO`, `REPO@N`) or of a snapshot (its minor). It stays until {@link umount} ends it, and the
 * repository is locked against writers as long.
 *
 * @throws {CowbirdError} ENOENT for a version or snapshot that is not there; EBUSY for a repository that is being written.
 */
export async function device(target: string, options: DeviceOptions = {}): Promise<VersionDevice> {
  const { device: node, version, leave } = await start(target, options);
  await leave('keep');
  return { device: node, version };
}

async function start(name: string, options: DeviceOptions): Promise<Started> {
  const client = options.client ?? {};
  const writable = options.writable === true;
  const waitMs = options.waitMs ?? 0;
  const target = await targetOf(name, client);
  if (target.kind === 'snapshot' && !writable)
    return { device: target.node, version: null, leave: async () => undefined };
  if (process.getuid?.() !== 0) throw new CowbirdError('EPERM', 'A block device needs root');
  const { runDir } = pathsFrom(client.env ?? process.env);
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  sweepDevices(runDir);
  const log = openSync(join(runDir, 'devices.log'), 'a', 0o640);
  const program = fileURLToPath(new URL('./device-main.js', import.meta.url));
  const child = fork(program, [name, JSON.stringify({ target, writable, runDir, waitMs } satisfies DeviceStart)], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', log, log, 'ipc'],
  });
  closeSync(log);
  try {
    const { node, version } = await answerOf(child, waitMs, options.signal);
    const leave = (how: 'keep' | 'mounted'): Promise<void> =>
      new Promise((done, reject) => {
        child.send(how, (error) => {
          letGo(child);
          if (error === null) done();
          else reject(new CowbirdError('EIO', `The device has ended: ${error.message}`, { outcome: 'failed' }));
        });
      });
    return { device: node, version, leave };
  } catch (error) {
    await giveUp(child, runDir);
    throw error;
  }
}

/** The child goes on alone. */
function letGo(child: ReturnType<typeof fork>): void {
  if (child.connected) child.disconnect();
  child.unref();
}

/**
 * The child hears that nobody wants it, and takes down what it has made. One that hears nothing is killed. What one that was killed
 * leaves, a loop device on a dead file, is taken away here.
 */
async function giveUp(child: ReturnType<typeof fork>, runDir: string): Promise<void> {
  letGo(child);
  if (!(await ends(child))) {
    child.kill('SIGKILL');
    await ends(child);
  }
  sweepDevices(runDir);
}

/** Whether a process has ended by the time that it may take. */
async function ends(child: ReturnType<typeof fork>): Promise<boolean> {
  const hasEnded = (): boolean => child.exitCode !== null || child.signalCode !== null;
  for (const deadline = Date.now() + END_WAIT_MS; !hasEnded() && Date.now() < deadline; ) await pause(LOOK_AGAIN_MS);
  return hasEnded();
}

function answerOf(
  child: ReturnType<typeof fork>,
  waitMs: number,
  signal: AbortSignal | undefined,
): Promise<{ node: string; version: number | null }> {
  return new Promise((done, reject) => {
    const fail = (why: string): void =>
      reject(new CowbirdError('EIO', `The device could not be made: ${why}`, { outcome: 'failed' }));
    const timed = (timeoutMs: number): NodeJS.Timeout =>
      setTimeout(() => fail(`nothing within ${timeoutMs / 1000} s`), timeoutMs);
    let timer = timed(Math.min(OPEN_TIMEOUT_MS + waitMs, TIMEOUT_MS_MAX));
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(new CowbirdError('EINTR', 'Interrupted: no device was made'));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted === true) onAbort();
    child.on('message', (message) => {
      clearTimeout(timer);
      const answer = v.safeParse(Answer, message);
      if (!answer.success) fail('its process answered strangely');
      else if ('opened' in answer.output) timer = timed(START_TIMEOUT_MS);
      else if ('node' in answer.output) done(answer.output);
      else {
        const { code, message: text, outcome } = answer.output.error;
        reject(new CowbirdError(code, text, { outcome }));
      }
    });
    child.once('exit', (status, signal) => {
      clearTimeout(timer);
      fail(`its process ended with ${status ?? signal}`);
    });
  });
}

async function targetOf(name: string, client: ClientOptions): Promise<DeviceStart['target']> {
  if (!/^\d{1,3}$/.test(name)) {
    const { repository, version } = parseVersionName(name);
    return { kind: 'version', repository: resolve(repository), version };
  }
  const minor = Number(name);
  const [status] = (await call('info', { minor }, { ...client, autostart: false })).devices;
  if (status === undefined || status.state !== 3 || status.error !== undefined)
    throw new CowbirdError('EINVAL', `Minor ${name} has no snapshot now: \`cowbird info\` shows its state`);
  const node = snapshotNode(minor, client);
  if (node !== undefined) return { kind: 'snapshot', node };
  throw new CowbirdError('EIO', `The snapshot, minor ${name}, has no device: \`cowbird info\` tells more`, {
    outcome: 'failed',
  });
}

export interface MountedVersion extends VersionDevice {
  mountPoint: string;
}

/**
 * Mounts a version or a snapshot, with the options that its file system needs: read-only without replay of its log, or
 * writable with a throw-away overlay.
 *
 * @throws {CowbirdError} ENOTDIR for what is no directory; EINVAL for what holds no file system; what mount(8) says.
 */
export async function mount(target: string, directory: string, options: DeviceOptions = {}): Promise<MountedVersion> {
  const mountPoint = resolve(directory);
  if (statSync(mountPoint, { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new CowbirdError('ENOTDIR', `${directory} is no directory: make it first, or name another`);
  const started = await start(target, options);
  try {
    const signature = signatureOfNode(started.device);
    requireFileSystem(target, signature);
    await runMount(started.device, mountPoint, signature, options.writable === true);
    await started.leave('mounted');
    return { device: started.device, version: started.version, mountPoint };
  } catch (error) {
    if (isOurs(started.device)) await release(started.device, backingFileOf(started.device));
    throw error;
  }
}

function requireFileSystem(target: string, signature: Signature | undefined): void {
  if (signature?.name !== 'a partition table') return;
  throw new CowbirdError(
    'EINVAL',
    `${target} holds a partition table: \`cowbird device ${target}\` makes a device with its partitions, mount one of those`,
  );
}

function runMount(
  node: string,
  mountPoint: string,
  signature: Signature | undefined,
  writable: boolean,
): Promise<void> {
  const fsType = fsTypeOf(signature);
  const readOnly = fsType === undefined ? 'ro' : `ro,${FREE_MOUNT_OPTIONS[fsType]}`;
  const options = writable ? (fsType === 'xfs' ? 'nouuid' : 'rw') : readOnly;
  return new Promise((done, reject) => {
    execFile('mount', ['-o', options, node, mountPoint], { timeout: MOUNT_TIMEOUT_MS }, (error, _, stderr) => {
      if (error === null) done();
      else
        reject(
          new CowbirdError('EINVAL', `${stderr.trim() || error.message} (mount -o ${options})`, { outcome: 'failed' }),
        );
    });
  });
}

/**
 * Unmounts what {@link mount} mounted, and ends the device; or ends a device that {@link device} made.
 *
 * @throws {CowbirdError} EINVAL for what is not Cowbird's; EBUSY for what is in use.
 */
export async function umount(what: string): Promise<void> {
  const real = realPathOf(what);
  if (statSync(real).isBlockDevice()) {
    if (!isOurs(real))
      throw new CowbirdError('EINVAL', `${what} is no device that \`cowbird device\` made: nothing was done`);
    const mounted = ownMounts().find(({ source }) => source === real);
    if (mounted !== undefined)
      throw new CowbirdError('EBUSY', `${what} is mounted on ${mounted.mountPoint}: unmount that first`);
    return release(real, backingFileOf(real));
  }
  const entry = ownMounts().findLast(({ mountPoint }) => mountPoint === real);
  const node = entry?.source ?? '';
  if (entry === undefined || !(isOurs(node) || isSnapshot(node)))
    throw new CowbirdError('EINVAL', `${what} is not mounted by \`cowbird mount\`: nothing was done`);
  const file = isOurs(node) ? backingFileOf(node) : undefined;
  await new Promise<void>((done, reject) => {
    execFile('umount', [real], { timeout: MOUNT_TIMEOUT_MS }, (error, _, stderr) => {
      if (error === null) done();
      else reject(new CowbirdError('EBUSY', stderr.trim() || error.message));
    });
  });
  if (file !== undefined) await release(node, file);
}

function isOurs(node: string): boolean {
  return boundLoops().some((loop) => loop.node === node && loop.backingFile.includes(DEVICE_FOLDER));
}

function isSnapshot(node: string): boolean {
  return boundLoops().some((loop) => loop.node === node && /\/snapshot-\d+$/.test(loop.backingFile));
}

/**
 * Ends a device of ours on this FUSE file, and takes away what it leaves where its process was killed. The loop device may have
 * ended with its last user by then.
 */
async function release(node: string, file: string | undefined): Promise<void> {
  if (file === undefined) return;
  const deadline = Date.now() + END_WAIT_MS;
  while (isBoundLoop(node, file)) {
    releaseLoop(node, file);
    if (Date.now() > deadline) throw new CowbirdError('EBUSY', `${node} is still in use`, { outcome: 'partial' });
    await pause(LOOK_AGAIN_MS);
  }
  // It has the repository's lock until it ends.
  while (isServed(file) && Date.now() < deadline) await pause(LOOK_AGAIN_MS);
  sweepDevices(dirname(dirname(file)));
}
