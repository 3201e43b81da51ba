/** The client of the control socket. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { call } from './client.js';
import { createControlServer } from './server.js';

it('keeps no connection for later: the daemon may close it while the program is busy, and the next call would fail', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-client-'));
  const runDir = join(folder, 'run');
  mkdirSync(runDir);
  const server = createControlServer({ call: async () => ({ minor: 7 }), subscribe: () => () => undefined });
  let connections = 0;
  server.on('connection', () => connections++);
  server.listen(join(runDir, 'control.sock'));
  await once(server, 'listening');
  const env = { COWBIRD_RUN_DIR: runDir, COWBIRD_STATE_DIR: join(folder, 'state') };
  try {
    for (let calls = 1; calls <= 3; calls++) {
      assert.deepEqual(await call('getFreeMinor', {}, { env }), { minor: 7 });
      assert.ok(connections >= calls, `${connections} connections for ${calls} calls`);
    }
  } finally {
    server.close();
    server.closeAllConnections();
    rmSync(folder, { recursive: true });
  }
});
