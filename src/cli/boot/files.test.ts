import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { type BootFile, OURS, ownerOf, refuseForeign, removeFile, writeFiles } from './files.js';

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'cowbird-files-'));
  t.after(() => rmSync(path, { recursive: true }));
  return path;
}

const filesIn = (at: string): BootFile[] => [
  { path: join(at, 'etc/system/a.service'), text: `${OURS}\n[Unit]\n` },
  { path: join(at, 'etc/system/x.wants/cowbird-attach-a.service'), target: '../cowbird-attach-a.service' },
];

describe('files of the system', () => {
  it('are written with their folders, and not again where they are so already', (t) => {
    const at = folder(t);
    const files = filesIn(at);
    assert.deepEqual(
      writeFiles(files).written,
      files.map(({ path }) => path),
    );
    const [unit = '', link = ''] = files.map(({ path }) => path);
    assert.equal(readFileSync(unit, 'utf8'), `${OURS}\n[Unit]\n`);
    assert.equal(statSync(unit).mode % 0o1000, 0o644);
    assert.equal(readlinkSync(link), '../cowbird-attach-a.service');
    assert.deepEqual([ownerOf(unit), ownerOf(link), ownerOf(join(at, 'none'))], ['ours', 'ours', 'nobody']);
    assert.deepEqual(writeFiles(files).written, []);
    writeFileSync(unit, `${OURS}\nolder\n`);
    assert.deepEqual(writeFiles(files).written, [unit]);
  });

  it('are as they were, with their folders, after undoing', (t) => {
    const at = folder(t);
    writeFiles(filesIn(at)).undo();
    assert.deepEqual(readdirSync(at), []);
    const [unit = ''] = filesIn(at).map(({ path }) => path);
    mkdirSync(join(at, 'etc/system'), { recursive: true });
    writeFileSync(unit, `${OURS}\nolder\n`);
    writeFiles(filesIn(at)).undo();
    assert.equal(readFileSync(unit, 'utf8'), `${OURS}\nolder\n`);
    assert.deepEqual(readdirSync(join(at, 'etc/system')), ['a.service']);
  });

  it('are all as they were when one cannot be written', (t) => {
    const at = folder(t);
    writeFileSync(join(at, 'blocked'), '');
    const files = [...filesIn(at), { path: join(at, 'blocked/b.service'), text: OURS }];
    assert.throws(() => writeFiles(files), { code: 'ENOTDIR' });
    assert.deepEqual(readdirSync(at), ['blocked']);
  });

  it('are refused where somebody else has one of them', (t) => {
    const at = folder(t);
    for (const [name, make] of [
      ['file', (path: string) => writeFileSync(path, '[Unit]\n')],
      ['link', (path: string) => symlinkSync('/dev/null', path)],
      ['folder', (path: string) => mkdirSync(path)],
    ] as const) {
      const path = join(at, name);
      make(path);
      assert.throws(() => refuseForeign([{ path, text: OURS }]), {
        code: 'EEXIST',
        message: new RegExp(`${path} exists`),
      });
    }
  });

  it('leave no empty folder for links to units behind, and keep every other', (t) => {
    const at = folder(t);
    const files = filesIn(at);
    writeFiles(files);
    for (const { path } of files) removeFile(path);
    assert.deepEqual(readdirSync(join(at, 'etc/system')), []);
    assert.ok(existsSync(join(at, 'etc/system')));
    for (const { path } of files) removeFile(path);
  });
});
