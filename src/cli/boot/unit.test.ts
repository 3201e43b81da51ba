import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { command, escapePath, word } from './syntax.js';
import { attachUnit, daemonUnit, fuseMounts, type Installation } from './unit.js';

const INSTALLATION: Installation = {
  nodePath: '/usr/bin/node',
  packageDir: '/opt/cowbird',
  paths: { runDir: '/run/cowbird', stateDir: '/var/lib/cowbird' },
};
const DISK = { name: 'data', origin: '/dev/disk/by-partuuid/aa-02', originIsFile: false, options: [] };

/** Options that give a unit a mount namespace of its own, at their names' beginnings (systemd.exec(5)). */
const NAMESPACES =
  /^(Private(?!Users)|Protect(?!Hostname)|ReadOnly|ReadWrite|Inaccessible|Exec(Paths)|NoExec|Bind|Mount|Extension|Root|TemporaryFileSystem|DynamicUser|ProcSubset|JoinsNamespaceOf|LogNamespace|NetworkNamespacePath|IPCNamespacePath)/;

/** The values of an option in all its lines. */
function values(unit: string, option: string): string[] {
  return unit
    .split('\n')
    .flatMap((line) => (line.startsWith(`${option}=`) ? line.slice(option.length + 1).split(' ') : []));
}

describe('the daemon’s unit', () => {
  const unit = daemonUnit(INSTALLATION, '# first');

  it('begins with whose it is', () => {
    assert.match(unit, /^# first\n\[Unit\]\n/);
  });

  it('gives the daemon no mount namespace of its own', () => {
    const options = unit.split('\n').filter((line) => /^\w+=/.test(line));
    assert.deepEqual(
      options.filter((line) => NAMESPACES.test(line)),
      [],
    );
  });

  it('lets nothing end the daemon while a volume is in use, nor swaps it out', () => {
    for (const line of [
      'KillMode=process',
      'SendSIGKILL=no',
      'RefuseManualStop=yes',
      'OOMScoreAdjust=-1000',
      'OOMPolicy=continue',
      'MemorySwapMax=0',
      'IgnoreOnIsolate=yes',
      'Restart=always',
    ])
      assert.ok(unit.includes(`\n${line}\n`), line);
    assert.doesNotMatch(unit, /MemoryMax|MemoryHigh/);
    assert.match(unit, /^ExecStart=@\/usr\/bin\/node @cowbird /m);
  });

  it('is started before what mounts by default, and ended after it', () => {
    assert.deepEqual(values(unit, 'DefaultDependencies'), ['no']);
    assert.deepEqual(values(unit, 'Before'), ['local-fs.target', 'shutdown.target']);
    assert.deepEqual(values(unit, 'Conflicts'), ['shutdown.target']);
    assert.deepEqual(values(unit, 'RequiresMountsFor'), ['/usr/bin/node', '/opt/cowbird', '/var/lib/cowbird']);
    assert.ok(!values(unit, 'After').some((name) => /sysinit|basic|network|local-fs/.test(name)));
  });

  it('waits at the end for less time than systemd gives it', () => {
    const waits = Number(/daemon stop --wait (\d+)$/m.exec(unit)?.[1]);
    const given = Number(/^TimeoutStopSec=(\d+)s$/m.exec(unit)?.[1]);
    assert.ok(waits > 0 && waits < given, `${waits} < ${given}`);
  });

  it('names directories that are not where they are by default', () => {
    const moved = { ...INSTALLATION, paths: { runDir: '/run/other', stateDir: '/srv/state' } };
    const other = daemonUnit(moved, '# first');
    assert.deepEqual(values(other, 'Environment'), ['COWBIRD_RUN_DIR=/run/other', 'COWBIRD_STATE_DIR=/srv/state']);
    assert.deepEqual([values(other, 'RuntimeDirectory'), values(other, 'StateDirectory')], [['other'], []]);
    assert.deepEqual(values(unit, 'Environment'), []);
    assert.deepEqual([values(unit, 'RuntimeDirectory'), values(unit, 'StateDirectory')], [['cowbird'], ['cowbird']]);
  });
});

describe('the unit of a volume', () => {
  const unit = attachUnit(INSTALLATION, DISK, '# first');

  it('comes after the daemon and its disk, before the mount, and ends before neither', () => {
    const target = 'blockdev@dev-cowbird-data.target';
    assert.deepEqual(values(unit, 'Requires'), ['cowbird.service', 'dev-disk-by\\x2dpartuuid-aa\\x2d02.device']);
    assert.deepEqual(values(unit, 'After'), values(unit, 'Requires'));
    assert.deepEqual(values(unit, 'Before'), [target, 'local-fs.target', 'umount.target']);
    assert.deepEqual(values(unit, 'Wants'), [target]);
    assert.match(unit, /\nType=oneshot\nRemainAfterExit=yes\n/);
  });

  it('attaches by the lasting name, with the options that were given', () => {
    const given = { ...DISK, options: ['--workers', '2', '--read-only'] };
    assert.match(
      attachUnit(INSTALLATION, given, '#'),
      /^ExecStart=\/usr\/bin\/node \/opt\/cowbird\/bin\/cowbird attach --if-needed --name data --workers 2 --read-only -- \/dev\/disk\/by-partuuid\/aa-02$/m,
    );
  });

  it('waits for the file system of an image', () => {
    const image = attachUnit(INSTALLATION, { ...DISK, origin: '/srv/my disk.img', originIsFile: true }, '#');
    assert.match(image, /^RequiresMountsFor="\/srv\/my disk.img"$/m);
    assert.deepEqual(values(image, 'Requires'), ['cowbird.service']);
  });
});

describe('what systemd reads', () => {
  it('has paths escaped as systemd-escape does it', () => {
    for (const [path, name] of [
      ['/', '-'],
      ['/dev/sda1', 'dev-sda1'],
      ['/dev//disk/by-id/', 'dev-disk-by\\x2did'],
      ['/.hidden/a b', '\\x2ehidden-a\\x20b'],
      ['/dev/mapper/ü', 'dev-mapper-\\xc3\\xbc'],
    ] as const)
      assert.equal(escapePath(path), name);
  });

  it('has words that mean themselves, and no line that a path could add', () => {
    assert.equal(word('/a/b-c.d'), '/a/b-c.d');
    assert.equal(word('/a b'), '"/a b"');
    assert.equal(word('/a"\\'), '"/a\\"\\\\"');
    assert.equal(word('/100%'), '/100%%');
    assert.equal(command('/bin/$x', ['$HOME', '%n', '']), '/bin/$x $$HOME %%n ""');
    assert.throws(() => word('/a\nExecStart=/bin/sh'), { code: 'EINVAL' });
  });

  it('leaves the FUSE files to the daemon at shutdown', () => {
    const { folder, text } = fuseMounts('/run/cowbird/fuse', '# first');
    assert.equal(folder, 'run-cowbird-fuse-.mount.d');
    assert.match(text, /^# first\n(#.*\n)*\[Unit\]\nDefaultDependencies=no\n$/);
  });
});
