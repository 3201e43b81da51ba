/** The installed version is replaced while volumes are mounted: what `daemon restart` takes, and what it leaves alone. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { cpSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { dirname, join, resolve } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { daemonText } from '../src/cli/tables.js';
import { ENGINE_PROTOCOL, OLDEST_KEEPER } from '../src/engine/protocol.js';
import { requireSwappable } from '../src/engine/swap.js';
import * as cowbird from '../src/index.js';
import { codeOf, errnoOfError } from '../src/sys/errors.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, until } from './lab.js';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
const MINOR = 200;
/** Longer than a helper rests. */
const HELPER_RESTS_MS_MAX = 15_000;

/** A daemon that runs from a copy of the program, whose files a test may replace. */
class Installed {
  readonly lab: Lab;
  readonly #saved = new Map<string, string>();

  private constructor(lab: Lab) {
    this.lab = lab;
  }

  static async start(t: TestContext): Promise<Installed> {
    const installed = new Installed(new Lab(t));
    const { lab } = installed;
    cpSync(join(ROOT, 'dist', 'src'), lab.path('package/src'), { recursive: true });
    writeFileSync(lab.path('package/package.json'), '{ "type": "module" }');
    symlinkSync(join(ROOT, 'node_modules'), lab.path('package/node_modules'));
    const child = spawn(process.execPath, [lab.path('package/src/control/keeper-main.js')], {
      argv0: '@cowbird',
      env: lab.env,
      stdio: 'ignore',
      detached: true,
      cwd: '/',
    });
    child.unref();
    await until('the daemon answers', async () => (await cowbird.daemonStatus(lab.client)) !== undefined);
    return installed;
  }

  /** Replaces text in a file of the package. */
  replace(file: string, from: string, to: string): void {
    const path = this.lab.path(`package/src/${file}`);
    const text = readFileSync(path, 'utf8');
    assert.ok(text.includes(from), `${file} has ${from}`);
    this.#saved.set(path, text);
    writeFileSync(path, text.replace(from, to));
  }

  /** Puts the files back as they were. */
  putBack(): void {
    for (const [path, text] of this.#saved) writeFileSync(path, text);
    this.#saved.clear();
  }

  /** Another protocol, which knows no older keeper. */
  replaceByIncompatible(): void {
    this.replace('version.js', cowbird.VERSION, '9.0.0');
    this.replace('engine/protocol.js', `ENGINE_PROTOCOL = ${ENGINE_PROTOCOL}`, 'ENGINE_PROTOCOL = 9');
    this.replace('engine/protocol.js', `OLDEST_KEEPER = ${OLDEST_KEEPER}`, 'OLDEST_KEEPER = 9');
  }

  async status(): Promise<cowbird.DaemonStatus> {
    const status = await cowbird.daemonStatus(this.lab.client);
    assert.ok(status !== undefined);
    return status;
  }

  hasHelpers(): boolean {
    const program = this.lab.path('package/src/engine/helper.js');
    const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
    return pids.some((pid) => commandLineOf(pid).includes(program));
  }

  async mounted(): Promise<{ node: string; mnt: string }> {
    const node = await this.lab.attached('volume', 200 * MIB);
    await this.lab.mkfs(node, 'ext4');
    return { node, mnt: await this.lab.mount(node) };
  }
}

/** Empty of a process that has gone. */
function commandLineOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(codeOf(errnoOfError(error)))) return '';
    throw error;
  }
}

function post(socketPath: string, path: string, params: unknown): Promise<string> {
  return new Promise((resolve, reject) => {
    const req = request({ socketPath, method: 'POST', path }, (response) => {
      response.setEncoding('utf8');
      response.once('data', resolve);
    });
    req.on('error', reject);
    req.end(JSON.stringify(params));
  });
}

const argv0 = (pid: number | null): string => readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')[0] ?? '';

/** The next event that tells of something that failed. */
async function firstFailure(lab: Lab, signal: AbortSignal): Promise<cowbird.EventRecord> {
  for await (const event of cowbird.events({ ...lab.client, signal }))
    if (event.event.endsWith('.failed')) return event;
  throw new Error('the daemon has told of no failure');
}

