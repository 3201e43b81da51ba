/**
 * The steps on a plain image, for machines without devices: the same tracer, COW format and update as under a mounted
 * volume, in this process, with writes of our own in place of a file system's.
 */

import { randomBytes, randomInt } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const BLOCK = 4096;
const BLOCKS = 8192;
const SIZE = BLOCK * BLOCKS;

export async function plainDemo(load) {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-demo-'));
  try {
    await run(load, folder);
    console.log('\nAll equal; nothing is left behind.');
    return 0;
  } catch (error) {
    console.error(`demo failed: ${error.message}`);
    return 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function run(load, folder) {
  const [
    { VolumeMemory, Word, Mode, setRuns },
    { Tracer },
    { readSnapshot },
    { runSteps },
    { updateImage },
    libc,
    { FdDevice },
  ] = await Promise.all(
    [
      'tracer/layout.js',
      'tracer/tracer.js',
      'tracer/snapshot-view.js',
      'tracer/steps.js',
      'backup/update-image.js',
      'sys/libc.js',
      'block/device.js',
    ].map(load),
  );
  const file = (name, fill) => {
    const fd = openSync(join(folder, name), 'w+');
    if (fill) for (let at = 0; at < SIZE; at += SIZE / 8) writeSync(fd, randomBytes(SIZE / 8), 0, SIZE / 8, at);
    return fd;
  };
  const originFd = file('volume.img', true);
  const storeFd = file('store.cow', false);
  const memoryFd = libc.memfdCreate('demo', 64 * 1024 * 1024);
  const memory = new VolumeMemory({ map: (offset, bytes) => libc.mapShared(memoryFd, offset, bytes) }, BLOCKS);
  const tracer = new Tracer(memory, new FdDevice(originFd, SIZE, true), {
    wake: () => {},
    attention: () => {},
    refresh: () => {},
  });
  const mapping = libc.mapLocked(1024 * 1024);
  const scratch = { bytes: new Uint8Array(mapping.bytes), address: mapping.address };
  const dataMapping = libc.mapLocked(1024 * 1024);
  const data = { bytes: new Uint8Array(dataMapping.bytes), address: dataMapping.address };
  const context = { worker: 0, scratch };
  const wait = () => {
    throw new Error('one writer waits for nobody');
  };
  const config = { kind: 'device', extents: [], slots: [{ place: 17, count: BLOCKS }], placeCount: BLOCKS + 17 };
  const storeDevice = new FdDevice(storeFd, config.placeCount * BLOCK, true);
  const beginSnapshot = () => {
    memory.set(Word.NEXT_SLOT, 0);
    memory.set(Word.SLOT_COUNT, BLOCKS);
    memory.set(Word.CHANGED, 0);
    memory.map.fill(0);
    tracer.setStore({ config, dirtyHeader: new Uint8Array(BLOCK) }, storeDevice);
    memory.set(Word.MODE, Mode.SNAPSHOT);
  };
  const writes = (count) => {
    for (let i = 0; i < count; i++) {
      const lengthBytes = 512 * randomInt(1, 64);
      const offset = 512 * randomInt(0, (SIZE - lengthBytes) / 512);
      data.bytes.set(randomBytes(lengthBytes), 0);
      runSteps(tracer.write(context, data, 0, lengthBytes, offset), wait);
    }
  };
  const view = {
    lengthBytes: SIZE,
    read: (buffer, offset) => {
      const lengthBytes = Math.min(buffer.byteLength, 1024 * 1024, SIZE - offset);
      runSteps(readSnapshot(tracer, data, 0, lengthBytes, offset), wait);
      buffer.set(data.bytes.subarray(0, lengthBytes));
      return lengthBytes;
    },
  };
  const copyOf = (reader) => {
    const all = Buffer.alloc(SIZE);
    for (let at = 0; at < SIZE; ) at += reader.read(all.subarray(at), at);
    return all;
  };
  const say = (text) => console.log(`  ${text}`);
  const need = (condition, text) => {
    if (!condition) throw new Error(text);
  };
  const atStart = readFileSync(join(folder, 'volume.img'));
  beginSnapshot();
  say('1 snapshot of a plain image');
  writes(200);
  const image = join(folder, 'backup.img');
  const imageFd = openSync(image, 'w');
  writeSync(imageFd, copyOf(view));
  closeSync(imageFd);
  need(readFileSync(image).equals(atStart), 'the image is not what the volume was');
  say('2 200 writes later the copy of the snapshot is the volume as it was, bit for bit');
  memory.set(Word.MODE, Mode.INCREMENTAL);
  say('3 incremental mode');
  writes(100);
  const runs = [...setRuns(memory.map, BLOCKS)];
  say(`4 ${memory.get(Word.CHANGED)} of ${BLOCKS} blocks changed`);
  beginSnapshot();
  say('5 second snapshot');
  const second = readFileSync(join(folder, 'volume.img'));
  writes(100);
  const { changedBlocks } = updateImage({ source: view, changed: runs, imagePath: image });
  say(`6 update: ${changedBlocks} blocks copied`);
  need(readFileSync(image).equals(second), 'the updated image is not the second snapshot');
  say('7 the updated image is the second snapshot, bit for bit');
  const check = Buffer.alloc(SIZE);
  readSync(originFd, check, 0, SIZE, 0);
  need(!check.equals(second), 'the volume went on changing');
  say('8 the volume went on changing meanwhile');
  memory.set(Word.MODE, Mode.PASSTHROUGH);
  say('9 snapshot ended');
}
