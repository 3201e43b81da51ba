/** Memory pressure: the engine must not wait for pages that only it can write. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ARENA_BYTES } from '../src/engine/batch.js';
import * as cowbird from '../src/index.js';
import { trySetIoFlusher } from '../src/sys/libc.js';
import { killEngine, restarts, untilRestarted } from './killing.js';
import { CANNOT, fill, Lab, MIB, run, until } from './lab.js';
import { abortVolumes, LIMIT_BYTES, MemoryGroup, watchWriteback } from './memory-group.js';

const MINOR = 210;
const WATCH_MS = 7_500;
const STALL_MS = 6_000;
const FILE_MIB = 100;
const WORKERS = 3;
const NO_GROUPS = 'the kernel has no memory controller of cgroup version 1';

async function pidsOf(lab: Lab): Promise<{ keeper: number; engine: number }> {
  const status = await cowbird.daemonStatus(lab.client);
  assert.ok(status?.enginePid, 'the daemon runs');
  return { keeper: status.keeperPid, engine: status.enginePid };
}

/** A volume with two files whose pages nobody has in memory. */
async function bench(lab: Lab): Promise<{ node: string; mnt: string; files: string[] }> {
  const node = await lab.attached('volume', 700 * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  const files = ['a', 'b'].map((name) => `${mnt}/${name}`);
  for (const file of files) await fill(file, FILE_MIB);
  await run('umount', mnt);
  await run('mount', node, mnt);
  return { node, mnt, files };
}

/** Dirty-page pressure in the group, in passthrough and in snapshot mode. */
async function press(t: TestContext, env: NodeJS.ProcessEnv): Promise<{ lab: Lab; group: MemoryGroup } | undefined> {
  const lab = new Lab(t, env);
  const { node, mnt, files } = await bench(lab);
  const group = await MemoryGroup.create(lab, LIMIT_BYTES);
  if (group === undefined) {
    t.skip(NO_GROUPS);
    return undefined;
  }
  const { keeper, engine } = await pidsOf(lab);
  for (const mode of ['passthrough', 'snapshot']) {
    if (mode === 'snapshot')
      await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 230 * MIB }, lab.client);
    for (const pid of [keeper, engine]) group.take(pid);
    if (env['COWBIRD_KEEP_CGROUP'] === undefined) await group.untilLeftBy(keeper, engine);
    const stop = group.writer(lab, files);
    const seen = await watchWriteback(node, WATCH_MS);
    if (seen.longestMs >= STALL_MS) abortVolumes(lab);
    await stop();
    assert.ok(seen.longestMs < STALL_MS, `${mode}: ${seen.longestMs} ms without progress`);
    assert.ok(seen.writtenBytes > LIMIT_BYTES, `${mode}: ${seen.writtenBytes} bytes were written`);
    assert.ok(group.number('memory.failcnt') > 0, `${mode}: the group was full`);
    t.diagnostic(`${mode}: ${Math.round(seen.writtenBytes / MIB)} MiB, at most ${seen.longestMs} ms without progress`);
  }
  assert.ok(group.number('memory.max_usage_in_bytes') > 0.9 * LIMIT_BYTES);
  const { state, error } = await lab.status(MINOR);
  assert.deepEqual({ state, error }, { state: 3, error: undefined });
  assert.equal(await restarts(lab), 0);
  return { lab, group };
}

describe('a driver put into one limited memory group with the writer', { skip: CANNOT }, () => {
  it('leaves it, also after a restart, and writeback goes on under dirty-page pressure', async (t) => {
    const pressed = await press(t, {});
    if (pressed === undefined) return;
    const { lab, group } = pressed;
    const { keeper: before } = await pidsOf(lab);
    group.take(before);
    // Caught in there while there is no engine, it would wait for what only an engine can write.
    await group.untilLeftBy(before);
    await killEngine(lab);
    await untilRestarted(lab, 0, 'its end in a group');
    const { keeper, engine } = await pidsOf(lab);
    await group.untilLeftBy(keeper, engine);
    assert.match(readFileSync(lab.path('run/daemon.log'), 'utf8'), /The engine has left the memory group/);
  });

  const reason = trySetIoFlusher() ? false : 'PR_SET_IO_FLUSHER is refused here: a driver that stays may hang';
  it('goes on in there when it is told to stay and may be an I/O flusher', { skip: reason }, async (t) => {
    const pressed = await press(t, { COWBIRD_KEEP_CGROUP: '1' });
    if (pressed === undefined) return;
    const { keeper, engine } = await pidsOf(pressed.lab);
    assert.ok(
      [keeper, engine].every((pid) => pressed.group.pids.includes(pid)),
      'they have stayed',
    );
  });
});

