/** Long lists of changes, asked for in pages of a daemon that the test plays. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { CowbirdError } from '../sys/errors.js';
import { allChanges } from './changes.js';
import type { ClientOptions } from './client.js';
import { parseParams } from './params.js';
import type { ChangesReport } from './schema.js';
import { createControlServer } from './server.js';

type Asked = number | 'whole';

function list(seqId: number, extents: ChangesReport['extents'], nextBlock?: number): ChangesReport {
  const bytes = extents.reduce((sum, { length }) => sum + length, 0);
  return {
    minor: 7,
    uuid: 'ab',
    seq_id: seqId,
    block_size: 4096,
    nr_changed_blocks: bytes / 4096,
    bytes,
    extents,
    ...(nextBlock === undefined ? {} : { next_block: nextBlock }),
  };
}

/** A daemon with these answers, and what it was asked for. */
async function daemon(t: TestContext, answers: ReadonlyMap<Asked, ChangesReport>): Promise<[ClientOptions, Asked[]]> {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-changes-'));
  mkdirSync(join(folder, 'run'));
  const asked: Asked[] = [];
  const server = createControlServer({
    call: async (_, params) => {
      const from = parseParams('changes', params).fromBlock ?? 'whole';
      asked.push(from);
      const answer = answers.get(from);
      if (answer === undefined) throw new CowbirdError('EFBIG', 'too long for one answer');
      return answer;
    },
    subscribe: () => () => undefined,
  });
  server.listen(join(folder, 'run', 'control.sock'));
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
    rmSync(folder, { recursive: true });
  });
  return [{ env: { COWBIRD_RUN_DIR: join(folder, 'run'), COWBIRD_STATE_DIR: join(folder, 'state') } }, asked];
}

describe('the list of changes of a minor', () => {
  it('comes as a whole where it is short, or where the daemon knows no pages', async (t) => {
    const whole = list(1, [{ offset: 0, length: 4096 }]);
    const [client, asked] = await daemon(t, new Map([['whole', whole]]));
    assert.deepEqual(await allChanges(7, client), whole);
    assert.deepEqual(asked, ['whole']);
  });

  it('is put together from its pages where it is long, and a run that grew between two of them is one', async (t) => {
    const first = list(
      1,
      [
        { offset: 0, length: 4096 },
        { offset: 8192, length: 4096 },
      ],
      3,
    );
    const second = list(1, [{ offset: 12_288, length: 8192 }], 50);
    const third = list(1, [{ offset: 204_800, length: 4096 }]);
    const [client, asked] = await daemon(
      t,
      new Map([
        [0, first],
        [3, second],
        [50, third],
      ]),
    );
    const extents = [
      { offset: 0, length: 4096 },
      { offset: 8192, length: 12_288 },
      { offset: 204_800, length: 4096 },
    ];
    assert.deepEqual(await allChanges(7, client), list(1, extents));
    assert.deepEqual(asked, ['whole', 0, 3, 50]);
  });

  it('is none when the minor went on to another snapshot between two pages', async (t) => {
    const pages = new Map([
      [0, list(1, [{ offset: 0, length: 4096 }], 3)],
      [3, list(2, [])],
    ]);
    const [client] = await daemon(t, pages);
    await assert.rejects(allChanges(7, client), { code: 'ESTALE', message: /another snapshot.*ask again/ });
  });
});
