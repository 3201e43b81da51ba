/** Origins that never answer, engines that hang, helpers that die: nobody waits for ever, and nothing stays frozen. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as cowbird from '../src/index.js';
import { program } from './harness.js';
import { armFailPoint, restarts, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, until } from './lab.js';

const SECONDS = 1_000;

/** Rejects when an answer takes too long. */
async function within<T>(timeoutMs: number, what: string, answer: Promise<T>): Promise<T> {
  const late = pause(timeoutMs, undefined, { ref: false }).then(() => {
    throw new Error(`${what} took longer than ${timeoutMs} ms`);
  });
  return Promise.race([answer, late]);
}

async function mounted(t: TestContext): Promise<{ lab: Lab; node: string; mnt: string }> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', 200 * MIB);
  await lab.mkfs(node, 'ext4');
  const mnt = await lab.mount(node);
  await fill(`${mnt}/payload`, 8);
  return { lab, node, mnt };
}

/** The helper of a lab's daemon that holds a file system frozen. */
async function helperPid(lab: Lab): Promise<number> {
  const keeper = (await cowbird.daemonStatus(lab.client))?.keeperPid;
  for (const name of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      const status = readFileSync(`/proc/${name}/status`, 'utf8');
      const isOurs = new RegExp(`^PPid:\\s*${keeper}$`, 'm').test(status);
      if (isOurs && readFileSync(`/proc/${name}/cmdline`, 'utf8').includes('helper.js')) return Number(name);
    } catch (error) {
      if (!(error instanceof Error && 'code' in error)) throw error;
    }
  }
  throw new Error('the daemon has a helper');
}

/** What a process has open, by name; none where it has ended. */
function filesOf(pid: number): string[] {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder).flatMap((fd) => {
    try {
      return [readlinkSync(`${folder}/${fd}`)];
    } catch {
      // Closed meanwhile.
      return [];
    }
  });
}

/** The engine below, which is stopped now and then; it goes on at the end of either lab at the latest. */
async function stoppable(below: Lab, above: Lab): Promise<{ enginePid: number; go: () => Promise<void> }> {
  const enginePid = (await cowbird.daemonStatus(below.client))?.enginePid;
  assert.ok(enginePid);
  const go = async (): Promise<void> => {
    process.kill(enginePid, 'SIGCONT');
  };
  below.onEnd(go);
  above.onEnd(go);
  return { enginePid, go };
}