describe('a live upgrade', { skip: CANNOT }, () => {
  it('swaps the engine under a mounted volume and its snapshot, and says which versions run', async (t) => {
    const installed = await Installed.start(t);
    const { lab } = installed;
    const { node, mnt } = await installed.mounted();
    await fill(`${mnt}/a`, 20);
    const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 60 * MIB }, lab.client);
    const before = digestOf(snapshot);
    // A kernel that does not send requests again would leave those in hand without an answer.
    const inUse = {
      code: 'EBUSY',
      message: new RegExp(`${node} is mounted on ${mnt}.*Linux 6\\.1\\.0-28-amd64 does not send`),
    };
    await assert.rejects(requireSwappable([snapshot, node], '6.1.0-28-amd64'), inUse);
    await requireSwappable([node], '6.9.0');
    const stopWriter = await lab.writer(mnt);
    installed.replace('version.js', cowbird.VERSION, '0.2.0');
    const status = await cowbird.restartDaemon(lab.client);
    assert.deepEqual([status.version, status.engineVersion], [cowbird.VERSION, '0.2.0']);
    assert.match(
      daemonText(status, '0.2.0'),
      new RegExp(
        `\nkeeper ${cowbird.VERSION}, engine 0.2.0, this command 0.2.0: the engine is up to date; for the keeper`,
      ),
    );
    await fill(`${mnt}/a`, 20);
    await stopWriter();
    assert.equal(digestOf(snapshot), before);
  });

  it('tells a newer client which parameter or operation the running engine does not know', async (t) => {
    const { lab } = await Installed.start(t);
    for (const [operation, params, message] of [
      ['attach', { origin: '/dev/null', bandwidth: 5 }, /parameter `bandwidth`.*`cowbird daemon restart`/],
      ['hatch', {}, /operation `hatch`.*`cowbird daemon restart`/],
    ] as const) {
      assert.match(await post(lab.path('run/control.sock'), `/v1/${operation}`, params), message);
    }
    assert.deepEqual(await cowbird.listVolumes(lab.client), []);
  });

  it('leaves `@` in front of the names of keeper and engine, over a restart too', async (t) => {
    const installed = await Installed.start(t);
    await cowbird.restartDaemon(installed.lab.client);
    const { keeperPid, enginePid } = await installed.status();
    assert.deepEqual([argv0(keeperPid), argv0(enginePid)], ['@cowbird', '@cowbird']);
  });

  it('is refused while the old engine still runs, when the new one cannot go on or does not run', async (t) => {
    const installed = await Installed.start(t);
    const { lab } = installed;
    const { mnt } = await installed.mounted();
    const { enginePid } = await installed.status();
    installed.replaceByIncompatible();
    await assert.rejects(cowbird.restartDaemon(lab.client), {
      code: 'EPROTO',
      outcome: 'refused',
      message: /Cowbird 9\.0\.0.*unmount the volumes, `cowbird daemon stop`/,
    });
    installed.putBack();
    installed.replace('engine/engine.js', 'import', 'half of a file');
    await assert.rejects(cowbird.restartDaemon(lab.client), { code: 'ENOEXEC', outcome: 'refused' });
    assert.equal((await installed.status()).enginePid, enginePid);
    await fill(`${mnt}/a`, 5);
    installed.putBack();
    await cowbird.restartDaemon(lab.client);
    assert.notEqual((await installed.status()).enginePid, enginePid);
  });

  it('never mixes an old engine with new helpers: one line says what to do', async (t) => {
    const installed = await Installed.start(t);
    const { lab } = installed;
    const { node, mnt } = await installed.mounted();
    // One that rests is of the old version still, and serves the old engine.
    await until('no helper rests', () => !installed.hasHelpers(), HELPER_RESTS_MS_MAX);
    installed.replaceByIncompatible();
    await assert.rejects(cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, {}, lab.client), {
      code: 'EPROTO',
      message: 'Cowbird 9.0.0 was installed over the running one: `cowbird daemon restart` first',
    });
    installed.putBack();
    assert.deepEqual((await cowbird.info(undefined, lab.client)).devices, []);
  });
});

describe('a mount while no helper can be started', { skip: CANNOT }, () => {
  it('fails no snapshot: where its COW file lies is looked at again', async (t) => {
    const installed = await Installed.start(t);
    const { lab } = installed;
    const { node, mnt } = await installed.mounted();
    await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 60 * MIB }, lab.client);
    await run('umount', mnt);
    await until('it is dormant', async () => (await lab.status(MINOR)).state === 1);
    await until('no helper rests', () => !installed.hasHelpers(), HELPER_RESTS_MS_MAX);
    installed.replace('engine/helper.js', 'import', 'half of a file');
    lab.onEnd(async () => installed.putBack());
    const heard = new AbortController();
    t.after(() => heard.abort());
    const failed = firstFailure(lab, heard.signal);
    await run('mount', node, mnt);
    const { event, message } = await failed;
    assert.equal(event, 'watch.failed', message);
    assert.match(message, /\.cow could not be looked at/);
    assert.equal((await lab.status(MINOR)).error, undefined);
    installed.putBack();
    await fill(`${mnt}/a`, 5);
    await cowbird.transitionToIncremental(MINOR, lab.client);
    const status = await lab.status(MINOR);
    assert.deepEqual([status.state, status.error], [2, undefined]);
  });
});

describe('an engine that dies when an incompatible version was installed', { skip: CANNOT }, () => {
  it('leaves volumes that wait, a daemon that says why, and goes on when the right version is back', async (t) => {
    const installed = await Installed.start(t);
    const { lab } = installed;
    const { node, mnt } = await installed.mounted();
    await fill(`${mnt}/a`, 5);
    const { enginePid } = await installed.status();
    installed.replaceByIncompatible();
    // Put back whatever happens: the lab could not unmount a volume that waits.
    lab.onEnd(async () => installed.putBack());
    process.kill(enginePid ?? 0, 'SIGKILL');
    await until('the new engine has refused', async () => (await installed.status()).engineProblem != null);
    const { engineProblem } = await installed.status();
    assert.match(
      engineProblem ?? '',
      /Cowbird 9\.0\.0 and cannot work .* the volumes wait until that version is installed/,
    );
    // Not `list`, which the keeper answers itself when a new attempt to start takes longer than that may wait.
    await assert.rejects(cowbird.getFreeMinor(lab.client), { code: 'EPROTO', message: /Cowbird 9\.0\.0/ });
    let done = false;
    const read = run('dd', `if=${node}`, 'of=/dev/null', 'bs=1M', 'count=8', 'iflag=direct', 'status=none').then(() => {
      done = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 500));
    assert.equal(done, false, 'it waits, and gets no error');
    installed.putBack();
    await read;
    assert.equal((await installed.status()).engineProblem, null);
    await fill(`${mnt}/b`, 5);
    assert.equal((await cowbird.listVolumes(lab.client)).length, 1);
  });
});
