/** The command line of the commands for repositories: what reaches the library, what people and programs are told. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { BackupSummary, RestoreSummary, VerifyReport } from '../index.js';
import { CowbirdError } from '../sys/errors.js';
import { main } from './cowbird.js';
import { fakeIo } from './testing.js';

const SUMMARY: BackupSummary = {
  version: 3,
  engine: 'scan',
  reason: 'scan was asked for',
  sizeBytes: 67_108_864,
  bytesRead: 67_108_864,
  bytesWritten: 8192,
  freezeMs: 0,
  passes: 1,
  restBytes: 0,
  skippedBytes: 4096,
  dropped: [1],
  hookFailed: false,
  warnings: ['4096 bytes could not be read'],
};
const RESTORED: RestoreSummary = { version: 2, sizeBytes: 8192, bytesWritten: 4096, damaged: [], warnings: [] };
const REPORT: VerifyReport = { damage: [], whole: [1, 2], bytesRead: 8192, imageWasForeign: false };

describe('cowbird backup', () => {
  it('says what was done in one line on stderr, and warnings before it', async () => {
    const io = fakeIo({ backup: async () => SUMMARY });
    assert.equal(await main(['backup', 'a', 'b'], io), 0);
    assert.equal(io.stdout, '');
    assert.equal(
      io.stderr,
      'warning: 4096 bytes could not be read\nversion 3 of a: 64 MiB read, 8.0 KiB written, engine scan (scan was asked for); dropped 1 version\n',
    );
  });

  it('exits 4 when there is a version and the hook after the thaw failed', async () => {
    const summary = { ...SUMMARY, hookFailed: true, warnings: ['the hook failed'] };
    for (const json of [[], ['--json']]) {
      const io = fakeIo({ backup: async () => summary });
      assert.equal(await main(['backup', 'a', 'b', ...json], io), 4);
    }
    const pair = { ...summary, source: 'a', repository: 'b' };
    const io = fakeIo({ backupTogether: async () => ({ id: '1', backups: [{ ...pair, hookFailed: false }, pair] }) });
    assert.equal(await main(['backup', '--together', 'a:b', 'c:d'], io), 4);
  });

  it('ends its JSON with a summary', async () => {
    const io = fakeIo({ backup: async () => SUMMARY });
    assert.equal(await main(['backup', 'a', 'b', '--json'], io), 0);
    assert.deepEqual([JSON.parse(io.stdout), io.stderr], [{ type: 'summary', ...SUMMARY }, '']);
  });

  it('hands its options to the library', async () => {
    const calls: unknown[] = [];
    const io = fakeIo({
      backup: async (source, repository, { signal: _, ...options } = {}) => {
        calls.push([source, repository, options]);
        return SUMMARY;
      },
    });
    const argv = ['backup', 'a', 'b', '--engine', 'scan', '--keep', '7', '--whole', '--skip-bad-blocks', '--wait=9'];
    assert.equal(await main(argv, io), 0);
    assert.equal(await main(['backup', 'a', 'b', '--wait'], io), 0);
    assert.equal(await main(['backup', '--wait', 'a', 'b'], io), 0);
    assert.equal(await main(['backup', '--wait', '9', 'a', 'b'], io), 0);
    const live = ['--engine', 'live', '--freeze-timeout', '0.5', '--pre-freeze', 'x', '--post-thaw', 'y'];
    assert.equal(await main(['backup', 'a', 'b', ...live, '--hook-timeout', '9'], io), 0);
    assert.deepEqual(calls, [
      ['a', 'b', { engine: 'scan', keep: 7, whole: true, skipBadBlocks: true, waitMs: 9000 }],
      ['a', 'b', { engine: 'auto', whole: false, skipBadBlocks: false, waitMs: 2 ** 31 - 1 }],
      ['a', 'b', { engine: 'auto', whole: false, skipBadBlocks: false, waitMs: 2 ** 31 - 1 }],
      ['a', 'b', { engine: 'auto', whole: false, skipBadBlocks: false, waitMs: 9000 }],
      [
        'a',
        'b',
        {
          engine: 'live',
          live: { freezeTimeoutSeconds: 0.5 },
          hooks: { preFreeze: 'x', postThaw: 'y', hookTimeoutSeconds: 9 },
          whole: false,
          skipBadBlocks: false,
        },
      ],
    ]);
  });

  it('takes several pairs with --together, cut at the last colon, and hands on the hooks', async () => {
    const calls: unknown[] = [];
    const io = fakeIo({
      backupTogether: async (pairs, { signal: _, ...options } = {}) => {
        calls.push(pairs, options);
        return { id: '0', backups: pairs.map((pair) => ({ ...pair, ...SUMMARY })) };
      },
    });
    const hooks = ['--pre-freeze', 'stop', '--post-thaw', 'go', '--hook-timeout', '5'];
    assert.equal(await main(['backup', '--together', '/dev/a:1:r', 'b:s', ...hooks], io), 0);
    assert.deepEqual(calls, [
      [
        { source: '/dev/a:1', repository: 'r' },
        { source: 'b', repository: 's' },
      ],
      {
        engine: 'auto',
        whole: false,
        skipBadBlocks: false,
        hooks: { preFreeze: 'stop', postThaw: 'go', hookTimeoutSeconds: 5 },
      },
    ]);
    assert.match(io.stderr, /version 3 of \/dev\/a:1: .*\nversion 3 of b: /);
    assert.equal(await main(['backup', '--together', 'a'], fakeIo()), 3);
    assert.equal(await main(['backup', 'a', 'b', 'c'], fakeIo()), 2);
  });

  it('refuses values that it does not understand', async () => {
    for (const argv of [
      ['backup', 'a', 'b', '--keep', '0'],
      ['backup', 'a', 'b', '--engine', 'x'],
      ['backup', 'a', 'b', '--wait=soon'],
      ['backup', 'a', 'b', '--freeze-timeout', '1e1'],
      ['prune', 'a', '--keep-daily', '1.5'],
    ])
      assert.equal(await main(argv, fakeIo()), 3, argv.join(' '));
  });

  it('exits 130 when it is interrupted, and says that the repository is whole', async () => {
    const io = fakeIo({
      backup: async () => {
        io.abort('SIGTERM');
        throw new CowbirdError('EINTR', 'Interrupted: the repository is whole', { outcome: 'failed' });
      },
    });
    assert.equal(await main(['backup', 'a', 'b'], io), 130);
    assert.equal(io.stderr, 'cowbird backup: Interrupted: the repository is whole (EINTR)\n');
  });
});

describe('cowbird verify', () => {
  it('exits 0 without damage, and 1 with a line for each damaged place', async () => {
    assert.equal(await main(['verify', 'r'], fakeIo({ verify: async () => REPORT })), 0);
    const place = { file: 'image', fileOffset: 4096, offset: 4096, lengthBytes: 8192, versions: [1, 2], what: 'bad' };
    const manifest = {
      file: 'manifest',
      fileOffset: null,
      offset: null,
      lengthBytes: null,
      versions: [],
      what: 'manifest: x',
    };
    const io = fakeIo({ verify: async () => ({ ...REPORT, damage: [place, manifest], whole: [] }) });
    assert.equal(await main(['verify', 'r@2'], io), 1);
    assert.equal(io.stdout, 'versions 1, 2: 8192 bytes at 4096 (image at 4096): bad\nmanifest: x\n');
    assert.equal(io.stderr, '8.0 KiB verified: 2 damaged places; no version is whole\n');
  });
});

describe('cowbird restore', () => {
  it('asks on a terminal, and takes --yes for an answer', async () => {
    const asked: string[] = [];
    const answers: boolean[] = [];
    const restore = async (_: string, __: string, options: { confirm?: (holds: string) => Promise<boolean> } = {}) => {
      answers.push((await options.confirm?.('x holds xfs')) ?? false);
      return RESTORED;
    };
    const io = { ...fakeIo({ restore }), ask: async (question: string) => asked.push(question) > 5 };
    assert.equal(await main(['restore', 'r', 'x'], io), 0);
    assert.equal(await main(['restore', 'r', 'x', '-y'], io), 0);
    assert.equal(await main(['restore', 'r', 'x'], fakeIo({ restore })), 0);
    assert.deepEqual([answers, asked], [[false, true, false], ['x holds xfs. Go on?']]);
  });

  it('exits 4 when blocks were left out, and names them', async () => {
    const io = fakeIo({ restore: async () => ({ ...RESTORED, damaged: [{ offset: 4096, lengthBytes: 4096 }] }) });
    assert.equal(await main(['restore', 'r@2', 'x'], io), 4);
    assert.match(io.stderr, /^warning: 4096 bytes at 4096 are damaged.*\nversion 2 to x: 4\.0 KiB of 8\.0 KiB written/);
  });
});

describe('cowbird changes', () => {
  it('takes two versions of a repository as well as a minor', async () => {
    const io = fakeIo({
      versionChanges: async (repository, from, to) => {
        assert.deepEqual([repository, from, to], ['a@b', 2, 11]);
        return { from, to, bytes: 4096, extents: [{ offset: 8192, length: 4096 }] };
      },
    });
    assert.equal(await main(['changes', 'a@b@2..11'], io), 0);
    assert.equal(io.stdout, '4.0 KiB, 1 extent\n8192 4096\n');
  });
});
