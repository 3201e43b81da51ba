import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { hasUnit, startUnit, UNIT } from './launch.js';
import { pathsFrom } from './paths.js';

describe('the daemon’s start by systemd', () => {
  it('is for the machine’s one daemon, where systemd runs and has a unit for it', (t) => {
    const root = mkdtempSync(join(tmpdir(), 'cowbird-launch-'));
    t.after(() => rmSync(root, { recursive: true }));
    const standard = pathsFrom({});
    mkdirSync(join(root, 'etc/systemd/system'), { recursive: true });
    writeFileSync(join(root, 'etc/systemd/system', UNIT), '');
    assert.equal(hasUnit(standard, root), false, 'systemd does not run');
    mkdirSync(join(root, 'run/systemd/system'), { recursive: true });
    assert.equal(hasUnit(standard, root), true);
    assert.equal(hasUnit(pathsFrom({ COWBIRD_RUN_DIR: '/run/other' }), root), false);
    assert.equal(hasUnit(pathsFrom({ COWBIRD_STATE_DIR: '/srv/other' }), root), false);
    rmSync(join(root, 'etc/systemd/system', UNIT));
    assert.equal(hasUnit(standard, root), false, 'there is no unit');
  });

  it('says what systemd said when it refuses', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'cowbird-launch-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const program = join(folder, 'systemctl');
    writeFileSync(program, '#!/bin/sh\necho "$*: masked" >&2\nexit 1\n', { mode: 0o755 });
    await assert.rejects(startUnit(pathsFrom({ COWBIRD_RUN_DIR: folder }), program), {
      code: 'EIO',
      outcome: 'failed',
      message: 'systemd did not start cowbird.service: start --no-block cowbird.service: masked',
    });
  });
});

describe('a daemon that cannot start', () => {
  it('ends, also when it cannot say why: nobody could reach it', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'cowbird-launch-'));
    t.after(() => rmSync(folder, { recursive: true }));
    // Where the engine writes a file when it starts.
    mkdirSync(join(folder, 'run', 'info'), { recursive: true });
    const child = spawn(process.execPath, [fileURLToPath(new URL('./keeper-main.js', import.meta.url))], {
      stdio: 'ignore',
      env: {
        ...process.env,
        COWBIRD_RUN_DIR: join(folder, 'run'),
        COWBIRD_STATE_DIR: join(folder, 'state'),
        COWBIRD_START_ERROR: join(folder, 'none', 'start-error'),
      },
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), 30_000);
    const code = await new Promise((resolve) => child.once('exit', resolve));
    clearTimeout(timer);
    assert.equal(code, 1);
  });
});
