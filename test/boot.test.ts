/** What `attach --boot` writes, read by systemd itself; and the commands of the daemon's unit, run as systemd runs them. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { CAPABILITIES } from '../src/cli/boot/unit.js';
import * as cowbird from '../src/index.js';
import { NotifySocket } from '../src/sys/testing.js';
import { CANNOT, digestOf, fill, Lab, MIB, run, until } from './lab.js';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
const MINOR = 201;
const COMMAND_MS_MAX = 30_000;
const FSTAB_GENERATOR = '/lib/systemd/system-generators/systemd-fstab-generator';

const NO_SYSTEMD: string | false =
  spawnSync('systemd-analyze', ['--version']).status === 0 ? false : 'needs systemd-analyze (Debian package systemd)';

interface Ran {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a command line to its end, however it ends. */
function ran(env: NodeJS.ProcessEnv, [program = '', ...args]: readonly string[]): Promise<Ran> {
  const child = spawn(program, args, { env, timeout: COMMAND_MS_MAX, killSignal: 'SIGKILL' });
  const result: Ran = { status: null, stdout: '', stderr: '' };
  child.stdout.on('data', (data: Buffer) => {
    result.stdout += data.toString();
  });
  child.stderr.on('data', (data: Buffer) => {
    result.stderr += data.toString();
  });
  return new Promise((done, reject) => {
    child.once('error', reject);
    child.once('close', (status) => done({ ...result, status }));
  });
}

/** A laboratory with an `/etc` and a disk of its own: a loop device. */
class BootLab extends Lab {
  readonly etc = this.path('etc');
  readonly volume = `boot-${process.pid}`;

  constructor(t: TestContext) {
    super(t);
    mkdirSync(this.etc);
    this.env['COWBIRD_ETC_DIR'] = this.etc;
  }

  cowbird(...args: string[]): Promise<Ran> {
    return ran(this.env, [process.execPath, join(ROOT, 'bin', 'cowbird'), ...args]);
  }

  async disk(sizeBytes: number): Promise<string> {
    const image = this.image('disk', sizeBytes);
    const disk = (await run('losetup', '--find', '--show', image)).trim();
    // The daemon, which holds it, is ended after this: the loop device goes when nobody has it open any more.
    this.onEnd(() => run('losetup', '--detach', disk));
    return disk;
  }

