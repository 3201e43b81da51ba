import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { AttachedVolume, DaemonStatus } from '../index.js';
import { CowbirdError, type Outcome } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { liveActions } from './actions/live.js';
import { repositoryActions } from './actions/repository.js';
import { snapshotActions } from './actions/snapshots.js';
import { volumeActions } from './actions/volumes.js';
import { main } from './cowbird.js';
import { COWBIRD } from './spec/cowbird.js';
import { fakeIo } from './testing.js';

const VOLUME: AttachedVolume = {
  warnings: [],
  name: 'sdb1',
  device: '/dev/loop3',
  link: '/dev/cowbird/sdb1',
  origin: '/dev/sdb1',
  sizeBytes: 67_108_864,
  readOnly: false,
  logicalSectorBytes: 512,
  workers: 4,
  mounted: ['/srv'],
  minor: 0,
  mode: 'snapshot',
};

describe('cowbird', () => {
  it('has an action for every command, and a command for every action', () => {
    const actions = [
      ...Object.keys(snapshotActions),
      ...Object.keys(volumeActions),
      ...Object.keys(repositoryActions),
      ...Object.keys(liveActions),
      'help',
    ].sort();
    assert.deepEqual(COWBIRD.commands.map(({ name }) => name).sort(), actions);
  });

  it('prints the device node alone when it attaches', async () => {
    const io = fakeIo({
      attach: async (origin, options) => {
        assert.deepEqual([origin, options], ['disk.img', { name: 'x', workers: 2, readOnly: true, raw: true }]);
        return VOLUME;
      },
    });
    assert.equal(await main(['attach', 'disk.img', '--name', 'x', '--workers', '2', '--read-only', '--raw'], io), 0);
    assert.deepEqual([io.stdout, io.stderr], ['/dev/loop3\n', '']);
  });

  it('says on stderr what an attached volume lacks on this machine', async () => {
    const io = fakeIo({ attach: async () => ({ ...VOLUME, warnings: ['kernel: too old'] }) });
    assert.equal(await main(['attach', 'disk.img'], io), 0);
    assert.deepEqual([io.stdout, io.stderr], ['/dev/loop3\n', 'cowbird: warning: kernel: too old\n']);
  });

  it("prints the library's answer with --json, before or after the command", async () => {
    for (const argv of [
      ['--json', 'attach', 'x'],
      ['attach', 'x', '--json'],
      ['attach', '--json', 'x'],
    ]) {
      const io = fakeIo({ attach: async () => VOLUME });
      assert.equal(await main(argv, io), 0);
      assert.deepEqual(JSON.parse(io.stdout), VOLUME);
    }
  });

  it('warns of a reload after which nothing goes on, and of no other', async () => {
    const dormant = {
      minor: 4,
      cow_file: '/.cow1',
      block_device: '/dev/loop3',
      max_cache: 1,
      fallocate: 1,
      state: 2,
      version: 1,
      nr_changed_blocks: 0,
    };
    for (const [status, words] of [
      [dormant, ''],
      [
        { ...dormant, error: -22, error_reason: 'the COW file is unclean' },
        'cowbird: warning: minor 4 does not go on (the COW file is unclean): `cowbird destroy 4` makes room for a new series, whose first update compares contents\n',
      ],
    ] as const) {
      const io = fakeIo({
        reloadIncremental: async () => undefined,
        info: async (minor) => {
          assert.equal(minor, 4);
          return { version: '0.0.0', devices: [status] };
        },
      });
      assert.equal(await main(['reload-incremental', '/dev/loop3', '/.cow1', '4'], io), 0);
      assert.equal(io.stderr, words);
    }
  });

  it('exits by what became of the system, and says code and message on stderr', async () => {
    const cases: ReadonlyArray<readonly [Outcome, number]> = [
      ['refused', 3],
      ['failed', 1],
      ['partial', 4],
    ];
    for (const [outcome, status] of cases) {
      const io = fakeIo({
        detach: async () => {
          throw new CowbirdError('EBUSY', '/dev/loop3 is mounted on /srv: unmount it first', { outcome });
        },
      });
      assert.equal(await main(['detach', 'x'], io), status);
      assert.equal(io.stderr, 'cowbird detach: /dev/loop3 is mounted on /srv: unmount it first (EBUSY)\n');
      io.stderr = '';
      assert.equal(await main(['detach', 'x', '--json'], io), status);
      const message = '/dev/loop3 is mounted on /srv: unmount it first';
      assert.deepEqual(JSON.parse(io.stderr), { error: { code: 'EBUSY', errno: 16, message } });
      assert.equal(io.stdout, '');
    }
  });

  it('exits 2 for a command line that it cannot read, as JSON where that was asked for', async () => {
    for (const argv of [
      [],
      ['bogus'],
      ['daemon'],
      ['daemon', 'bogus'],
      ['attach'],
      ['attach', 'a', 'b'],
      ['list', '--bogus'],
      ['attach', '--name'],
      ['help', 'bogus'],
    ]) {
      const io = fakeIo();
      assert.equal(await main(argv, io), 2, argv.join(' '));
      assert.match(io.stderr, /^cowbird.*: .*see `cowbird.*`\n$/);
      assert.equal(io.stdout, '');
      io.stderr = '';
      assert.equal(await main([...argv, '--json'], io), 2);
      assert.equal(JSON.parse(io.stderr).error.errno, 22);
    }
  });

  it('takes several volumes with --together, cut at the first and the last colon, and prints devices and window', async () => {
    const io = fakeIo({
      setupTogether: async (snapshots, options) => {
        assert.deepEqual(options, { preFreeze: 'a b' });
        assert.deepEqual(snapshots, [
          { device: '/dev/a', cowFile: '/srv/x:y', minor: 3, storeBytes: 5_242_880 },
          { device: '/dev/b', cowFile: '/log/.cow', minor: 4, storeBytes: 5_242_880 },
        ]);
        return { devices: ['/dev/cowbird3', '/dev/cowbird4'], windowMs: 1.5, freezeMs: 30 };
      },
      transitionTogether: async (snapshots) => {
        assert.deepEqual(snapshots, [{ cowFile: '/srv/next', minor: 3, freeAware: true }]);
        return { devices: ['/dev/cowbird3'], windowMs: null, freezeMs: null };
      },
    });
    const named = ['/dev/a:/srv/x:y:3', '/dev/b:/log/.cow:4'];
    assert.equal(await main(['setup-snapshot', '-f', '5', '--together', '--pre-freeze', 'a b', ...named], io), 0);
    assert.equal(await main(['transition-to-snapshot', '/srv/next:3', '--together', '--free-aware'], io), 0);
    const second = '/dev/cowbird3\nwindowMs unknown: the engine ended meanwhile\n';
    assert.equal(io.stdout, `/dev/cowbird3\n/dev/cowbird4\nwindowMs 1.5\n${second}`);
    for (const argv of [['a:b'], ['a:b:c:x'], ['nothing']])
      assert.equal(await main(['setup-snapshot', '--together', ...argv], io), 3, argv.join());
    for (const argv of [
      ['setup-snapshot', '--together'],
      ['setup-snapshot', 'a:b:0'],
      ['transition-to-snapshot', 'a:0'],
    ])
      assert.equal(await main(argv, io), 2, argv.join());
  });

  it('refuses bad values with EINVAL before it asks the daemon', async () => {
    for (const argv of [
      ['destroy', '256'],
      ['destroy', '-1'],
      ['info', '0x1'],
      ['setup-snapshot', 'a', 'b', 'c'],
      ['setup-snapshot', '-f', '5x', 'a', 'b', '0'],
      ['expand-cow-file', 'x', '0'],
      ['attach', 'x', '--name', 'a/b'],
      ['attach', 'x', '--workers', '65'],
    ]) {
      const io = fakeIo();
      assert.equal(await main([...argv, '--json'], io), 3, argv.join(' '));
      assert.equal(JSON.parse(io.stderr).error.code, 'EINVAL');
    }
  });

  it('counts bare numbers as dbdctl does, and takes suffixes', async () => {
    const calls: unknown[] = [];
    const io = fakeIo({
      setupSnapshot: async (...args) => {
        calls.push(args.slice(0, 4));
        return '/dev/cowbird1';
      },
      reconfigureAutoExpand: async (...args) => {
        calls.push(args.slice(0, 3));
      },
    });
    assert.equal(await main(['setup-snapshot', '-c', '4096', '-f', '50', 'd', 'c', '1'], io), 0);
    assert.equal(await main(['setup-snapshot', 'd', 'c', '1', '--cache', '4MiB', '--size', '4GiB'], io), 0);
    assert.equal(await main(['reconfigure-auto-expand', '-r', '1GiB', '16', '1'], io), 0);
    assert.deepEqual(calls, [
      ['d', 'c', 1, { cacheBytes: 4096, storeBytes: 52_428_800 }],
      ['d', 'c', 1, { cacheBytes: 4_194_304, storeBytes: 4_294_967_296 }],
      [1, 16_777_216, 1_073_741_824],
    ]);
    assert.equal(io.stdout, '/dev/cowbird1\n/dev/cowbird1\n');
  });

  it('lists volumes and snapshots a line each, with sizes for people', async () => {
    const device = {
      minor: 0,
      cow_file: '/.datto',
      block_device: '/dev/loop3',
      max_cache: 314_572_800,
      cow_size_current: 6_710_886,
      cow_used: 1_048_576,
      seq_id: 1,
      nr_changed_blocks: 12,
      error: -27,
      error_reason: 'the store is full',
      state: 3,
    };
    const io = fakeIo({
      listVolumes: async () => [VOLUME],
      info: async () => ({ version: VERSION, devices: [device] }),
    });
    assert.equal(await main(['list'], io), 0);
    assert.match(io.stdout, /^NAME .*\nsdb1 {2}\/dev\/loop3 {2}\/dev\/sdb1 {2}64 MiB {2}snapshot {2}0 +\/srv\n$/);
    io.stdout = '';
    assert.equal(await main(['info'], io), 0);
    assert.match(
      io.stdout,
      /active snapshot, failed {2}\/dev\/loop3 {2}\/\.datto {3}1\.0 MiB of 6\.4 MiB {2}12 blocks {2}1\n/,
    );
    assert.match(io.stdout, /minor 0: error -27: the store is full\n$/);
  });

  it('exits 130 at Ctrl-C, and quietly when nobody reads any more', async () => {
    for (const [cause, status] of [
      ['SIGINT', 130],
      ['EPIPE', 0],
    ] as const) {
      const io = fakeIo({
        startDaemon: async () => {
          throw new Error('aborted');
        },
      });
      io.abort(cause);
      assert.equal(await main(['events'], io), status);
    }
  });

  it('says so, and exits 1, when no daemon runs', async () => {
    const io = fakeIo({ daemonStatus: async () => undefined });
    assert.equal(await main(['daemon', 'status', '--json'], io), 1);
    assert.equal(JSON.parse(io.stdout).running, false);
  });

  it('shows the versions of keeper, engine and command when they differ, with what to do, and not otherwise', async () => {
    const cases: ReadonlyArray<readonly [Partial<DaemonStatus>, RegExp]> = [
      [{}, /up 5 s\n$/],
      [{ engineVersion: '9.0.0' }, /\nkeeper \S+, engine 9\.0\.0, this command .*: `cowbird daemon restart` brings/],
      [
        { version: '9.0.0' },
        /\nkeeper 9\.0\.0, engine .*: the engine is up to date; for the keeper: unmount the volumes/,
      ],
      [
        { version: '9.0.0', engineVersion: '9.0.0' },
        /\nkeeper 9\.0\.0, engine 9\.0\.0, .*`cowbird daemon restart` brings/,
      ],
      [{ version: '9.0.0', apiMajor: 9 }, /: they speak versions 9 and 1 of the control API: unmount the volumes/],
      [{ enginePid: null, engineProblem: 'The engine on disk is no good' }, /\nThe engine on disk is no good\n$/],
    ];
    for (const [differs, expected] of cases) {
      const status: DaemonStatus = {
        running: true,
        version: VERSION,
        engineVersion: VERSION,
        apiMajor: 1,
        keeperPid: 1,
        enginePid: 2,
        engineAnswers: true,
        uptimeSeconds: 5,
        engineRestarts: 0,
        ...differs,
      };
      const io = fakeIo({ daemonStatus: async () => status });
      assert.equal(await main(['daemon', 'status'], io), 0);
      assert.match(io.stdout, expected);
    }
  });

  it('takes a daemon that does not run for a stopped one', async () => {
    const io = fakeIo({
      stopDaemon: async (options) => {
        assert.deepEqual(options, { force: true });
        throw new CowbirdError('ENOTCONN', 'No Cowbird daemon runs');
      },
    });
    assert.equal(await main(['daemon', 'stop', '--force'], io), 0);
  });

  it('exits 1 from doctor when something is missing, and 0 for a warning', async () => {
    for (const [status, expected] of [
      ['missing', 1],
      ['warning', 0],
    ] as const) {
      const io = fakeIo({
        doctor: async () => ({
          version: VERSION,
          checks: [{ name: 'root', status, detail: 'not root', fix: 'be root' }],
        }),
      });
      assert.equal(await main(['doctor'], io), expected);
      assert.match(io.stdout, /to do: be root/);
    }
  });

  it('ends with 1 and no crash on a mistake of its own', async () => {
    const io = fakeIo();
    assert.equal(await main(['get-free-minor', '--json'], io), 1);
    assert.match(JSON.parse(io.stderr).error.message, /mistake in Cowbird/);
  });

  it('says its version without loading the library', () => {
    const module = fileURLToPath(new URL('./cowbird.js', import.meta.url));
    // The library is what loads the FFI's shared object.
    const script = `const { main } = await import(${JSON.stringify(module)}); process.exitCode = await main(['--version']);
      console.log(process.report.getReport().sharedObjects.some((path) => path.includes('koffi')));`;
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
    assert.equal(stdout, `cowbird ${VERSION}\nfalse\n`);
  });
});
