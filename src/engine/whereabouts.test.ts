/** What a helper's answer, or the lack of one, says of the place of a COW file. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as v from 'valibot';
import { KeeperLink } from './keeper-link.js';
import { lookForStore, type Moved } from './whereabouts.js';

const Message = v.object({
  id: v.number(),
  call: v.picklist(['startHelper', 'callHelper']),
  params: v.looseObject({ call: v.optional(v.string()) }),
});
const FILE = { path: '/mnt/.cow', dev: 1, ino: 12 };
const WAS = {
  sizeBytes: 40_960,
  startBytes: 0,
  volumeBytes: 1_048_576,
  extents: [{ place: 0, block: 16, count: 10 }],
};

type Answer = { result: unknown } | { code: string; message: string };

const lies = (physicalBytes: number, flags = 0): Answer => ({
  result: { extents: [{ logicalBytes: 0, physicalBytes, lengthBytes: 40_960, flags }] },
});
const isThere = (present: boolean): Answer => ({ result: { present } });

/** Looks by a helper that answers like this. */
async function look(answers: Record<string, Answer>): Promise<Moved | undefined> {
  let reply: (message: unknown) => void = () => undefined;
  const channel = {
    send: (message: unknown) => {
      const { id, call, params } = v.parse(Message, message);
      const answer = call === 'startHelper' ? { result: { helper: 1 } } : answers[params.call ?? ''];
      assert.ok(answer !== undefined, `nobody expected ${params.call}`);
      setImmediate(() => reply({ id, ...('result' in answer ? answer : { error: { ...answer, outcome: 'failed' } }) }));
    },
    onMessage: (listener: typeof reply) => {
      reply = listener;
    },
    onEnd: () => undefined,
  };
  const link = new KeeperLink(channel, () => Promise.reject(new Error('nothing is asked of an engine')));
  return lookForStore(await link.connect(1).helper(), FILE, WAS);
}

describe('the place of a COW file', () => {
  it('is the same, or another one, by what the file system says', async () => {
    assert.equal(await look({ extents: lies(65_536) }), undefined);
    assert.match((await look({ extents: lies(131_072) }))?.reason ?? '', /\/mnt\/.cow lies elsewhere than before/);
    assert.equal((await look({ extents: { result: { extents: [] } } }))?.errno, 117);
  });

  it('is none where the file is gone, or another one has its name', async () => {
    const gone = { code: 'ENOENT', message: 'ENOENT: no such file' };
    assert.deepEqual(await look({ extents: gone, isStore: isThere(false) }), { errno: 2, reason: gone.message });
    const other = { code: 'EUCLEAN', message: '/mnt/.cow is another file' };
    assert.deepEqual(await look({ extents: other, isStore: isThere(false) }), { errno: 117, reason: other.message });
  });

  it('is not known where a helper could not look, whatever it failed with', async () => {
    for (const code of ['ETIMEDOUT', 'EPIPE', 'ENOMEM', 'EPROTO', 'EIO', 'EUCLEAN', 'ENOENT']) {
      const failed = { code, message: `${code} of this call` };
      await assert.rejects(look({ extents: failed, isStore: isThere(true) }), failed);
      await assert.rejects(look({ extents: failed, isStore: { code: 'EPIPE', message: 'it has ended' } }), failed);
    }
  });
});
