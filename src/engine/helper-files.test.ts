/** Files that somebody changes behind the path by which they are known. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import * as libc from '../sys/libc.js';
import type { StoreFile } from './helper-calls.js';
import { isStore, openStore, unlinkStore } from './helper-files.js';

const RACE_MS = 1_500;

/** Goes at the end of the test; before it what was mounted there. */
function folder(t: TestContext, mounts: readonly string[] = []): string {
  const path = mkdtempSync(join(tmpdir(), 'cowbird-files-'));
  t.after(() => {
    for (const mount of mounts) libc.umount(mount);
    rmSync(path, { recursive: true, force: true });
  });
  return path;
}

function storeAt(path: string): StoreFile {
  writeFileSync(path, 'the store');
  const { dev, ino } = statSync(path);
  return { path, dev, ino };
}

/** Puts a link to `victim` in place of the file and the file back, again and again. */
const SWAPPER = `
  const { linkSync, renameSync, symlinkSync } = require('node:fs');
  const [path, victim] = process.argv.slice(1);
  process.stdout.write('begun');
  for (;;) {
    symlinkSync(victim, path + '.link');
    linkSync(path, path + '.file');
    renameSync(path + '.link', path);
    renameSync(path + '.file', path);
  }`;

/** Opens the file again and again: it is the very one, or it is refused as another. */
function raceFor(lengthMs: number, file: StoreFile, seen: { opened: number; refused: number }): void {
  for (const endMs = performance.now() + lengthMs; performance.now() < endMs; ) {
    let fd: number;
    try {
      fd = openStore(file, constants.O_RDWR);
    } catch (error) {
      assert.match(String(error), /another file/);
      seen.refused++;
      continue;
    }
    assert.equal(fstatSync(fd).ino, file.ino);
    closeSync(fd);
    seen.opened++;
  }
}

describe('a COW file', () => {
  it('is never taken for what somebody puts in its place while it is opened', { timeout: 20_000 }, async (t) => {
    const at = folder(t);
    const file = storeAt(join(at, 'store'));
    const victim = join(at, 'victim');
    writeFileSync(victim, 'of somebody else');
    const swapper = spawn(process.execPath, ['-e', SWAPPER, file.path, victim], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const ended = once(swapper, 'exit');
    const seen = { opened: 0, refused: 0 };
    try {
      await once(swapper.stdout, 'data');
      raceFor(RACE_MS, file, seen);
    } finally {
      // Its next file would be put into the folder that the test removes.
      swapper.kill('SIGKILL');
      await ended;
    }
    assert.ok(seen.opened > 0 && seen.refused > 0, `both were met: ${JSON.stringify(seen)}`);
  });

  it('is another one where only the number of the inode is the same', (t) => {
    if (process.getuid?.() !== 0) {
      t.skip('needs root');
      return;
    }
    const mounts: string[] = [];
    const at = folder(t, mounts);
    const [own, other] = ['own', 'other'].map((name) => {
      const path = join(at, name);
      mkdirSync(path);
      libc.mount('tmpfs', path, 'tmpfs', 0, 'size=1m');
      mounts.push(path);
      return storeAt(join(path, 'store'));
    });
    assert.ok(own !== undefined && other !== undefined);
    assert.equal(own.ino, other.ino, 'two fresh file systems begin with one number');
    const taken = { ...own, path: other.path };
    assert.deepEqual(isStore({ file: own }), { present: true });
    assert.deepEqual(isStore({ file: taken }), { present: false });
    assert.throws(() => openStore(taken, constants.O_RDONLY), { code: 'EUCLEAN' });
    assert.throws(() => unlinkStore({ file: taken }), { code: 'EUCLEAN' });
    assert.ok(existsSync(other.path));
  });

  it('is not waited for where a named pipe took its place, and is removed where it is the one', async (t) => {
    const at = folder(t);
    const file = storeAt(join(at, 'store'));
    const pipe = join(at, 'pipe');
    await once(spawn('mkfifo', [pipe]), 'exit');
    assert.throws(() => openStore({ ...file, path: pipe }, constants.O_RDONLY), { code: 'EUCLEAN' });
    symlinkSync(at, join(at, 'way'));
    unlinkStore({ file: { ...file, path: join(at, 'way', 'store') } });
    assert.ok(!existsSync(file.path));
    closeSync(openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK));
  });
});
