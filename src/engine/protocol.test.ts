import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { ENGINE_PROTOCOL, engineReport, OLDEST_KEEPER, requireKeeper, requireSuccessor, worksFor } from './protocol.js';

function program(t: TestContext, text: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-protocol-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'engine.mjs');
  writeFileSync(path, text);
  return path;
}

const reporting = (report: unknown): string => `console.log(${JSON.stringify(JSON.stringify(report))});`;

describe('the protocol of keeper and engine', () => {
  it('is understood from the oldest keeper that an engine knows up to its own', () => {
    const engine = { version: '3.0.0', protocol: 5, oldestKeeper: 3 };
    assert.deepEqual(
      [2, 3, 4, 5, 6].map((keeper) => worksFor(engine, keeper)),
      [false, true, true, true, false],
    );
    assert.ok(OLDEST_KEEPER <= ENGINE_PROTOCOL);
    assert.ok(worksFor(engineReport(), ENGINE_PROTOCOL), 'this engine works for this keeper');
  });

  it('makes an engine refuse a keeper of another protocol, or of none', () => {
    requireKeeper(ENGINE_PROTOCOL);
    assert.throws(() => requireKeeper(ENGINE_PROTOCOL + 1), { code: 'EPROTO', message: /the volumes wait until/ });
    assert.throws(() => requireKeeper(Number.NaN), { code: 'EPROTO' });
  });

  const keeper = { protocol: 2, version: '1.2.0' };

  it('lets the engine on disk take over when it says that it works for this keeper, whatever else it says', async (t) => {
    const path = program(t, reporting({ version: '2.0.0', protocol: 3, oldestKeeper: 2, colour: 'brown' }));
    await requireSuccessor(path, keeper);
  });

  it('refuses an engine that does not, with both versions and what to do', async (t) => {
    const path = program(t, reporting({ version: '9.0.0', protocol: 9, oldestKeeper: 8 }));
    await assert.rejects(requireSuccessor(path, keeper), {
      code: 'EPROTO',
      outcome: 'refused',
      message: /Cowbird 9\.0\.0.*daemon of Cowbird 1\.2\.0: unmount the volumes, `cowbird daemon stop`/,
    });
  });

  it('refuses an engine that does not start, prints nothing of use, or is not there', async (t) => {
    for (const path of [
      program(t, 'import "./gone.mjs";'),
      program(t, 'this is no program'),
      program(t, 'console.log("hello")'),
      program(t, reporting({ version: 1 })),
      '/nonexistent/engine-main.js',
    ]) {
      const refusal = { code: 'ENOEXEC', message: /does not run: \S.*the running engine was left alone$/ };
      await assert.rejects(requireSuccessor(path, keeper), refusal);
    }
  });
});
