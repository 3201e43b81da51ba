import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CowbirdError, SystemError } from '../sys/errors.js';
import { main as dbdctl } from './dbdctl.js';
import { main as elioctl } from './elioctl.js';
import { DBDCTL, ELIOCTL } from './spec/drivers.js';
import { strerror } from './strerror.js';
import { fakeIo } from './testing.js';

const DRIVER = 'driver returned an error performing specified action. check dmesg for more info: ';
const lastLine = (text: string): string => text.trimEnd().split('\n').at(-1) ?? '';

describe('dbdctl', () => {
  it('prints nothing and exits 0 on success, with bytes for -c and MiB for -f', async () => {
    const calls: unknown[] = [];
    const io = fakeIo({
      setupSnapshot: async (...args) => {
        calls.push(args.slice(0, 4));
        return '/dev/cowbird10';
      },
    });
    assert.equal(await dbdctl(['setup-snapshot', '/dev/loop3', '-c', '4096', '/m/.datto', '010', '-f', '50'], io), 0);
    assert.deepEqual(calls, [
      ['/dev/loop3', '/m/.datto', 10, { alias: 'datto', cacheBytes: 4096, storeBytes: 52_428_800, onVolumeOnly: true }],
    ]);
    assert.equal(io.stdout + io.stderr, '');
  });

  it('takes 0 for the default of -c and -f', async () => {
    const io = fakeIo({
      setupSnapshot: async (_device, _cowFile, _minor, options) => {
        assert.deepEqual(options, { alias: 'datto', onVolumeOnly: true });
        return '';
      },
    });
    assert.equal(await dbdctl(['setup-snapshot', '-c', '0', '-f', '0', 'a', 'b', '0'], io), 0);
  });

  it('ends stderr with the original line and exits 255 when the driver refuses', async () => {
    const io = fakeIo({
      destroy: async () => {
        throw new CowbirdError('EBUSY', '/dev/loop4 is open by dd (pid 77): end it first');
      },
    });
    assert.equal(await dbdctl(['destroy', '0'], io), 255);
    assert.equal(
      io.stderr,
      `dbdctl: /dev/loop4 is open by dd (pid 77): end it first\n${DRIVER}Device or resource busy\n`,
    );
    assert.equal(io.stdout, '');
  });

  it("has glibc's words for each errno that dattobd's users know", async () => {
    for (const [code, words] of [
      ['EPERM', 'Operation not permitted'],
      ['ENOENT', 'No such file or directory'],
      ['EIO', 'Input/output error'],
      ['ENOTBLK', 'Block device required'],
      ['EEXIST', 'File exists'],
      ['EISDIR', 'Is a directory'],
      ['EINVAL', 'Invalid argument'],
      ['EFBIG', 'File too large'],
      ['ENOSPC', 'No space left on device'],
      ['EOPNOTSUPP', 'Operation not supported'],
    ] as const) {
      const io = fakeIo({
        destroy: async () => {
          throw new CowbirdError(code, 'why');
        },
      });
      assert.equal(await dbdctl(['destroy', '0'], io), 255);
      assert.equal(lastLine(io.stderr), DRIVER + words);
    }
    assert.equal(strerror(9999), 'Unknown error 9999');
  });

  it('ends with that line for errors of the system and for mistakes of ours too', async () => {
    for (const [error, words] of [
      [new SystemError('connect', 13), 'Permission denied'],
      [new TypeError('oops'), 'Input/output error'],
    ] as const) {
      const io = fakeIo({
        destroy: async () => {
          throw error;
        },
      });
      assert.equal(await dbdctl(['destroy', '0'], io), 255);
      assert.equal(lastLine(io.stderr), DRIVER + words);
    }
  });

  it('leaves a minor above 255 to the driver, which says EINVAL', async () => {
    for (const minor of ['256', '1000', '4294967296', '99999999999999999999']) {
      const io = fakeIo();
      assert.equal(await dbdctl(['destroy', minor], io), 255);
      assert.equal(lastLine(io.stderr), `${DRIVER}Invalid argument`);
      assert.equal(io.stdout, '');
    }
  });

  it('says which verb it could not read, and prints the usage on stdout', async () => {
    const cases: ReadonlyArray<readonly [string[], string]> = [
      [['setup-snapshot', 'a', 'b'], 'setup snapshot'],
      [['setup-snapshot', 'a', 'b', 'c', '0'], 'setup snapshot'],
      [['setup-snapshot', '-f', '0x10', 'a', 'b', '0'], 'setup snapshot'],
      [['setup-snapshot', '-f', '4GiB', 'a', 'b', '0'], 'setup snapshot'],
      [['setup-snapshot', '-f', '9999999999999999', 'a', 'b', '0'], 'setup snapshot'],
      [['setup-snapshot', '-i', 'a', 'b', '0'], 'setup snapshot'],
      [['reload-snapshot', 'a', 'b', '5x'], 'reload snapshot'],
      [['reload-incremental', 'a'], 'reload incremental'],
      [['destroy', 'abc'], 'destroy'],
      [['destroy', '-1'], 'destroy'],
      [['transition-to-incremental'], 'transition to incremental'],
      [['transition-to-snapshot', '0'], 'transition to snapshot'],
      [['reconfigure', '-c', '5M', '0'], 'reconfigure'],
      [['expand-cow-file', '0'], 'expand'],
      [['reconfigure-auto-expand', 'x', '0'], 'reconfigure auto expand'],
    ];
    for (const [argv, phrase] of cases) {
      const io = fakeIo();
      assert.equal(await dbdctl(argv, io), 255, argv.join(' '));
      assert.equal(lastLine(io.stderr), `error interpreting ${phrase} parameters: Invalid argument`);
      assert.match(io.stdout, /^Usage: dbdctl /);
    }
  });

  it('counts sizes, steps and reserves in MiB', async () => {
    const calls: unknown[] = [];
    const io = fakeIo({
      expandCowFile: async (minor, bytes) => {
        calls.push([minor, bytes]);
        return 0;
      },
      reconfigureAutoExpand: async (minor, step, reserved) => {
        calls.push([minor, step, reserved]);
      },
    });
    assert.equal(await dbdctl(['expand-cow-file', '2', '7'], io), 0);
    assert.equal(await dbdctl(['reconfigure-auto-expand', '-r', '3', '1', '7'], io), 0);
    assert.deepEqual(calls, [
      [7, 2_097_152],
      [7, 1_048_576, 3_145_728],
    ]);
    assert.equal(io.stdout, '');
  });

  it('prints the usage: exit 0 for help, 255 for no argument or an unknown verb, with nothing on stderr', async () => {
    for (const [argv, status] of [
      [['help'], 0],
      [['--help'], 0],
      [[], 255],
      [['bogus'], 255],
      [['info', '0'], 255],
      [['get-free-minor'], 255],
    ] as const) {
      const io = fakeIo();
      assert.equal(await dbdctl([...argv], io), status);
      assert.match(io.stdout, /^Usage: dbdctl /);
      assert.equal(io.stderr, '');
    }
  });

  it('exits 130 when it is interrupted', async () => {
    const io = fakeIo({
      destroy: async () => {
        io.abort('SIGINT');
        throw new Error('aborted');
      },
    });
    assert.equal(await dbdctl(['destroy', '0'], io), 130);
  });

  it('has no long option but for help and version', () => {
    for (const program of [DBDCTL, ELIOCTL]) {
      for (const command of program.commands) assert.ok(command.options.every(({ long }) => long === undefined));
    }
  });
});

