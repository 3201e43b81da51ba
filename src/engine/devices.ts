/**
 * From a FUSE descriptor to a block device with links, and back.
 *
 * Up: FUSE file mounted, served by the workers, loop device bound, links made. Down, in reverse: links, loop device, FUSE
 * file, descriptor. A loop device with openers ends when the last one closes, so openers are waited for first.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { isAutoClear, isBoundLoop } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { type Opener, openersOf, ownMounts } from '../sys/mounts.js';
import { type EngineContext, makeLink, removeLink, type Undo, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import type { DeviceRecord } from './records.js';
import { outwait } from './visitors.js';

const RELEASE_WAIT_MS = 5_000;

export interface DeviceOptions {
  id: string;
  readOnly: boolean;
  partitionScan: boolean;
  logicalSectorBytes: number;
  links: string[];
  /** Makes the workers serve the descriptor, once the FUSE file is mounted. Gets this process's duplicate. */
  serve(fd: number): void;
}

/** Brings a device up. What fails is undone by the caller's list. */
export async function openDevice(
  context: EngineContext,
  undo: Undo,
  options: DeviceOptions,
): Promise<{ record: DeviceRecord; fd: number }> {
  const { keeper, paths } = context;
  const { fuseFd } = await keeper.call('openFuse', {});
  undo.add('close the FUSE descriptor', () => keeper.call('closeFds', { fds: [fuseFd] }));
  const fd = libc.duplicateFrom(keeper.pid, fuseFd);
  undo.add('close the duplicate', () => libc.close(fd));
  const target = join(paths.fuseDir, options.id);
  const record: DeviceRecord = { id: options.id, fuseFd, target, node: '', links: options.links };
  await withHelper(context, async (helper) => {
    await helper.call('mountFuse', { target, fuseFd });
    failPoint('fuse-mounted');
    undo.add('unmount the FUSE file', () =>
      withHelper(context, (other) => other.call('umount', { target, lazy: true })),
    );
    options.serve(fd);
    undo.add('end the session', () => context.pool.removeSession(options.id));
    const { node } = await helper.call('bindLoop', {
      target,
      readOnly: options.readOnly,
      partitionScan: options.partitionScan,
      logicalSectorBytes: options.logicalSectorBytes,
    });
    record.node = node;
    failPoint('loop-bound');
    undo.add('release the loop device', () => releaseNode(context, { node, target }));
  });
  for (const link of options.links) {
    makeLink(link, record.node);
    undo.add(`remove ${link}`, () => removeLink(link, record.node));
  }
  return { record, fd };
}

/**
 * Takes a device down; what is down already is passed over. Its openers must be gone: EBUSY where one has come, and it stays. The
 * keeper's descriptor stays: it is closed when no record names it any more.
 */
export async function closeDevice(context: EngineContext, device: DeviceRecord, fd: number): Promise<void> {
  for (const link of device.links) removeLink(link, device.node);
  failPoint('links-removed');
  try {
    await releaseNode(context, device);
  } catch (error) {
    if (await keepDevice(context, device)) throw error;
  }
  failPoint('loop-released');
  if (isMounted(device))
    await withHelper(context, (helper) => helper.call('umount', { target: device.target, lazy: false }));
  failPoint('fuse-unmounted');
  await context.pool.removeSession(device.id);
  libc.close(fd);
}

function isMounted(device: DeviceRecord): boolean {
  return ownMounts().some((entry) => entry.mountPoint === device.target);
}

/** Whether all of a device is up but, possibly, its links. */
export function isWhole(device: DeviceRecord): boolean {
  return isMounted(device) && isBoundLoop(device.node, device.target);
}

/** Makes the links that are missing. */
export function restoreLinks(device: DeviceRecord): void {
  for (const link of device.links) makeLink(link, device.node);
}

/**
 * Makes a device stay whose end has begun, with its links. The kernel would end its loop device with the last user, whenever that is,
 * and give the number to somebody else, while our record and links still had it. False where it has ended meanwhile.
 */
export async function keepDevice(context: EngineContext, device: DeviceRecord): Promise<boolean> {
  const { node, target } = device;
  const isOurs = (): boolean => isBoundLoop(node, target);
  try {
    if (isOurs() && isAutoClear(node)) await withHelper(context, (helper) => helper.call('keepLoop', { node, target }));
  } catch (error) {
    // It may end between the look and the call.
    if (isOurs()) throw error;
  }
  if (!isOurs()) return false;
  if (isWhole(device)) restoreLinks(device);
  return true;
}

/** Takes a device that is still in use out of sight: it gives errors from then on, and ends with its last user. */
export async function abandonDevice(context: EngineContext, device: DeviceRecord): Promise<void> {
  for (const link of device.links) removeLink(link, device.node);
  await withHelper(context, async (helper) => {
    const { node, target } = device;
    if (isBoundLoop(node, target)) await helper.call('releaseLoop', { node, target });
    await helper.call('umount', { target: device.target, lazy: true });
  });
}

/** Unbinds a device's loop device and waits until it is free; its number may be somebody else's at once. */
async function releaseNode(
  context: EngineContext,
  { node, target }: Pick<DeviceRecord, 'node' | 'target'>,
): Promise<void> {
  if (!isBoundLoop(node, target)) return;
  await withHelper(context, (helper) => helper.call('releaseLoop', { node, target }));
  const isBound = (): true | undefined => isBoundLoop(node, target) || undefined;
  if ((await outwait(isBound, { waitMs: RELEASE_WAIT_MS })) === undefined) return;
  throw new CowbirdError('EBUSY', `${node} is still open somewhere${describe(openersOf(statSync(node).rdev))}`, {
    outcome: 'partial',
  });
}

/** EBUSY with the first opener's pid and name, where somebody keeps a node open. */
export async function refuseOpen(node: string): Promise<void> {
  const { rdev } = statSync(node);
  const openers = await outwait(() => {
    const found = openersOf(rdev);
    return found.length === 0 ? undefined : found;
  });
  if (openers !== undefined) throw new CowbirdError('EBUSY', `${node} is in use${describe(openers)}`);
}

function describe(openers: Opener[]): string {
  const [first] = openers;
  if (first === undefined) return '';
  const others = openers.length > 1 ? ` and ${openers.length - 1} more` : '';
  return ` by pid ${first.pid} (${first.command})${others}`;
}
