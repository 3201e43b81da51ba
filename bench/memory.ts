/** Memory of keeper and engine: RssAnon + RssShmem, what is theirs alone; program text is shared with every other Node. */
import { readFileSync } from 'node:fs';
import * as cowbird from '../src/index.js';
import { runFio, type Workload } from './fio.js';
import { makeFileSystem, mountAt } from './images.js';
import { GIB, type Lab, MIB, unmounted } from './lab.js';
import type { Scale } from './options.js';
import { pause } from './processes.js';
import { unusedMinor } from './subjects.js';
import { storeBytesFor } from './times.js';

export interface MemoryCase {
  title: string;
  volumes: number;
  volumeGib: number;
  keeperMib: number;
  engineMib: number;
  limitMib: number | null;
}

interface Client {
  env: NodeJS.ProcessEnv;
}

/** The bar: so much for the daemon, and so much for each TiB of volumes. */
const LIMIT_BASE_MIB = 150;
const LIMIT_PER_TIB_MIB = 40;
const IDLE_LIMIT_MIB = 500;
const WRITES_MIB = 64;

function residentMib(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0);
  return (kib('RssAnon') + kib('RssShmem')) / 1_024;
}

async function measured(
  client: Client,
  settleMs: number,
  about: Pick<MemoryCase, 'title' | 'volumes' | 'volumeGib' | 'limitMib'>,
): Promise<MemoryCase> {
  await pause(settleMs);
  const status = await cowbird.daemonStatus(client);
  if (status?.enginePid == null) throw new Error('The daemon does not run');
  return { ...about, keeperMib: residentMib(status.keeperPid), engineMib: residentMib(status.enginePid) };
}

export async function measureMemory(lab: Lab, scale: Scale, say: (text: string) => void): Promise<MemoryCase[]> {
  const cases = [
    ...(await oneVolume(lab, scale, 1, 'one volume of 1 GiB')),
    ...(await oneVolume(lab, scale, scale.largeGib, `one volume of ${scale.largeGib} GiB, sparse`)),
    await idleVolumes(lab, scale),
  ];
  for (const { title, keeperMib, engineMib } of cases)
    say(`memory, ${title}: ${Math.round(keeperMib + engineMib)} MiB`);
  return cases;
}

async function attachSparse(lab: Lab, client: Client, name: string, gib: number): Promise<string> {
  const path = lab.path(`${name}.img`);
  await lab.run('truncate', ['-s', `${gib}G`, path]);
  return (await cowbird.attach(path, { name: `bench-${name}-${process.pid}` }, client)).device;
}

/** Attached; then with a snapshot after a load that is spread over the volume. */
async function oneVolume(lab: Lab, scale: Scale, gib: number, title: string): Promise<MemoryCase[]> {
  const name = `memory-${gib}`;
  const client = lab.client(name);
  const limitMib = LIMIT_BASE_MIB + (LIMIT_PER_TIB_MIB * gib) / 1_024;
  await cowbird.startDaemon(client);
  const device = await attachSparse(lab, client, name, gib);
  const about = { volumes: 1, volumeGib: gib, limitMib };
  const idle = await measured(client, scale.settleMs, { ...about, title: `${title}, attached` });
  await makeFileSystem(lab, device, '-E', 'lazy_itable_init=1,nodiscard', '-J', 'size=64');
  const mountPoint = await mountAt(lab, device, name, '-o', 'noinit_itable');
  const fileMib = gib * 512;
  await lab.run('fallocate', ['-l', `${fileMib}M`, `${mountPoint}/data`]);
  const minor = unusedMinor();
  const storeBytes = storeBytesFor(gib * GIB) + 2 * WRITES_MIB * MIB;
  await cowbird.setupSnapshot(device, `${mountPoint}/.cow`, minor, { storeBytes }, client);
  await runFio(lab, spreadWrites(), { file: `${mountPoint}/data`, fileMib }, { cellMs: 0, seed: 1 });
  const after = `${title}, snapshot, after ${(WRITES_MIB * MIB) / 4_096} random writes`;
  const loaded = await measured(client, scale.settleMs, { ...about, title: after });
  await unmounted(mountPoint);
  await cowbird.destroy(minor, client);
  await endDaemon(client);
  return [idle, loaded];
}

function spreadWrites(): Workload {
  return {
    name: 'spread-writes',
    title: 'random writes over the whole file',
    unit: 'IOPS',
    direction: 'write',
    depth: 16,
    args: ['--rw=randwrite', '--bs=4k', '--iodepth=16', '--random_generator=lfsr'],
    passBytes: WRITES_MIB * MIB,
  };
}

async function idleVolumes(lab: Lab, scale: Scale): Promise<MemoryCase> {
  const count = scale.idleVolumes;
  const client = lab.client('memory-idle');
  await cowbird.startDaemon(client);
  for (let i = 0; i < count; i++) await attachSparse(lab, client, `idle-${i}`, 1);
  const result = await measured(client, scale.settleMs, {
    title: `${count} idle volumes of 1 GiB`,
    volumes: count,
    volumeGib: 1,
    limitMib: IDLE_LIMIT_MIB,
  });
  await endDaemon(client);
  return result;
}

async function endDaemon(client: Client): Promise<void> {
  for (const { name } of await cowbird.listVolumes(client)) await cowbird.detach(name, client);
  await cowbird.stopDaemon({}, client);
}
