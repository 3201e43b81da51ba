/**
 * `--free-aware`: blocks that no file had at T0 are not saved, and read as zeros in the snapshot.
 *
 * They are looked up before the freeze, since that takes longer the larger the file system is, and from before that on each
 * write is noted; at T0, under the closed gate, what was written is taken off (`beginFree` in `tracer/switches.ts`). A block that
 * was given to somebody meanwhile has contents only if it was written, so nothing of worth counts as free. What became free
 * meanwhile is saved like any other block.
 *
 * The free blocks belong to what the snapshot shows, so they outlive the daemon with it: as a file of runs in the state
 * directory, with a checksum that the series has. Without that very file a series is not gone on with (I2, I3).
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { deviceNumbersOn } from '../sys/blkdev.js';
import { CowbirdError, errnoOfError, messageOf } from '../sys/errors.js';
import { allMounts, type MountIdentity, pathOfMount } from '../sys/mounts.js';
import { setBits, setRuns, Word } from '../tracer/layout.js';
import { writeDurably } from './attach.js';
import type { EngineContext, Undo } from './context.js';
import { freezeMounts, identityOf, mountsOn } from './lookup.js';
import type { SavedSeries } from './records.js';
import { seriesPath } from './saved-state.js';
import type { HelperSession } from './services.js';
import { clearMemory, currentMap } from './tracking.js';
import type { Volume } from './volume.js';

const MAP_TIMEOUT_MS = 120_000;
const HEAD_BYTES = 4;
const RUN_BYTES = 8;

/** A file system whose free blocks are asked for, and where it begins on the volume. */
export interface MappedFileSystem {
  mountPoint: string;
  startBytes: number;
  mount: MountIdentity;
}

/** @throws {CowbirdError} EINVAL where there is none, or its place on the volume is not known. */
export function fileSystemsOf(volume: Volume): MappedFileSystem[] {
  const { name, device } = volume.record;
  const numbers = deviceNumbersOn(device.node);
  const mounts = allMounts();
  const found = freezeMounts(mountsOn(device.node, mounts), mounts).map((entry) => {
    const startBytes = numbers.find(({ number }) => number === entry.device)?.startBytes ?? null;
    if (startBytes !== null) return { mountPoint: pathOfMount(entry), startBytes, mount: identityOf(entry) };
    const where = `${entry.mountPoint} is stacked on ${name}, or lies on several devices`;
    throw new CowbirdError(
      'EINVAL',
      `${where}, so its free blocks have no place on the volume: leave out --free-aware`,
    );
  });
  if (found.length > 0) return found;
  throw new CowbirdError(
    'EINVAL',
    `${name} has no mounted file system that could say which blocks are free: leave out --free-aware`,
  );
}

/** Makes the memory ready for the free blocks of the snapshot that begins with the change map of this index. */
export function beginNoting(volume: Volume, undo: Undo, index: 0 | 1): void {
  const { memory } = volume;
  clearMemory(volume, { index: false, maps: [], free: [index], noted: true });
  memory.set(Word.NOTING, 1);
  undo.add('end the noting of writes', () => memory.set(Word.NOTING, 0));
}

/** Looks up what is free now, into the free map of this index. Writes have been noted from before on. */
export async function lookUpFree(
  context: EngineContext,
  helper: HelperSession,
  volume: Volume,
  index: 0 | 1,
): Promise<void> {
  const { freeOffsets, mapBytes } = volume.memory.sizes;
  const { blockCount } = volume;
  const fileSystems = fileSystemsOf(volume);
  const { memoryFd } = volume.record.opened;
  const place = { memoryFd, mapOffset: freeOffsets[index], mapBytes, blockCount };
  const { blocks, durationMs } = await helper.call('mapFree', { ...place, fileSystems }, MAP_TIMEOUT_MS);
  const { name } = volume.record;
  const message = `${blocks} of ${blockCount} blocks of ${name} are free, looked up in ${durationMs} ms`;
  context.emit({ event: 'free.mapped', level: 'info', message, volume: name, blocks, durationMs });
}

