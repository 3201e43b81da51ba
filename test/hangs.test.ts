/** Origins that never answer, engines that hang, helpers that die: nobody waits for ever, and nothing stays frozen. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
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

// They wait much and do little, each with a daemon of its own: all at once.
describe('nobody waits for ever', { skip: CANNOT, concurrency: true }, () => {
  it('an origin that never answers hangs neither status, list and info nor the commands on another daemon; when it answers again all goes on', async (t) => {
    const below = new Lab(t);
    const origin = await below.attached('below', 60 * MIB);
    const lab = new Lab(t);
    const name = `above-${lab.tag}`;
    const { device } = await cowbird.attach(origin, { name }, lab.client);
    const enginePid = (await cowbird.daemonStatus(below.client))?.enginePid;
    assert.ok(enginePid);
    const resume = async (): Promise<void> => {
      process.kill(enginePid, 'SIGCONT');
    };
    process.kill(enginePid, 'SIGSTOP');
    below.onEnd(resume);
    lab.onEnd(resume);
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
    await resume();
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
