import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { pathsFrom } from '../../control/paths.js';
import type { VolumeInfo } from '../../index.js';
import { CowbirdError } from '../../sys/errors.js';
import { attachAtBoot, type BootDaemon, type BootHost, forgetAtBoot, isAttachedAtBoot } from './boot.js';

const VOLUME: VolumeInfo = {
  name: 'data',
  device: '/dev/loop3',
  link: '/dev/cowbird/data',
  origin: '/dev/null',
  sizeBytes: 67_108_864,
  readOnly: false,
  logicalSectorBytes: 512,
  workers: 4,
  mounted: [],
  minor: null,
  mode: 'passthrough',
};
const REQUEST = { name: 'data', origin: '/dev/null', options: [] };
const ENABLED = [
  'systemd/system/cowbird-attach-data.service',
  'systemd/system/cowbird.service',
  'systemd/system/local-fs.target.wants/cowbird-attach-data.service',
  'systemd/system/run-cowbird-fuse-.mount.d/cowbird.conf',
  'udev/rules.d/59-cowbird-data.rules',
];
const RELOADED = ['systemctl daemon-reload', 'udevadm control --reload'];

/** A machine of its own: a folder for /etc, one for /dev/disk, and what systemd is told. */
class Machine {
  readonly etc: string;
  readonly told: string[] = [];
  readonly host: BootHost;
  /** Of the daemon; undefined while none runs. */
  pid: number | undefined;
  attached: string[] = [];
  readonly daemon: BootDaemon = {
    attach: async (origin) => {
      this.pid = 7;
      this.attached.push(origin);
      return VOLUME;
    },
    pid: async () => this.pid,
    stop: async () => {
      this.pid = undefined;
    },
  };

  constructor(t: TestContext) {
    const folder = mkdtempSync(join(tmpdir(), 'cowbird-boot-'));
    t.after(() => rmSync(folder, { recursive: true }));
    this.etc = join(folder, 'etc');
    mkdirSync(this.etc);
    mkdirSync(join(folder, 'disk/by-id'), { recursive: true });
    symlinkSync('/dev/null', join(folder, 'disk/by-id/wwn-0x1'));
    this.host = {
      installation: { nodePath: '/usr/bin/node', packageDir: '/opt/cowbird', paths: pathsFrom({}) },
      etcDir: this.etc,
      live: true,
      systemdRuns: true,
      diskFolder: join(folder, 'disk'),
      cgroupOf: () => '0::/system.slice/cowbird.service\n',
      tell: async (program, args) => {
        this.told.push([program, ...args].join(' '));
      },
    };
  }

  /** Files of the machine's /etc, but fstab. */
  files(): string[] {
    return readdirSync(this.etc, { recursive: true, withFileTypes: true })
      .filter((entry) => !entry.isDirectory() && entry.name !== 'fstab')
      .map((entry) => join(entry.parentPath, entry.name).slice(this.etc.length + 1))
      .sort();
  }

  read(file: string): string {
    return readFileSync(join(this.etc, file), 'utf8');
  }

  write(file: string, text: string): void {
    mkdirSync(join(this.etc, file, '..'), { recursive: true });
    writeFileSync(join(this.etc, file), text);
  }
}