function freePath(stateDir: string, uuid: string, sequenceId: number): string {
  return seriesPath(stateDir, uuid).replace(/json$/, `${sequenceId}.free`);
}

/** Writes the free blocks of a snapshot that has begun to the state directory; without any, only what is there goes. */
export function saveFreeBlocks(context: EngineContext, volume: Volume): void {
  const { snapshot } = volume.record;
  if (snapshot === null) return;
  const { uuid, sequenceId } = snapshot;
  if (snapshot.freeAware === true) {
    const { bytes, blocks } = encodeFree(volume);
    volume.memory.set(Word.FREE_BLOCKS, blocks | 0);
    snapshot.free = {
      blocks,
      sha256: createHash('sha256').update(bytes).digest('hex'),
    };
    writeDurably(freePath(context.paths.stateDir, uuid, sequenceId), bytes);
  }
  removeFreeBlocks(context.paths.stateDir, uuid, snapshot.freeAware === true ? sequenceId : undefined);
}

/** Removes what the state directory has of free blocks of a series, but for those of one sequence. */
export function removeFreeBlocks(stateDir: string, uuid: string, keep?: number): void {
  const path = seriesPath(stateDir, uuid);
  const kept = keep === undefined ? '' : basename(freePath(stateDir, uuid, keep));
  const prefix = basename(path).replace(/json$/, '');
  for (const name of namesIn(dirname(path)))
    if (name.startsWith(prefix) && name.endsWith('.free') && name !== kept) rmSync(join(dirname(path), name));
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (errnoOfError(error) === 2) return [];
    throw error;
  }
}

/** The volume's blocks, then each run as first block and length: uint32, little-endian. */
function encodeFree({ memory, blockCount }: Volume): { bytes: Buffer; blocks: number } {
  const runs = [...setRuns(memory.freeMaps[currentMap(memory)], blockCount)];
  const bytes = Buffer.alloc(HEAD_BYTES + runs.length * RUN_BYTES);
  bytes.writeUInt32LE(blockCount, 0);
  runs.forEach(({ firstBlock, blockCount: count }, i) => {
    bytes.writeUInt32LE(firstBlock, HEAD_BYTES + i * RUN_BYTES);
    bytes.writeUInt32LE(count, HEAD_BYTES + i * RUN_BYTES + 4);
  });
  return { bytes, blocks: runs.reduce((sum, { blockCount: count }) => sum + count, 0) };
}

/**
 * Takes the free blocks of a saved series up into memory.
 *
 * @throws {CowbirdError} EINVAL when the file is not there, or is not the one that was saved.
 */
export function loadFreeBlocks(context: EngineContext, volume: Volume, saved: SavedSeries): void {
  const { free, uuid, sequenceId } = saved;
  if (free === undefined) return;
  const path = freePath(context.paths.stateDir, uuid, sequenceId);
  const refuse = (what: string): CowbirdError =>
    new CowbirdError('EINVAL', `${path}, which has the free blocks of the snapshot, ${what}: begin a new series`);
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw refuse(`cannot be read (${messageOf(error)})`);
  }
  if (createHash('sha256').update(bytes).digest('hex') !== free.sha256) throw refuse('was changed or is damaged');
  if (bytes.readUInt32LE(0) !== volume.blockCount) throw refuse(`is of a volume of ${bytes.readUInt32LE(0)} blocks`);
  volume.memory.set(Word.FREE_BLOCKS, free.blocks | 0);
  const map = volume.memory.freeMaps[currentMap(volume.memory)];
  for (let at = HEAD_BYTES; at < bytes.byteLength; at += RUN_BYTES) {
    const first = bytes.readUInt32LE(at);
    setBits(map, first, first + bytes.readUInt32LE(at + 4) - 1);
  }
}
