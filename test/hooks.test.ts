/** Commands before the freeze and after the thaw: what they see, and that the second one always runs. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it, type TestContext } from 'node:test';
import * as cowbird from '../src/index.js';
import { traces } from './harness.js';
import { armFailPoint, killEngine, restarts, WITH_FAIL_POINTS } from './killing.js';
import { CANNOT, Lab, MIB, run, until } from './lab.js';

const STORE = { storeBytes: 12 * MIB };

async function mounted(t: TestContext): Promise<{ lab: Lab; node: string; mnt: string; log: string }> {
  const lab = new Lab(t, WITH_FAIL_POINTS);
  const node = await lab.attached('volume', 60 * MIB);
  await lab.mkfs(node, 'ext4');
  return { lab, node, mnt: await lab.mount(node), log: lab.path('log') };
}

function linesOf(path: string): string[] {
  return existsSync(path) ? readFileSync(path, 'utf8').trim().split('\n') : [];
}

/** The events of a lab's daemon until the returned function is called, which gives them. */
function collectEvents(lab: Lab): () => cowbird.EventRecord[] {
  const found: cowbird.EventRecord[] = [];
  const controller = new AbortController();
  const listening = (async () => {
    for await (const event of cowbird.events({ ...lab.client, signal: controller.signal })) found.push(event);
  })().catch(() => undefined);
  return () => {
    controller.abort();
    void listening;
    return found;
  };
}

describe('hooks', { skip: CANNOT, concurrency: 2 }, () => {
  it('run before the freeze and after the thaw, know their volumes, and are timed in an event', async (t) => {
    const { lab, node, mnt, log } = await mounted(t);
    const events = collectEvents(lab);
    const say = `echo "$COWBIRD_HOOK $COWBIRD_MINORS $COWBIRD_VOLUMES $PWD" >> ${log}`;
    const device = await cowbird.setupSnapshot(
      node,
      `${mnt}/.cow`,
      232,
      { ...STORE, preFreeze: `${say}; touch ${mnt}/before`, postThaw: `${say}; touch ${mnt}/after; sync -f ${mnt}` },
      lab.client,
    );
    const name = `volume-${lab.tag}`;
    assert.deepEqual(linesOf(log), [`pre-freeze 232 ${name} /`, `post-thaw 232 ${name} /`]);
    const at = await lab.mount(device, 'look', '-o', 'ro,noload');
    assert.ok(existsSync(`${at}/before`) && !existsSync(`${at}/after`) && existsSync(`${mnt}/after`));
    await run('umount', at);
    const ended = events().filter(({ event }) => event === 'hook.ended');
    assert.deepEqual(
      ended.map(({ hook, ok, durationMs }) => [hook, ok, typeof durationMs]),
      [
        ['pre-freeze', true, 'number'],
        ['post-thaw', true, 'number'],
      ],
    );
  });

  it('before the freeze that fail or take too long refuse the operation; the one after the thaw runs all the same', async (t) => {
    const { lab, node, mnt, log } = await mounted(t);
    const before = await traces(lab);
    const take = (preFreeze: string): Promise<string> =>
      cowbird.setupSnapshot(
        node,
        `${mnt}/.cow`,
        235,
        { ...STORE, preFreeze, postThaw: `echo thawed >> ${log}`, hookTimeoutSeconds: 1 },
        lab.client,
      );
    await assert.rejects(take('echo no such database >&2; exit 3'), {
      code: 'ECANCELED',
      outcome: 'refused',
      message: /exit code 3: no such database/,
    });
    const marker = `77${process.pid}`;
    await assert.rejects(take(`sleep ${marker} & sleep ${marker}`), { code: 'ECANCELED', message: /within 1 s/ });
    await run('sh', '-c', `! ps ax -o args | grep -qx "sleep ${marker}"`);
    assert.deepEqual(linesOf(log), ['thawed', 'thawed']);
    const after = (await traces(lab)).filter((line) => line !== log);
    assert.deepEqual(after, before);
  });

  it('after the thaw that fail leave the snapshots, and are told of as done in part', async (t) => {
    const { lab, node, mnt, log } = await mounted(t);
    const raw = await lab.attached('raw', 20 * MIB);
    await assert.rejects(
      cowbird.setupTogether(
        [
          { device: node, cowFile: `${mnt}/.cow`, minor: 236, ...STORE },
          { device: raw, cowFile: lab.path('store'), minor: 237, ...STORE },
        ],
        { preFreeze: `echo "$COWBIRD_MINORS" >> ${log}`, postThaw: 'exit 1' },
        lab.client,
      ),
      { code: 'ECANCELED', outcome: 'partial' },
    );
    assert.deepEqual(linesOf(log), ['236 237']);
    for (const minor of [236, 237]) assert.equal((await lab.status(minor)).state, 3);
  });

  it('after the thaw that fail leave the version of a backup, which says so', async (t) => {
    const { lab, node } = await mounted(t);
    const repository = lab.path('repository');
    const backup = (postThaw: string): Promise<cowbird.BackupSummary> =>
      cowbird.backup(node, repository, { hooks: { postThaw }, client: lab.client });
    const failed = await backup('echo no database here; exit 1');
    assert.deepEqual([failed.version, failed.engine, failed.hookFailed], [1, 'driver', true]);
    assert.match(failed.warnings.join('\n'), /post-thaw/);
    const next = await backup('true');
    assert.deepEqual([next.version, next.engine, next.hookFailed, next.warnings], [2, 'driver', false, []]);
    assert.match(next.reason, /^the driver lists/);
  });

  it('after the thaw run also when the engine ends before it comes to that', async (t) => {
    const { lab, node, mnt, log } = await mounted(t);
    const hooks = { preFreeze: `echo pre >> ${log}`, postThaw: `echo post >> ${log}` };
    const take = (preFreeze = hooks.preFreeze): Promise<string> =>
      cowbird.setupSnapshot(node, `${mnt}/.cow`, 234, { ...STORE, ...hooks, preFreeze }, lab.client);
    const expected: string[] = [];
    const cases = [
      ['hook-ran', ['pre', 'post', 'pre', 'post']],
      ['frozen', ['pre', 'post', 'pre', 'post']],
      ['before-post-thaw', ['pre', 'post']],
    ] as const;
    for (const [point, lines] of cases) {
      await armFailPoint(lab, point);
      await take();
      expected.push(...lines);
      assert.deepEqual(linesOf(log), expected, point);
      await cowbird.destroy(234, lab.client);
    }
    // And when it ends while the first one runs, which is ended with it.
    const before = await restarts(lab);
    const going = lab.path('going');
    const taking = take(`test -e ${going} || { touch ${going}; sleep 20; }; echo pre >> ${log}`);
    await until('the hook runs', () => existsSync(going));
    await killEngine(lab);
    await taking;
    assert.ok((await restarts(lab)) > before);
    assert.deepEqual(linesOf(log), [...expected, 'post', 'pre', 'post']);
    await cowbird.destroy(234, lab.client);
  });
});
