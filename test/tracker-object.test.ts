/** The eBPF program that is committed, and shipped, is the one that its source says. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { OBJECT_PATH } from '../src/live/kernel-map.js';
import { Lab, run } from './lab.js';

test('the object was built from the source beside it', () => {
  const folder = dirname(OBJECT_PATH);
  const notes = readFileSync(join(folder, 'README.md'), 'utf8');
  for (const name of ['tracker.bpf.c', 'tracker.bpf.o']) {
    const digest = createHash('sha256')
      .update(readFileSync(join(folder, name)))
      .digest('hex');
    assert.ok(
      notes.includes(`${name}  ${digest}\n`),
      `Run \`sh bpf/build.sh\`, and note in its README: ${name}  ${digest}`,
    );
  }
});

const CLANG = compiler();

test('the object is what its source says', { skip: CLANG === undefined ? 'no clang here' : false }, async (t) => {
  const lab = new Lab(t);
  const folder = dirname(OBJECT_PATH);
  const [version = ''] = (await run(CLANG ?? '', '--version')).split('\n');
  await run('env', `CLANG=${CLANG}`, 'sh', join(folder, 'build.sh'), lab.path('built.o'));
  if (!readFileSync(join(folder, 'README.md'), 'utf8').includes(version))
    return t.skip(`the committed object was built with another compiler than ${version}`);
  const isSame = readFileSync(lab.path('built.o')).equals(readFileSync(OBJECT_PATH));
  assert.ok(isSame, 'Run `sh bpf/build.sh`, and commit the object');
  return undefined;
});

/** Debian's compiler with or without its version in its name, where all is there that a build needs. */
function compiler(): string | undefined {
  const runs = (name: string): boolean => spawnSync(name, ['--version']).status === 0;
  if (!runs('llvm-strip') || !existsSync('/usr/include/bpf/bpf_helpers.h')) return undefined;
  return ['clang', 'clang-14'].find(runs);
}