describe('attach --boot', () => {
  it('writes units and rules, has systemd and udev read them, and attaches by a name that stays', async (t) => {
    const machine = new Machine(t);
    const report = await attachAtBoot(machine.host, REQUEST, machine.daemon);
    const lasting = join(machine.host.diskFolder, 'by-id/wwn-0x1');
    assert.deepEqual(machine.files(), ENABLED);
    assert.deepEqual(report.files.map((path) => path.slice(machine.etc.length + 1)).sort(), ENABLED);
    assert.deepEqual(machine.attached, [lasting]);
    assert.ok(machine.read('systemd/system/cowbird-attach-data.service').includes(` -- ${lasting}\n`));
    assert.deepEqual(report.notes, [`/dev/null is attached as ${lasting}, which stays its name`]);
    assert.deepEqual(machine.told, [
      ...RELOADED,
      'udevadm trigger --action=change --settle /dev/loop3',
      'systemctl start cowbird-attach-data.service',
    ]);
  });

  it('writes nothing the second time', async (t) => {
    const machine = new Machine(t);
    await attachAtBoot(machine.host, REQUEST, machine.daemon);
    machine.told.length = 0;
    const report = await attachAtBoot(machine.host, REQUEST, machine.daemon);
    assert.deepEqual([report.files, machine.files()], [[], ENABLED]);
    assert.ok(!machine.told.includes('systemctl daemon-reload'));
  });

  it('leaves all as it was when attaching fails, and ends the daemon that systemd started by the new unit', async (t) => {
    for (const ranBefore of [false, true]) {
      const machine = new Machine(t);
      if (ranBefore) machine.pid = 5;
      const fails: BootDaemon = {
        ...machine.daemon,
        attach: async () => {
          machine.pid ??= 7;
          throw new CowbirdError('EBUSY', 'it is mounted');
        },
      };
      await assert.rejects(attachAtBoot(machine.host, REQUEST, fails), { code: 'EBUSY' });
      assert.deepEqual(readdirSync(machine.etc), []);
      assert.deepEqual(machine.told, [...RELOADED, ...RELOADED]);
      assert.equal(machine.pid, ranBefore ? 5 : undefined);
    }
  });

  it('leaves the unit to a daemon that runs by it and cannot end', async (t) => {
    const machine = new Machine(t);
    const stays: BootDaemon = {
      attach: async () => {
        machine.pid = 7;
        throw new CowbirdError('EBUSY', 'it is mounted');
      },
      pid: async () => machine.pid,
      stop: async () => {
        throw new CowbirdError('EBUSY', 'another volume is in use');
      },
    };
    await assert.rejects(attachAtBoot(machine.host, REQUEST, stays), /it is mounted/);
    assert.deepEqual(machine.files(), [
      'systemd/system/cowbird.service',
      'systemd/system/run-cowbird-fuse-.mount.d/cowbird.conf',
    ]);
  });

  it('refuses before it writes', async (t) => {
    const refusals: ReadonlyArray<readonly [string, RegExp, (machine: Machine) => Partial<BootHost>, string?]> = [
      ['ENOSYS', /systemd does not run this machine/, () => ({ systemdRuns: false })],
      [
        'EINVAL',
        /COWBIRD_RUN_DIR is \/run\/other: unset it/,
        ({ host }) => ({
          installation: { ...host.installation, paths: pathsFrom({ COWBIRD_RUN_DIR: '/run/other' }) },
        }),
      ],
      ['ENOENT', /\/nonexistent does not exist/, () => ({}), '/nonexistent'],
      [
        'EEXIST',
        /59-cowbird-data\.rules exists and was not written by/,
        (machine) => {
          machine.write('udev/rules.d/59-cowbird-data.rules', '# mine\n');
          return {};
        },
      ],
      [
        'EINVAL',
        /mounts this volume on \/var, where Cowbird itself has \/var\/lib\/cowbird: at boot, each would wait/,
        (machine) => {
          machine.write('fstab', '/dev/null /var ext4 defaults 0 2\n');
          return {};
        },
      ],
      [
        'EINVAL',
        /has \/usr\/bin\/node and \/opt\/cowbird and \/var\/lib\/cowbird/,
        (machine) => {
          machine.write('fstab', '/dev/cowbird/data / ext4 defaults 0 1\n');
          return {};
        },
      ],
    ];
    for (const [code, message, prepare, origin = REQUEST.origin] of refusals) {
      const machine = new Machine(t);
      const host = { ...machine.host, ...prepare(machine) };
      const before = machine.files();
      await assert.rejects(attachAtBoot(host, { ...REQUEST, origin }, machine.daemon), { code, message });
      assert.deepEqual([machine.files(), machine.told, machine.attached], [before, [], []]);
    }
  });

  it('uses a unit for the daemon that somebody wrote, and never touches it', async (t) => {
    const machine = new Machine(t);
    machine.write('systemd/system/cowbird.service', '[Unit]\n');
    await attachAtBoot(machine.host, REQUEST, machine.daemon);
    await forgetAtBoot(machine.host, 'data', false);
    assert.equal(machine.read('systemd/system/cowbird.service'), '[Unit]\n');
  });

  it('says which line of fstab has to go, and what comes in its place', async (t) => {
    const machine = new Machine(t);
    machine.write('fstab', '/dev/null /srv ext4 defaults 0 2\n');
    const report = await attachAtBoot(machine.host, REQUEST, machine.daemon);
    assert.ok(report.notes.includes('in fstab, this line has to go: /dev/null /srv ext4 defaults 0 2'));
    assert.match(report.fstab, /^\/dev\/cowbird\/data \/srv ext4 defaults,x-systemd\.requires=/);
    machine.write('fstab', `${report.fstab}\n`);
    const again = await attachAtBoot(machine.host, REQUEST, machine.daemon);
    assert.equal(again.fstab, report.fstab);
    assert.ok(again.notes.includes('fstab has the line for it already'));
  });

  it('warns of a daemon that systemd would kill with the session that started it', async (t) => {
    const machine = new Machine(t);
    const host = { ...machine.host, cgroupOf: () => '0::/user.slice/user-0.slice/session-1.scope\n' };
    const report = await attachAtBoot(host, REQUEST, machine.daemon);
    assert.match(
      report.notes.join('\n'),
      /daemon \(pid 7\) was not started by systemd.*systemctl start cowbird\.service/,
    );
    assert.ok(!machine.told.some((line) => line.startsWith('systemctl start')));
  });

  it('tells nobody where it writes for another machine', async (t) => {
    const machine = new Machine(t);
    const host = { ...machine.host, live: false, systemdRuns: false };
    const report = await attachAtBoot(host, REQUEST, machine.daemon);
    assert.deepEqual(machine.told, []);
    assert.match(report.notes.join('\n'), /systemd and udev were not told/);
    await forgetAtBoot(host, 'data', true);
    assert.deepEqual([machine.files(), machine.told], [[], []]);
  });
});