  /** Files of `/etc`, each with its time of change. */
  files(): Map<string, number> {
    const found = new Map<string, number>();
    for (const entry of readdirSync(this.etc, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (!entry.isDirectory()) found.set(path.slice(this.etc.length + 1), statSync(path).mtimeMs);
    }
    return found;
  }

  read(file: string): string {
    return readFileSync(join(this.etc, file), 'utf8');
  }

  /** What systemd has to say of everything that was written, and of the mounts that it makes of `fstab`. */
  async complaints(fstab: string): Promise<string> {
    const generated = this.path('generated');
    rmSync(generated, { recursive: true, force: true });
    mkdirSync(generated);
    writeFileSync(this.path('fstab'), fstab);
    const made = await ran({ ...process.env, SYSTEMD_FSTAB: this.path('fstab') }, [
      FSTAB_GENERATOR,
      generated,
      generated,
      generated,
    ]);
    assert.equal(made.status, 0, made.stderr);
    const units = join(this.etc, 'systemd/system');
    const files = [units, generated].flatMap((folder) =>
      readdirSync(folder)
        .filter((name) => /\.(service|mount)$/.test(name))
        .map((name) => join(folder, name)),
    );
    assert.ok(files.some((file) => file.endsWith('.mount')));
    const env = { ...process.env, SYSTEMD_UNIT_PATH: `${units}:${generated}:` };
    // With what pulls them in at boot, so that a circle would show.
    const { stderr } = await ran(env, [
      'systemd-analyze',
      'verify',
      '--man=no',
      ...files,
      'local-fs.target',
      'sysinit.target',
    ]);
    const ours = new RegExp(`cowbird|${this.folder}|cycle`);
    return stderr
      .split('\n')
      .filter((line) => ours.test(line))
      .join('\n');
  }
}

describe('attach --boot', { skip: CANNOT }, () => {
  it('attaches a disk, and writes what systemd takes without a word', { skip: NO_SYSTEMD }, async (t) => {
    const lab = new BootLab(t);
    const disk = await lab.disk(64 * MIB);
    const first = await lab.cowbird('attach', '--boot', disk, '--name', lab.volume);
    assert.equal(first.status, 0, first.stderr);
    assert.match(first.stdout, /^\/dev\/loop\d+\n$/);
    const fstab = /\n(\/dev\/cowbird\/.*)\n/.exec(first.stderr)?.[1]?.replace('/MOUNT/POINT', '/srv') ?? '';
    assert.match(fstab, new RegExp(`^/dev/cowbird/${lab.volume} /srv auto defaults,x-systemd\\.requires=`));
    // A file system for the state of the daemon too: what would be a circle if it came before all mounts.
    const state = `/dev/nowhere ${lab.path('state')} ext4 defaults 0 2`;
    assert.equal(await lab.complaints(`${fstab}\n${state}\n`), '');
    const unit = `systemd/system/cowbird-attach-${lab.volume}.service`;
    writeFileSync(join(lab.etc, unit), lab.read(unit).replace('Before=', 'After=sysinit.target\nBefore='));
    assert.match(await lab.complaints(`${fstab}\n${state}\n`), /cycle/, 'a circle is seen');
  });

  it('is content with what is there already, also with the link that udev made; detach --boot leaves nothing', async (t) => {
    const lab = new BootLab(t);
    const disk = await lab.disk(64 * MIB);
    const { stdout } = await lab.cowbird('attach', '--boot', disk, '--name', lab.volume);
    const node = stdout.trim();
    const before = lab.files();
    assert.equal(before.size, 5, [...before.keys()].join(' '));
    const link = `/dev/cowbird/${lab.volume}`;
    rmSync(link);
    symlinkSync(`../${basename(node)}`, link);
    for (const command of [
      ['attach', '--boot', disk, '--name', lab.volume],
      ['daemon', 'restart'],
      ['attach', '--if-needed', disk, '--name', lab.volume],
    ]) {
      const again = await lab.cowbird(...command);
      assert.equal(again.status, 0, again.stderr);
      assert.doesNotMatch(again.stderr, /wrote/);
    }
    assert.deepEqual(lab.files(), before);
    assert.equal(resolve('/dev/cowbird', readlinkSync(link)), node);
    const detached = await lab.cowbird('detach', '--boot', lab.volume);
    assert.deepEqual([detached.status, lab.files().size], [0, 0], detached.stderr);
    assert.throws(() => readlinkSync(link), { code: 'ENOENT' });
    const twice = await lab.cowbird('detach', '--boot', lab.volume);
    assert.equal(twice.status, 3);
    assert.match(twice.stderr, /is attached, now or at boot: `cowbird list` shows what is/);
  });

  it('leaves everything as it was where it refuses', async (t) => {
    const lab = new BootLab(t);
    const disk = await lab.disk(64 * MIB);
    await run('mkfs.ext4', '-q', disk);
    await lab.mount(disk);
    const mounted = await lab.cowbird('attach', '--boot', disk, '--name', lab.volume);
    assert.equal(mounted.status, 3, mounted.stderr);
    assert.deepEqual(readdirSync(lab.etc), []);
    assert.deepEqual(await cowbird.listVolumes(lab.client), []);
  });

  it('has udev name the device by the file that is behind it', async (t) => {
    const lab = new BootLab(t);
    const disk = await lab.disk(128 * MIB);
    const { stdout } = await lab.cowbird('attach', '--boot', disk, '--name', lab.volume);
    const node = stdout.trim();
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 20 * MIB }, lab.client);
    const rules = lab.read(`udev/rules.d/59-cowbird-${lab.volume}.rules`);
    const behind = (device: string): string =>
      readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, 'utf8').trim();
    assert.ok(rules.includes(`ATTR{loop/backing_file}=="${behind(node)}", SYMLINK+="cowbird/${lab.volume}"`), rules);
    const pattern = /ATTRS\{loop\/backing_file\}=="([^"]*\*)"/.exec(rules)?.[1] ?? '';
    const resolved = `/dev/${basename(readlinkSync(snapshot))}`;
    assert.ok(behind(resolved).startsWith(pattern.slice(0, -1)), `${behind(resolved)} is matched by ${pattern}`);
  });
});

