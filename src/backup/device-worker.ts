/** The thread of a device's process that answers the kernel, so that the other one can make calls that wait for an answer. */
import { parentPort, workerData } from 'node:worker_threads';
import { serveOne } from '../frontend/fuse/session.js';
import { BUFFER_BYTES, WireBuffer } from '../frontend/fuse/wire.js';
import { View } from '../repository/view.js';
import { Epoll } from '../sys/epoll.js';
import { messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { PageFile } from '../sys/page-file.js';
import { DeviceTarget, fileBase, VersionBase } from './device-target.js';
import { type DeviceWork, Phase } from './device-work.js';

const POLL_MS = 200;

function targetOf({ base, writable, sizeBytes }: DeviceWork): DeviceTarget {
  if (base.kind === 'file') return new DeviceTarget(fileBase(new PageFile(base.file), sizeBytes), writable);
  const view = new View(base.shape, {
    image: new PageFile(base.image),
    checksums: new PageFile(base.checksums),
    chain: base.chain.map((handle) => new PageFile(handle)),
  });
  return new DeviceTarget(new VersionBase(view), writable);
}

/** Waits in epoll_wait(), never in a read: a thread inside a blocking read cannot be ended. */
function serve(work: DeviceWork): void {
  const target = targetOf(work);
  const wire = libc.mapLocked(BUFFER_BYTES);
  const buffer = new WireBuffer(wire.bytes, wire.address);
  const epoll = new Epoll();
  // Before that whoever opens the FUSE file would wait for an answer that may never come.
  parentPort?.postMessage('ready');
  Atomics.wait(work.phase, 0, Phase.WAIT);
  epoll.add(work.fuseFd, false);
  while (Atomics.load(work.phase, 0) === Phase.SERVE) {
    if (epoll.wait(POLL_MS).length === 0) continue;
    const served = serveOne(work.fuseFd, target, buffer, (operation, error) =>
      process.stderr.write(`${operation}: ${messageOf(error)}\n`),
    );
    if (served === 'ended') return;
  }
}

const work: DeviceWork = workerData;
serve(work);
parentPort?.close();