describe('elioctl', () => {
  it('allows a store elsewhere and passes -i on', async () => {
    const io = fakeIo({
      setupSnapshot: async (_device, _cowFile, _minor, options) => {
        assert.deepEqual(options, { alias: 'elastio-snap', ignoreErrors: true });
        return '';
      },
      reloadIncremental: async (device, cowFile, minor, options) => {
        assert.deepEqual(
          [device, cowFile, minor, options],
          ['a', '.b', 0, { alias: 'elastio-snap', ignoreErrors: true }],
        );
      },
    });
    assert.equal(await elioctl(['setup-snapshot', '-i', 'a', '/x/b', '0'], io), 0);
    assert.equal(await elioctl(['reload-incremental', 'a', '.b', '0', '-i'], io), 0);
    assert.equal(io.stderr, '');
  });

  it('prints the status of a minor and the free minor', async () => {
    const device = { minor: 4, cow_file: '/.c', block_device: '/dev/loop3', max_cache: 1, state: 3 };
    const io = fakeIo({ info: async () => ({ version: '0', devices: [device] }), getFreeMinor: async () => 5 });
    assert.equal(await elioctl(['info', '4'], io), 0);
    assert.deepEqual(JSON.parse(io.stdout), device);
    io.stdout = '';
    assert.equal(await elioctl(['get-free-minor'], io), 0);
    assert.equal(io.stdout, '5\n');
  });

  it('knows no verb for expansion, as the original', async () => {
    const io = fakeIo();
    assert.equal(await elioctl(['expand-cow-file', '1', '0'], io), 255);
  });
});