/** The words of one of the unit's command lines. None of these paths needs quotes. */
function commandOf(unit: string, option: string): string[] {
  const line = new RegExp(`^${option}=@?(.*)$`, 'm').exec(unit)?.[1];
  assert.ok(line !== undefined && !line.includes('"'), `${option} of the unit`);
  return line.split(' ');
}

describe('the daemon under its unit', { skip: CANNOT }, () => {
  it('says when it is ready, has capabilities enough, is reloaded under a writer, and waits for the last umount', async (t) => {
    const lab = new BootLab(t);
    const unit = (await lab.cowbird('daemon', 'unit')).stdout;
    const [program = '', argv0 = '', ...args] = commandOf(unit, 'ExecStart');
    assert.deepEqual([program, argv0], [process.execPath, '@cowbird']);
    const notifyPath = `@cowbird-boot-${process.pid}`;
    const socket = new NotifySocket(notifyPath);
    lab.onEnd(async () => socket.close());
    const bounds = ['-all', ...CAPABILITIES.map((name) => `+${name}`)].join(',');
    const child = spawn('setpriv', ['--no-new-privs', `--bounding-set=${bounds}`, program, ...args], {
      env: { ...lab.env, NOTIFY_SOCKET: notifyPath },
      stdio: 'ignore',
      detached: true,
      cwd: '/',
    });
    const ended = new Promise<number | null>((done) => child.once('exit', done));
    let message = '';
    await until('the daemon says that it is ready', () => {
      message ||= socket.receive();
      return message !== '';
    });
    assert.equal(message, 'READY=1');
    const before = await cowbird.daemonStatus(lab.client);
    assert.equal(before?.keeperPid, child.pid);
    assert.doesNotMatch(readFileSync(`/proc/${before?.enginePid}/environ`, 'utf8'), /NOTIFY_SOCKET/);

    const node = await lab.attached('volume', 200 * MIB);
    await lab.mkfs(node, 'ext4');
    const mnt = await lab.mount(node);
    await fill(`${mnt}/a`, 10);
    const snapshot = await cowbird.setupSnapshot(node, `${mnt}/.cow`, MINOR, { storeBytes: 60 * MIB }, lab.client);
    const contents = digestOf(snapshot);
    const stopWriter = await lab.writer(mnt);
    const reloaded = await ran(lab.env, commandOf(unit, 'ExecReload'));
    assert.equal(reloaded.status, 0, reloaded.stderr);
    await fill(`${mnt}/a`, 10);
    const after = await cowbird.daemonStatus(lab.client);
    assert.equal(after?.keeperPid, before?.keeperPid);
    assert.notEqual(after?.enginePid, before?.enginePid);
    assert.equal(await stopWriter(), true, 'no write has failed');
    assert.equal(digestOf(snapshot), contents);

    const stopping = ran(lab.env, commandOf(unit, 'ExecStop'));
    await new Promise((done) => setTimeout(done, 1000));
    assert.equal(
      (await cowbird.daemonStatus(lab.client))?.keeperPid,
      child.pid,
      'it waits while the volume is mounted',
    );
    await run('umount', mnt);
    const stopped = await stopping;
    assert.equal(stopped.status, 0, stopped.stderr);
    assert.equal(await ended, 0);
    // systemd runs ExecStop also after a daemon that ended by itself.
    assert.equal((await ran(lab.env, commandOf(unit, 'ExecStop'))).status, 0);
  });
});
