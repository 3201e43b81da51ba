/** The entry scripts: what an old Node is told, and that they run from anywhere. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
const COMMANDS = ['cowbird', 'dbdctl', 'elioctl', 'update-img'];

interface CheckNode {
  isTooOld(version: string): boolean;
}
const { isTooOld }: CheckNode = createRequire(import.meta.url)(join(ROOT, 'bin', 'check-node.js'));

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'cowbird entry '));
  cpSync(join(ROOT, 'bin'), join(folder, 'bin'), { recursive: true });
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function run(
  program: string,
  args: string[],
  nodeArgs: string[] = [],
): { status: number | null; out: string; err: string } {
  const result = spawnSync(process.execPath, [...nodeArgs, program, ...args], { cwd: '/', encoding: 'utf8' });
  return { status: result.status, out: result.stdout, err: result.stderr };
}

/** A program in place of the compiled one. */
function putProgram(name: string, source: string): void {
  mkdirSync(join(folder, 'dist', 'src', 'cli'), { recursive: true });
  writeFileSync(join(folder, 'dist', 'src', 'cli', `${name}.js`), source);
}

test('Node 20.19 is new enough, 20.18 and everything before it is not', () => {
  for (const version of ['v20.19.0', 'v20.20.2', 'v22.0.0', 'v24.11.0', 'v100.0.0'])
    assert.equal(isTooOld(version), false);
  for (const version of ['v20.18.9', 'v18.20.0', 'v10.24.1', 'v0.12.18']) assert.equal(isTooOld(version), true);
});

test('a Node that is too old is told so in one line by every command', () => {
  const pretend = join(folder, 'pretend.cjs');
  writeFileSync(pretend, "Object.defineProperty(process, 'version', { value: 'v10.24.1' });");
  for (const name of COMMANDS) {
    const { status, out, err } = run(join(folder, 'bin', name), [], ['--require', pretend]);
    assert.deepEqual({ status, out }, { status: 1, out: '' });
    assert.equal(err, 'Cowbird needs Node 20.19 or newer; this is v10.24.1\n');
  }
});

test('what an old Node reads has no syntax newer than it knows', () => {
  const newer = /=>|`|\b(?:let|const|class|async|await|import)\b|\?\.|\?\?/;
  for (const path of ['bin/check-node.js', 'scripts/entry.cjs', ...COMMANDS.map((name) => `bin/${name}`)]) {
    const code = readFileSync(join(ROOT, path), 'utf8').replace(/\/\/.*|'[^']*'/g, '');
    assert.doesNotMatch(code, newer, `write ${path} as plain old JavaScript: it runs on the Node that it refuses`);
  }
});

test('a checkout that is not built says what to run, in one line', () => {
  for (const name of COMMANDS) {
    const { status, out, err } = run(join(folder, 'bin', name), []);
    assert.deepEqual({ status, out }, { status: 1, out: '' });
    assert.match(err, /^[^\n]*run `npm run setup` first\n$/);
  }
});

test('a checkout without its npm packages says what to run, in one line', () => {
  putProgram('cowbird', "import 'no-such-package-of-cowbird';");
  const { status, err } = run(join(folder, 'bin', 'cowbird'), []);
  assert.equal(status, 1);
  assert.match(err, /^[^\n]*no-such-package-of-cowbird[^\n]*run `npm run setup` first\n$/);
});

test('a command runs through a link, from a path with spaces, and its exit code is that of main', () => {
  putProgram('dbdctl', 'export async function main(argv) { console.log(JSON.stringify(argv)); return 255; }');
  const link = join(folder, 'a link');
  symlinkSync(join(folder, 'bin', 'dbdctl'), link);
  const { status, out } = run(link, ['info', 'two words']);
  assert.deepEqual({ status, out }, { status: 255, out: '["info","two words"]\n' });
});