describe('detach --boot', () => {
  it('removes what attach --boot wrote, and no more; the daemon’s with the last volume', async (t) => {
    const machine = new Machine(t);
    machine.write('systemd/system/local-fs.target.wants/other.service', '');
    await attachAtBoot(machine.host, REQUEST, machine.daemon);
    await attachAtBoot(machine.host, { ...REQUEST, name: 'more' }, machine.daemon);
    assert.ok(isAttachedAtBoot(machine.host, 'data'));
    await forgetAtBoot(machine.host, 'data', false);
    assert.ok(!isAttachedAtBoot(machine.host, 'data'));
    assert.ok(machine.files().includes('systemd/system/cowbird.service'));
    await forgetAtBoot(machine.host, 'more', false);
    assert.deepEqual(machine.files(), ['systemd/system/local-fs.target.wants/other.service']);
  });

  it('leaves the unit to a daemon that runs, and names lines of fstab that wait for the volume', async (t) => {
    const machine = new Machine(t);
    await attachAtBoot(machine.host, REQUEST, machine.daemon);
    machine.write('fstab', '/dev/cowbird/data /srv ext4 defaults 0 2\n');
    const notes = await forgetAtBoot(machine.host, 'data', true);
    assert.match(
      notes.join('\n'),
      /still has this line, for which the next boot would wait: \/dev\/cowbird\/data \/srv/,
    );
    assert.match(notes.join('\n'), /cowbird\.service stays while the daemon runs/);
    assert.deepEqual(machine.files(), [
      'systemd/system/cowbird.service',
      'systemd/system/run-cowbird-fuse-.mount.d/cowbird.conf',
    ]);
  });
});