/** A write to `to` that will wait for `from`; what is returned begins it, and resolves when it waits. */
async function heldWriter(lab: Lab, from: string, to: string): Promise<() => Promise<void>> {
  const path = fileURLToPath(new URL('./held-writer.js', import.meta.url));
  const child = spawn(process.execPath, [path, from, to], { stdio: ['pipe', 'pipe', 'inherit'] });
  lab.onEnd(async () => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return async () => {
    child.stdin.write('x');
    const isHeld = (): boolean => /^State:\s*D/m.test(readFileSync(`/proc/${child.pid}/status`, 'utf8'));
    await until('the write is held', isHeld);
  };
}

/** True when a file could be written. */
async function touches(mnt: string): Promise<boolean> {
  await run('dd', 'if=/dev/zero', `of=${mnt}/touched`, 'bs=4k', 'count=1', 'conv=fsync', 'status=none');
  return true;
}

// They wait much and do little, each with a daemon of its own: all at once.
describe('nobody waits for ever', { skip: CANNOT, concurrency: true }, () => {
  it('an origin that never answers hangs neither status, list and info nor the commands on another daemon; when it answers again all goes on', async (t) => {
    const below = new Lab(t);
    const origin = await below.attached('below', 60 * MIB);
    const lab = new Lab(t);
    const name = `above-${lab.tag}`;
    const { device } = await cowbird.attach(origin, { name }, lab.client);
    const { enginePid, go } = await stoppable(below, lab);
    process.kill(enginePid, 'SIGSTOP');
    program(lab, 'dd', [`if=${device}`, 'of=/dev/null', 'bs=1M', 'count=8', 'iflag=direct']);
    const setup = cowbird.setupSnapshot(device, lab.path('store'), 190, { storeBytes: 20 * MIB }, lab.client);
    setup.catch(() => undefined);
    await pause(1 * SECONDS);
    const status = await within(3 * SECONDS, 'daemon status', cowbird.daemonStatus(lab.client));
    assert.equal(status?.running, true);
    const volumes = await within(5 * SECONDS, 'list', cowbird.listVolumes(lab.client));
    assert.deepEqual(
      volumes.map((volume) => volume.name),
      [name],
    );
    assert.deepEqual((await within(5 * SECONDS, 'info', cowbird.info(undefined, lab.client))).devices, []);
    await go();
    await within(20 * SECONDS, 'the setup', setup);
    assert.equal((await lab.status(190)).state, 3);
  });

  it('an engine that hangs while a file system is frozen does not keep it so: its watchdog thaws', async (t) => {
    const { lab, node, mnt } = await mounted(t);
    await armFailPoint(lab, 'frozen', 0, 'hang');
    const setup = cowbird.setupSnapshot(node, `${mnt}/.cow`, 191, { storeBytes: 60 * MIB }, lab.client);
    setup.catch(() => undefined);
    await until('the engine hangs', async () => (await cowbird.daemonStatus(lab.client))?.engineAnswers === false);
    await within(8 * SECONDS, 'a write', fill(`${mnt}/written`, 2));
    const { devices } = await within(5 * SECONDS, 'info', cowbird.info(undefined, lab.client));
    assert.deepEqual(devices, []);
    await cowbird.restartDaemon(lab.client);
    await within(20 * SECONDS, 'the setup, begun again', setup);
    assert.equal(digestOf('/dev/cowbird191'), digestOf('/dev/cowbird191'));
  });

  it('an engine that hangs within a switch is ended, and the next one makes the switch', async (t) => {
    const { lab, node, mnt } = await mounted(t);
    await armFailPoint(lab, 'switched', 0, 'hang');
    const before = await restarts(lab);
    const setup = cowbird.setupSnapshot(node, `${mnt}/.cow`, 192, { storeBytes: 60 * MIB }, lab.client);
    setup.catch(() => undefined);
    await pause(500);
    await within(12 * SECONDS, 'a write', fill(`${mnt}/written`, 2));
    await within(20 * SECONDS, 'the setup', setup);
    assert.ok((await restarts(lab)) > before);
    assert.equal((await lab.status(192)).state, 3);
  });

  it('an engine that hangs, with its helper killed in the freeze, leaves nothing frozen: the keeper thaws', async (t) => {
    const { lab, node, mnt } = await mounted(t);
    await armFailPoint(lab, 'frozen', 0, 'hang');
    const setup = cowbird.setupSnapshot(node, `${mnt}/.cow`, 193, { storeBytes: 60 * MIB }, lab.client);
    setup.catch(() => undefined);
    await until('the engine hangs', async () => (await cowbird.daemonStatus(lab.client))?.engineAnswers === false);
    process.kill(await helperPid(lab), 'SIGKILL');
    await within(4 * SECONDS, 'a write', fill(`${mnt}/written`, 2));
    await cowbird.restartDaemon(lab.client);
    await within(20 * SECONDS, 'the setup, begun again', setup);
  });

  it('a file system whose freeze hangs keeps none frozen that was frozen with it', async (t) => {
    const below = new Lab(t);
    const slow = await below.attached('slow', 60 * MIB);
    await below.mkfs(slow, 'ext4');
    const slowMnt = await below.mount(slow);
    await fill(`${slowMnt}/page`, 1);
    await run('umount', slowMnt);
    await run('mount', slow, slowMnt);
    const { lab, node, mnt } = await mounted(t);
    const other = await lab.attached('other', 100 * MIB);
    await lab.mkfs(other, 'ext4');
    const otherMnt = await lab.mount(other, 'other-mnt');
    await fill(`${otherMnt}/target`, 1);
    const { enginePid, go } = await stoppable(below, lab);
    const begin = await heldWriter(lab, `${slowMnt}/page`, `${otherMnt}/target`);
    process.kill(enginePid, 'SIGSTOP');
    await begin();
    const snapshots = [
      { device: node, cowFile: `${mnt}/.cow`, minor: 196, storeBytes: 20 * MIB },
      { device: other, cowFile: `${otherMnt}/.cow`, minor: 197, storeBytes: 20 * MIB },
    ];
    const setup = cowbird.setupTogether(snapshots, {}, lab.client);
    setup.catch(() => undefined);
    await until('the first is frozen', async () => !(await within(500, 'a write', touches(mnt)).catch(() => false)));
    await within(20 * SECONDS, 'a write to the one that does not hang', fill(`${mnt}/written`, 2));
    await go();
    await assert.rejects(within(60 * SECONDS, 'the setup', setup), {
      code: 'ETIMEDOUT',
      message: new RegExp(`: ${otherMnt} does not answer`),
    });
    await within(5 * SECONDS, 'a write to the other one', fill(`${otherMnt}/written`, 2));
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
  });

  it('a helper that is killed while it fills a COW file leaves none', async (t) => {
    const lab = new Lab(t);
    // Its index is 512 MiB of zeros.
    const node = await lab.attached('large', 262_144 * MIB);
    const elsewhere = lab.path('elsewhere');
    mkdirSync(elsewhere);
    const setup = cowbird.setupSnapshot(node, `${elsewhere}/cow`, 195, { storeBytes: 600 * MIB }, lab.client);
    setup.catch(() => undefined);
    let filling = 0;
    await until('a helper fills the file', async () => {
      filling = await helperPid(lab).catch(() => 0);
      return filling > 0 && filesOf(filling).some((file) => file.startsWith(elsewhere));
    });
    process.kill(filling, 'SIGKILL');
    await assert.rejects(within(20 * SECONDS, 'the setup', setup));
    assert.deepEqual(readdirSync(elsewhere), []);
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
  });

  it('destroy, a refused detach, detach and a forced stop end within 10 s under load', async (t) => {
    const { lab, node, mnt } = await mounted(t);
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, 194, { storeBytes: 60 * MIB }, lab.client);
    const raw = await lab.attached('raw', 60 * MIB);
    const load = (target: string): (() => Promise<void>) =>
      program(lab, 'fio', [
        '--name=l',
        '--thread',
        `--filename=${target}`,
        '--size=50M',
        '--rw=randwrite',
        '--bs=64k',
        '--direct=1',
        '--ioengine=libaio',
        '--iodepth=16',
        '--time_based',
        '--runtime=60',
      ]);
    load(`${mnt}/load`);
    const stopRaw = load(raw);
    await pause(1 * SECONDS);
    await within(10 * SECONDS, 'destroy', cowbird.destroy(194, lab.client));
    await assert.rejects(within(10 * SECONDS, 'detach', cowbird.detach(node, lab.client)), { code: 'EBUSY' });
    await assert.rejects(within(10 * SECONDS, 'stop', cowbird.stopDaemon({}, lab.client)), { code: 'EBUSY' });
    await stopRaw();
    await within(10 * SECONDS, 'detach', cowbird.detach(raw, lab.client));
    await within(10 * SECONDS, 'stop --force', cowbird.stopDaemon({ force: true }, lab.client));
    await run('umount', '-l', mnt);
  });
});
