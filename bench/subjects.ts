/**
 * What is compared. Each subject has an image of its own, makes a block device of it, and has the ext4 on it mounted. All of
 * them are up all the time, and only one of them works at a time.
 */
import { closeSync, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import * as cowbird from '../src/index.js';
import { ownMounts } from '../src/sys/mounts.js';
import type { Workload } from './fio.js';
import { bindPlainLoop, copyImage, FILE_NAME, fillRandom, mountAt } from './images.js';
import { type Lab, MIB, released, unmounted } from './lab.js';
import type { CacheFamily, Scale } from './options.js';
import { type Started, until } from './processes.js';

export interface Subject {
  readonly name: string;
  readonly title: string;
  /** Fresh before each pass of writes: it is measured in first overwrites, and in nothing else. */
  readonly overwrites: boolean;
  readonly image: string;
  readonly file: string;
  start(): Promise<void>;
  /** Before a cell; a fresh snapshot where that is what is measured. */
  prepare(): Promise<void>;
  /** Processes that serve the device. */
  pids(): Promise<number[]>;
  stop(): Promise<void>;
}

/** Whether a subject has a cell for a workload. */
export function takesPart(subject: Subject, workload: Workload): boolean {
  return !subject.overwrites || (workload.direction === 'write' && workload.passBytes !== undefined);
}

export interface Setting {
  lab: Lab;
  scale: Scale;
  cache: CacheFamily;
  master: string;
  /** The faster of QEMU's ways, on this machine. */
  qemuAio: QemuAio;
}

abstract class Mounted {
  readonly name: string;
  readonly image: string;
  readonly setting: Setting;
  at = '';

  constructor(setting: Setting, name: string) {
    this.setting = setting;
    this.name = name;
    this.image = setting.lab.path(`${name}.img`);
  }

  get file(): string {
    return `${this.at}/${FILE_NAME}`;
  }

  protected async mount(node: string): Promise<void> {
    this.at = await mountAt(this.setting.lab, node, this.name);
  }
}

/** The reference: the kernel's own loop device over the same image. */
export class PlainLoop extends Mounted implements Subject {
  readonly title = 'plain loop device';
  readonly overwrites = false;
  #node = '';

  constructor(setting: Setting) {
    super(setting, 'loop');
  }

  async start(): Promise<void> {
    const { lab, master, cache } = this.setting;
    await copyImage(lab, master, this.image);
    this.#node = await bindPlainLoop(lab, this.image, cache === 'direct');
    await this.mount(this.#node);
  }

  async prepare(): Promise<void> {}

  async pids(): Promise<number[]> {
    return [];
  }

  async stop(): Promise<void> {
    await unmounted(this.at);
    await released(this.#node);
    rmSync(this.image);
  }
}

export type CowbirdState = 'passthrough' | 'incremental' | 'first' | 'saved';
/** Minors are names of the whole machine: other instances take theirs from below. */
const MINOR_TOP = 255;

/** A volume of Cowbird, with a daemon of its own. */
export class CowbirdVolume extends Mounted implements Subject {
  readonly title: string;
  readonly overwrites: boolean;
  readonly client: { env: NodeJS.ProcessEnv };
  readonly #state: CowbirdState;
  readonly #onTmpfs: boolean;
  #device = '';
  #minor: number | undefined;
  /** The snapshot's node. */
  snapshot = '';

  constructor(setting: Setting, state: CowbirdState, onTmpfs = false, env: NodeJS.ProcessEnv = {}) {
    super(setting, `cowbird-${state}${onTmpfs ? '-tmpfs' : ''}`);
    this.#state = state;
    this.#onTmpfs = onTmpfs;
    this.overwrites = state === 'first';
    this.client = setting.lab.client(this.name, env);
    const store = onTmpfs ? 'store on tmpfs' : 'store on the volume';
    this.title = {
      passthrough: 'Cowbird, passthrough',
      incremental: 'Cowbird, incremental',
      first: `Cowbird, snapshot, first overwrite, ${store}`,
      saved: `Cowbird, snapshot, already saved, ${store}`,
    }[state];
  }

  get device(): string {
    return this.#device;
  }

  get minor(): number {
    if (this.#minor === undefined) throw new Error(`${this.name} has no snapshot`);
    return this.#minor;
  }

  async start(): Promise<void> {
    const { lab, master, scale } = this.setting;
    await copyImage(lab, master, this.image);
    await cowbird.startDaemon(this.client);
    const name = `bench-${this.name}-${process.pid}`;
    this.#device = (await cowbird.attach(this.image, { name, raw: true }, this.client)).device;
    await this.mount(this.#device);
    if (this.#state === 'passthrough' || this.#state === 'first') return;
    await this.takeSnapshot();
    if (this.#state === 'incremental') await cowbird.transitionToIncremental(this.minor, this.client);
    // Every block of the file is saved before anything is measured.
    else await overwrite(lab, this.file, scale.fileMib);
  }

  async prepare(): Promise<void> {
    if (!this.overwrites) return;
    if (this.#minor !== undefined) await cowbird.destroy(this.#minor, this.client);
    await this.takeSnapshot();
  }

  async takeSnapshot(): Promise<void> {
    const folder = this.#onTmpfs ? await tmpfs(this.setting.lab) : this.at;
    const cow = `${folder}/${this.name}.cow`;
    // Room for every block of the file, the journal and the index.
    const storeBytes = (this.setting.scale.fileMib + 64) * MIB;
    this.#minor ??= unusedMinor();
    this.snapshot = await cowbird.setupSnapshot(this.#device, cow, this.#minor, { storeBytes }, this.client);
  }

  async pids(): Promise<number[]> {
    const status = await cowbird.daemonStatus(this.client);
    if (status?.enginePid == null) throw new Error(`The daemon of ${this.name} does not run`);
    return [status.keeperPid, status.enginePid];
  }

  async stop(): Promise<void> {
    // While it is mounted: a snapshot that is dormant leaves its COW file.
    if (this.#minor !== undefined) await cowbird.destroy(this.#minor, this.client);
    this.#minor = undefined;
    await unmounted(this.at);
    await cowbird.detach(this.#device, this.client);
    await cowbird.stopDaemon({}, this.client);
    rmSync(this.image);
  }
}

const takenMinors = new Set<number>();

export function unusedMinor(): number {
  const links = new Set(readdirSync('/dev'));
  for (let minor = MINOR_TOP; minor >= 0; minor--) {
    if (takenMinors.has(minor) || links.has(`cowbird${minor}`)) continue;
    takenMinors.add(minor);
    return minor;
  }
  throw new Error('Every minor is in use');
}

/** Writes a whole file once. */
export async function overwrite(lab: Lab, file: string, mib: number): Promise<void> {
  await fillRandom(lab, file, mib);
}

/** A tmpfs of the lab, for stores that lie elsewhere; made once. */
export async function tmpfs(lab: Lab): Promise<string> {
  const at = lab.path('tmpfs');
  if (!ownMounts().some((entry) => entry.mountPoint === at)) {
    mkdirSync(at, { recursive: true });
    await lab.run('mount', ['-t', 'tmpfs', '-o', 'mode=0700', 'cowbird-bench', at]);
  }
  return at;
}

export type QemuAio = 'native' | 'io_uring';
export type QemuState = 'export' | 'first' | 'saved';

/** QEMU's storage daemon: its FUSE export with a loop device on it, plain or with the copy-before-write filter. */
export class QemuExport extends Mounted implements Subject {
  readonly title: string;
  readonly overwrites: boolean;
  readonly #state: QemuState;
  readonly #onTmpfs: boolean;
  #node = '';
  #server: Started | undefined;

  constructor(setting: Setting, state: QemuState, onTmpfs = false) {
    super(setting, `qemu-${state}${onTmpfs ? '-tmpfs' : ''}`);
    this.#state = state;
    this.#onTmpfs = onTmpfs;
    this.overwrites = state === 'first';
    const store = onTmpfs ? 'target on tmpfs' : 'target beside the image';
    this.title = {
      export: 'QEMU FUSE export',
      first: `QEMU copy-before-write, first overwrite, ${store}`,
      saved: `QEMU copy-before-write, already saved, ${store}`,
    }[state];
  }

  async start(): Promise<void> {
    const { lab, master, scale } = this.setting;
    await copyImage(lab, master, this.image);
    // The target is written like an image before its first use: no block of it is allocated while something is measured.
    if (this.#state !== 'export') await copyImage(lab, master, await this.#target());
    await this.#serve();
    if (this.#state === 'saved') await overwrite(lab, this.file, scale.fileMib);
  }

  async prepare(): Promise<void> {
    if (!this.overwrites) return;
    // A new process knows of no block that was copied: that is QEMU's fresh snapshot.
    await this.#endServing();
    await this.#serve();
  }

  async pids(): Promise<number[]> {
    return this.#server === undefined ? [] : [this.#server.pid];
  }

  async stop(): Promise<void> {
    await this.#endServing();
    if (this.#state !== 'export') rmSync(await this.#target());
    rmSync(this.image);
  }

  async #target(): Promise<string> {
    return `${this.#onTmpfs ? await tmpfs(this.setting.lab) : this.setting.lab.folder}/${this.name}.target`;
  }

  async #serve(): Promise<void> {
    const { lab } = this.setting;
    const mountPoint = lab.path(`${this.name}.fuse`);
    closeSync(openSync(mountPoint, 'a'));
    this.#server = lab.processes.start('server', 'qemu-storage-daemon', [
      ...this.#blockdev('origin', this.image),
      ...(this.#state === 'export' ? [] : this.#blockdev('target', await this.#target())),
      ...(this.#state === 'export'
        ? []
        : ['--blockdev', 'driver=copy-before-write,node-name=filter,file=origin,target=target']),
      '--export',
      `type=fuse,id=export,node-name=${this.#state === 'export' ? 'origin' : 'filter'},mountpoint=${mountPoint},writable=on`,
    ]);
    const server = this.#server;
    const isUp = (): boolean => server.hasEnded() || ownMounts().some((entry) => entry.mountPoint === mountPoint);
    await until('qemu-storage-daemon exports', isUp);
    if (server.hasEnded()) throw new Error(`qemu-storage-daemon ended: ${server.stderr().trim()}`);
    this.#node = await bindPlainLoop(lab, mountPoint, true);
    await this.mount(this.#node);
  }

  #blockdev(name: string, file: string): string[] {
    const direct = this.setting.cache === 'direct';
    // aio=native works with cache.direct=on only; through the page cache io_uring is the best that there is.
    const aio = direct ? this.setting.qemuAio : 'io_uring';
    const options = `filename=${file},cache.direct=${direct ? 'on' : 'off'},aio=${aio},discard=unmap`;
    return ['--blockdev', `driver=file,node-name=${name},${options}`];
  }

  async #endServing(): Promise<void> {
    await unmounted(this.at);
    await released(this.#node);
    await this.#server?.end('SIGTERM');
    this.#server = undefined;
  }
}
