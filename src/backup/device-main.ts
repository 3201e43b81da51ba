/**
 * A process that is the device of a version, or of a snapshot with an overlay: a FUSE file and a loop device
 * on it. It holds the repository's shared lock, and ends with the loop device.
 *
 * Started by `device.ts` with the target's name, for who looks at the list of processes, and {@link DeviceStart} as JSON; it
 * answers with {@link DeviceAnswer}. The message `keep` leaves the device to whoever was told its name, `mounted` lets it end
 * with the last user of the file system. A maker that is gone without either was killed: nobody knows of the device, and it
 * ends at once, or with the mount that had just been made.
 */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { DiskFiles } from '../repository/disk-files.js';
import type { ReadableFile } from '../repository/files.js';
import { Repository, versionRecord } from '../repository/repository.js';
import { openVersion } from '../repository/version.js';
import { bindLoop, isBoundLoop, releaseLoop, setAutoClear } from '../sys/blkdev.js';
import { assert, CowbirdError, codeOf, errnoOfError, messageOf, type Outcome } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { PageFile, type PageFileHandle } from '../sys/page-file.js';
import { deviceFile, makeDeviceFolder, removeDevice } from './device-folder.js';
import { type DeviceWork, Phase } from './device-work.js';

const MS_NOSUID_NODEV = 6;
const LOOK_EVERY_MS = 100;
const SECTOR_BYTES = 512;

export interface DeviceStart {
  target: { kind: 'version'; repository: string; version: number | undefined } | { kind: 'snapshot'; node: string };
  writable: boolean;
  /** How long to wait for the repository. */
  waitMs: number;
  /** The FUSE file is mounted in a folder of this one. */
  runDir: string;
}

export type DeviceAnswer =
  | { opened: true }
  | { node: string; version: number | null; pid: number }
  | { error: { code: string; message: string; outcome: Outcome } };

type Opened = Pick<DeviceWork, 'base' | 'sizeBytes'> & { version: number | null };

async function open({ target, waitMs }: DeviceStart): Promise<Opened> {
  if (target.kind === 'snapshot') {
    const file = PageFile.open(target.node, 'read');
    return { base: { kind: 'file', file: file.handle }, sizeBytes: file.sizeBytes(), version: null };
  }
  const repository = await Repository.open(new DiskFiles(target.repository), 'read', { waitMs });
  const manifest = repository.requireManifest();
  const record = versionRecord(repository.files, manifest, target.version);
  const { files, view } = openVersion(repository.files, manifest, record);
  const handleOf = (file: ReadableFile): PageFileHandle => {
    assert(file.handle !== undefined, 'files of a disk have descriptors');
    return file.handle;
  };
  const base: DeviceWork['base'] = {
    kind: 'version',
    shape: view,
    image: handleOf(files.image),
    checksums: handleOf(files.checksums),
    chain: files.chain.map(handleOf),
  };
  return { base, sizeBytes: record.sizeBytes, version: record.number };
}

/**
 * Mounts the FUSE file and binds a loop device. Not in a mount namespace of its own: that would have every other file system
 * mounted for as long as this process lives, whoever unmounts it.
 */
function bind({ fuseFd, phase, writable }: DeviceWork, folder: string): string {
  const target = deviceFile(folder);
  writeFileSync(target, '', { mode: 0o600 });
  const options = `fd=${fuseFd},rootmode=100000,user_id=0,group_id=0,max_read=1048576`;
  libc.mount('cowbird', target, 'fuse.cowbird', MS_NOSUID_NODEV, options);
  enter(phase, Phase.SERVE);
  const fd = libc.open(target, writable ? libc.O_RDWR : libc.O_RDONLY);
  try {
    const loop = { readOnly: !writable, partitionScan: true, logicalSectorBytes: SECTOR_BYTES };
    return bindLoop(fd, target, loop);
  } finally {
    libc.close(fd);
  }
}

/** Resolves when the thread can answer. @throws what it failed with: opening the FUSE file then would wait for ever. */
async function untilReady(worker: Worker): Promise<void> {
  const controller = new AbortController();
  const { signal } = controller;
  // `once` rejects with an 'error' event by itself.
  const ready = once(worker, 'message', { signal });
  const gone = once(worker, 'exit', { signal }).then(() => {
    throw new CowbirdError('EIO', 'The thread that was to answer for the device has ended', { outcome: 'failed' });
  });
  try {
    await Promise.race([ready, gone]);
  } finally {
    controller.abort();
    await Promise.allSettled([ready, gone]);
  }
}

function enter(phase: Int32Array, next: number): void {
  Atomics.store(phase, 0, next);
  Atomics.notify(phase, 0);
}

/** Tells the maker the node; resolves when the device has ended. */
async function untilEnded(node: string, folder: string, version: number | null): Promise<void> {
  let isKept = false;
  process.on('message', (message) => {
    isKept = true;
    if (message === 'mounted') setAutoClear(node);
  });
  // A maker that is gone is heard of here, not as an error of sending.
  process.send?.({ node, version, pid: process.pid } satisfies DeviceAnswer, undefined, undefined, () => undefined);
  const file = deviceFile(folder);
  while (isBoundLoop(node, file)) {
    if (!process.connected && !isKept) releaseLoop(node, file);
    await pause(LOOK_EVERY_MS);
  }
}

async function main(start: DeviceStart): Promise<void> {
  // A signal to the terminal's group is for the command; this ends with its device.
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
  // Until then there is nothing that would have to be taken back.
  const leave = (): never => process.exit(1);
  process.on('disconnect', leave);
  const opened = await open(start);
  process.send?.({ opened: true } satisfies DeviceAnswer, undefined, undefined, () => undefined);
  process.off('disconnect', leave);
  const fuseFd = libc.open('/dev/fuse', libc.O_RDWR + libc.O_NONBLOCK);
  const phase = new Int32Array(new SharedArrayBuffer(4));
  const work: DeviceWork = { ...opened, fuseFd, phase, writable: start.writable };
  const folder = makeDeviceFolder(start.runDir);
  const worker = new Worker(new URL('./device-worker.js', import.meta.url), { workerData: work });
  const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
  try {
    await untilReady(worker);
    await untilEnded(bind(work, folder), folder, opened.version);
  } finally {
    enter(phase, Phase.END);
    await ended;
    removeDevice(folder);
  }
}

const start: DeviceStart = JSON.parse(process.argv[3] ?? '{}');
main(start).then(
  () => process.exit(0),
  (error: unknown) => {
    const outcome = error instanceof CowbirdError ? error.outcome : 'failed';
    const body = { code: codeOf(errnoOfError(error)), message: messageOf(error), outcome };
    process.send?.({ error: body } satisfies DeviceAnswer, undefined, undefined, () => process.exit(1));
  },
);
