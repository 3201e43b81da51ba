/** How long attaching, setting up and the transitions take, and for how long the file system stands still meanwhile. */
import { rmSync } from 'node:fs';
import { blockCount, dataOffsetBytes } from '../src/cow/geometry.js';
import * as cowbird from '../src/index.js';
import { makeFileSystem, mountAt, requireSpace } from './images.js';
import { GIB, type Lab, MIB, unmounted } from './lab.js';
import type { Scale } from './options.js';
import { until } from './processes.js';
import { unusedMinor } from './subjects.js';

export interface TimesCase {
  gib: number;
  attachMs: number;
  setupMs: number;
  setupFreezeMs: number | null;
  toIncrementalMs: number;
  toSnapshotMs: number;
  toSnapshotFreezeMs: number | null;
}

const STORE_DATA_MIB = 64;

/** A small store for a volume of so many bytes: most of it is the index. */
export function storeBytesFor(volumeBytes: number): number {
  return Math.ceil(dataOffsetBytes(blockCount(volumeBytes)) / MIB) * MIB + STORE_DATA_MIB * MIB;
}

export async function measureTimes(lab: Lab, scale: Scale, say: (text: string) => void): Promise<TimesCase[]> {
  const cases: TimesCase[] = [];
  for (let round = 0; round < scale.timedRounds; round++) {
    for (const gib of scale.timedGib) {
      const times = await measureOne(lab, gib);
      cases.push(times);
      const freeze = `frozen ${times.setupFreezeMs ?? '?'} and ${times.toSnapshotFreezeMs ?? '?'} ms`;
      say(`${gib} GiB: setup ${Math.round(times.setupMs)} ms, next ${Math.round(times.toSnapshotMs)} ms, ${freeze}`);
    }
  }
  return cases;
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
}

async function measureOne(lab: Lab, gib: number): Promise<TimesCase> {
  const storeBytes = storeBytesFor(gib * GIB);
  requireSpace(lab, Math.ceil((3 * storeBytes) / MIB) + 1_024);
  const client = lab.client(`times-${gib}`);
  const origin = lab.path(`times-${gib}.img`);
  await lab.run('truncate', ['-s', `${gib}G`, origin]);
  await cowbird.startDaemon(client);
  const freezes = new Freezes(client);
  let device = '';
  const name = `bench-times-${gib}-${process.pid}`;
  const attachMs = await timed(async () => {
    device = (await cowbird.attach(origin, { name }, client)).device;
  });
  await makeFileSystem(lab, device, '-E', 'lazy_itable_init=1,nodiscard', '-J', 'size=64');
  const mountPoint = await mountAt(lab, device, `times-${gib}`, '-o', 'noinit_itable');
  const minor = unusedMinor();
  const setupMs = await timed(() =>
    cowbird.setupSnapshot(device, `${mountPoint}/.cow1`, minor, { storeBytes }, client),
  );
  const setupFreezeMs = await freezes.next();
  const toIncrementalMs = await timed(() => cowbird.transitionToIncremental(minor, client));
  freezes.forget();
  const toSnapshotMs = await timed(() =>
    cowbird.transitionToSnapshot(minor, `${mountPoint}/.cow2`, { storeBytes }, client),
  );
  const toSnapshotFreezeMs = await freezes.next();
  freezes.end();
  await unmounted(mountPoint);
  await cowbird.destroy(minor, client);
  await cowbird.detach(name, client);
  await cowbird.stopDaemon({}, client);
  rmSync(origin);
  return { gib, attachMs, setupMs, setupFreezeMs, toIncrementalMs, toSnapshotMs, toSnapshotFreezeMs };
}

/** Listens to the daemon's events for how long the file system was frozen. */
class Freezes {
  readonly #controller = new AbortController();
  readonly #heard: number[] = [];

  constructor(client: { env: NodeJS.ProcessEnv }) {
    // Its end is the abort, or the daemon's: nobody waits for it.
    void this.#listen(client).catch(() => undefined);
  }

  async #listen(client: { env: NodeJS.ProcessEnv }): Promise<void> {
    for await (const event of cowbird.events({ ...client, signal: this.#controller.signal })) {
      const freezeMs = event['freezeMs'];
      if (typeof freezeMs === 'number') this.#heard.push(freezeMs);
    }
  }

  /** The last one heard; null when none comes. */
  async next(): Promise<number | null> {
    await until('a freeze is reported', () => this.#heard.length > 0, 2_000).catch(() => undefined);
    return this.#heard.pop() ?? null;
  }

  forget(): void {
    this.#heard.length = 0;
  }

  end(): void {
    this.#controller.abort();
  }
}