interface Mapping {
  bytes: number;
  resident: number;
  /** Shared memory counts here in proportion to its users. */
  locked: number;
  flags: string;
  permissions: string;
  path: string;
}

function mappingsOf(pid: number): Mapping[] {
  const found: Mapping[] = [];
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    const head = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)$/.exec(line);
    const [, start = '', end = '', permissions = '', path = ''] = head ?? [];
    const bytes = Number.parseInt(end, 16) - Number.parseInt(start, 16);
    if (head !== null) found.push({ bytes, resident: 0, locked: 0, flags: '', permissions, path });
    const last = found.at(-1);
    const [, name, value = ''] = /^(Rss|Locked|VmFlags): +(.*)$/.exec(line) ?? [];
    if (last === undefined) continue;
    if (name === 'Rss') last.resident = Number.parseInt(value, 10) * 1024;
    else if (name === 'Locked') last.locked = Number.parseInt(value, 10) * 1024;
    else if (name === 'VmFlags') last.flags = value;
  }
  return found;
}

describe('the memory of a driver that serves', { skip: CANNOT }, () => {
  it('is locked: each worker’s buffers wholly, and the program’s text', async (t) => {
    const lab = new Lab(t);
    const image = lab.image('volume', 50 * MIB);
    await cowbird.attach(image, { name: `volume-${lab.tag}`, workers: WORKERS }, lab.client);
    const { keeper, engine } = await pidsOf(lab);
    // What the requests go through, and what old contents are copied in.
    for (const bytes of [ARENA_BYTES, MIB]) {
      const buffers = mappingsOf(engine).filter((each) => each.bytes === bytes && each.permissions === 'rw-p');
      const locked = buffers.filter((each) => each.locked === each.bytes);
      assert.ok(locked.length >= WORKERS, `${locked.length} of ${buffers.length} buffers of ${bytes} are locked`);
    }
    for (const pid of [keeper, engine]) {
      const isLocked = (): boolean => {
        const text = mappingsOf(pid).filter(({ permissions, path }) => permissions === 'r-xp' && path.includes('node'));
        return text.some((each) => / lo\b/.test(each.flags) && each.resident === each.bytes && each.bytes > 10 * MIB);
      };
      await until(`the text of ${pid} is locked`, isLocked);
    }
  });

  it('is the last that the OOM killer takes, as far as the system allows', async (t) => {
    const lab = new Lab(t);
    await cowbird.startDaemon(lab.client);
    const score = (pid: number): number => Number(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8'));
    const { keeper, engine } = await pidsOf(lab);
    if (score(keeper) === score(process.pid)) t.skip('lowering the OOM score is refused here');
    else assert.deepEqual([score(keeper), score(engine)], [-1000, -999]);
  });
});

describe('a daemon whose output nobody reads', { skip: CANNOT }, () => {
  it('attaches, serves, survives a kill and ends while the pipe is full', async (t) => {
    const lab = new Lab(t);
    const keeperMain = fileURLToPath(new URL('../src/control/keeper-main.js', import.meta.url));
    const script = '{ head -c 65536 /dev/zero; exec "$0" "$1" 2>&1; } | sleep 60';
    const shell = spawn('sh', ['-c', script, process.execPath, keeperMain], {
      env: lab.env,
      stdio: 'ignore',
      detached: true,
    });
    const ended = new Promise((resolve) => shell.once('exit', resolve));
    lab.onEnd(async () => {
      await cowbird.stopDaemon({ force: true }, lab.client).catch(() => undefined);
      if (shell.pid !== undefined) process.kill(-shell.pid, 'SIGKILL');
      await ended;
    });
    await until(
      'it answers',
      async () => (await cowbird.daemonStatus(lab.client).catch(() => undefined)) !== undefined,
    );
    const node = await lab.attached('volume', 50 * MIB);
    await lab.mkfs(node, 'ext4');
    const before = await restarts(lab);
    await killEngine(lab);
    await untilRestarted(lab, before, 'a kill');
    await run('dd', `if=${node}`, 'of=/dev/null', 'bs=1M', 'iflag=direct', 'status=none');
    const { keeper } = await pidsOf(lab);
    await cowbird.detach(`volume-${lab.tag}`, lab.client);
    await cowbird.stopDaemon({}, lab.client);
    await until('the daemon has ended', () => !existsSync(`/proc/${keeper}`));
  });
});
