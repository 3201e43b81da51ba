/**
 * The rules of this repository, held by a test. Each failure says what to do.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

/** This file runs from `dist/test`. */
const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Each may import only what stands before it. `version.ts` is below them all. */
const LAYERS = [
  'version.ts',
  'sys',
  'block',
  'cow',
  'tracer',
  'frontend',
  'live',
  'repository',
  'engine',
  'control',
  'backup',
  'index.ts',
  'cli',
];
/** `from -> to` pairs of files that may break the order; each with its reason in the file that imports. */
const IMPORT_EXCEPTIONS = new Set<string>([]);

const FILE_LINES_MAX = 400;
const FUNCTION_LINES_MAX = 70;
/** `file: function` → lines it has. Only ever to shrink: shorten one, then lower or remove its entry. */
const LONG_FUNCTIONS = new Map<string, number>();

interface Source {
  /** From the root of the repository. */
  readonly path: string;
  readonly text: string;
  readonly tree: ts.SourceFile;
}

function sourcesIn(folder: string): Source[] {
  if (!existsSync(join(ROOT, folder))) return [];
  const names = readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' });
  return names
    .filter((name) => name.endsWith('.ts'))
    .map((name) => {
      const path = join(folder, name);
      const text = readFileSync(join(ROOT, path), 'utf8');
      return { path, text, tree: ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true) };
    });
}

const SOURCES = sourcesIn('src');
const BENCH_SOURCES = sourcesIn('bench');
const ALL_SOURCES = [...SOURCES, ...BENCH_SOURCES, ...sourcesIn('test'), ...sourcesIn('examples')];

function* nodesOf(node: ts.Node): Generator<ts.Node> {
  yield node;
  for (const child of node.getChildren()) yield* nodesOf(child);
}

function lineOf(tree: ts.SourceFile, position: number): number {
  return tree.getLineAndCharacterOfPosition(position).line + 1;
}

/** What a file imports or re-exports, types and `import()` too. */
function importsOf({ tree }: Source): string[] {
  const found: string[] = [];
  for (const node of nodesOf(tree)) {
    let target: ts.Node | undefined;
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) target = node.moduleSpecifier;
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      target = node.arguments[0];
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) target = node.argument.literal;
    if (target !== undefined && ts.isStringLiteralLike(target)) found.push(target.text);
  }
  return found;
}

const isTest = ({ path }: Source): boolean => path.endsWith('.test.ts');
const layerOf = (path: string): number => LAYERS.indexOf(path.split('/')[1] ?? '');

/** Fails with every finding on a line of its own, and what to do. */
function expectNone(findings: readonly string[], whatToDo: string): void {
  assert.ok(findings.length === 0, `${whatToDo}\n  ${findings.join('\n  ')}`);
}

/** Files of the repository as git sees them; without git, every file but what is generated. */
function repositoryFiles(): string[] {
  if (existsSync(join(ROOT, '.git'))) {
    const list = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
      cwd: ROOT,
      encoding: 'utf8',
      maxBuffer: 64 * 1024 * 1024,
    });
    return list.split('\0').filter((path) => path !== '' && existsSync(join(ROOT, path)));
  }
  const generated = /^(node_modules|dist|\.cowbird-setup|\.git)(\/|$)/;
  return readdirSync(ROOT, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
    .filter((path) => !generated.test(path));
}

test('every file of src belongs to a layer', () => {
  expectNone(
    SOURCES.filter(({ path }) => layerOf(path) < 0).map(({ path }) => path),
    'Move these into a layer, or give the layer its place in LAYERS (and in docs/architecture.md):',
  );
});

test('a layer imports only the layers below it', () => {
  const findings: string[] = [];
  const used = new Set<string>();
  for (const source of SOURCES.filter((source) => !isTest(source))) {
    for (const name of importsOf(source).filter((target) => target.startsWith('.'))) {
      const target = join(dirname(source.path), name).replace(/\.js$/, '.ts');
      const pair = `${source.path} -> ${target}`;
      if (layerOf(target) >= 0 && layerOf(target) <= layerOf(source.path)) continue;
      if (IMPORT_EXCEPTIONS.has(pair)) used.add(pair);
      else findings.push(pair);
    }
  }
  expectNone(findings, `Turn these imports round (pass it in, or move it down); the order is ${LAYERS.join(', ')}:`);
  const unused = [...IMPORT_EXCEPTIONS].filter((pair) => !used.has(pair));
  expectNone(unused, 'Remove these exceptions: nothing needs them any more:');
});

test('only src/sys imports the FFI library', () => {
  const findings = [...SOURCES, ...BENCH_SOURCES]
    .filter(({ path }) => !path.startsWith('src/sys/'))
    .filter((source) => importsOf(source).some((name) => name === 'koffi' || name.startsWith('koffi/')))
    .map(({ path }) => path);
  expectNone(findings, 'Wrap the call in a function of src/sys and import that:');
});

test(`a file has at most ${FILE_LINES_MAX} lines`, () => {
  const findings = ALL_SOURCES.map(({ path, text }) => ({ path, lines: text.trimEnd().split('\n').length }))
    .filter(({ lines }) => lines > FILE_LINES_MAX)
    .map(({ path, lines }) => `${path}: ${lines}`);
  expectNone(findings, 'Split these files by what they are about:');
});

test(`a function of src and bench has at most ${FUNCTION_LINES_MAX} lines`, () => {
  const findings: string[] = [];
  const used = new Set<string>();
  for (const { path, tree } of [...SOURCES, ...BENCH_SOURCES].filter((source) => !isTest(source))) {
    for (const node of nodesOf(tree)) {
      if (!ts.isFunctionLike(node) || !('body' in node) || node.body === undefined) continue;
      const lines = lineOf(tree, node.end) - lineOf(tree, node.getStart()) + 1;
      if (lines <= FUNCTION_LINES_MAX) continue;
      const name = node.name?.getText() ?? `line ${lineOf(tree, node.getStart())}`;
      const key = `${path}: ${name}`;
      if (LONG_FUNCTIONS.get(key) === lines) used.add(key);
      if (lines > (LONG_FUNCTIONS.get(key) ?? FUNCTION_LINES_MAX)) findings.push(`${key}, ${lines} lines`);
    }
  }
  expectNone(findings, 'Take steps out of these functions, each into one of its own with a name:');
  const unused = [...LONG_FUNCTIONS.keys()].filter((key) => !used.has(key));
  expectNone(unused, 'Lower these in LONG_FUNCTIONS, or remove them: they are shorter now:');
});

test('no type is switched off: neither any nor a double cast', () => {
  const findings: string[] = [];
  for (const { path, tree } of ALL_SOURCES) {
    for (const node of nodesOf(tree)) {
      const isDoubleCast =
        ts.isAsExpression(node) &&
        ts.isAsExpression(node.expression) &&
        node.expression.type.kind === ts.SyntaxKind.UnknownKeyword;
      if (node.kind !== ts.SyntaxKind.AnyKeyword && !isDoubleCast) continue;
      findings.push(`${path}:${lineOf(tree, node.getStart())}`);
    }
  }
  expectNone(findings, 'Give these a type, or narrow `unknown` with a check:');
});

test('nothing is left for later in the sources', () => {
  const marker = new RegExp(`\\b(${['FIX' + 'ME', 'TO' + 'DO', 'XX' + 'X'].join('|')})\\b`);
  const findings: string[] = [];
  for (const path of repositoryFiles().filter((file) =>
    /^(src|test|examples|bench|scripts|bin)\/.*(\.[cm]?[jt]s|\/[a-z-]+)$/.test(file),
  )) {
    for (const [i, line] of readFileSync(join(ROOT, path), 'utf8').split('\n').entries()) {
      if (marker.test(line)) findings.push(`${path}:${i + 1}`);
    }
  }
  expectNone(findings, 'Do it now, or open an issue and remove the comment:');
});

test('the lock file names no host but the public registry', () => {
  const lock = readFileSync(join(ROOT, 'package-lock.json'), 'utf8');
  const hosts = [...lock.matchAll(/"resolved":\s*"(?:\w+\+)?\w+:\/\/([^/"]*)/g)].map((match) => match[1] ?? '');
  expectNone(
    [...new Set(hosts.filter((host) => host !== 'registry.npmjs.org'))],
    'Make the lock file again in this folder (its .npmrc leaves hosts out): rm package-lock.json; npm install --package-lock-only.',
  );
});

test('the package holds the programs and the library, and neither tests nor maps', () => {
  const json = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts', '--loglevel=error'], {
    cwd: ROOT,
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  });
  const packed: unknown = JSON.parse(json);
  assert.ok(Array.isArray(packed) && packed.length === 1, 'npm pack makes one package');
  const files = filePaths(packed[0]);
  const needed = ['package.json', 'LICENSE', 'CHANGELOG.md', 'dist/src/index.js', 'dist/src/index.d.ts'];
  needed.push('bpf/tracker.bpf.o', 'bpf/tracker.bpf.c');
  for (const name of ['check-node.js', 'package.json', 'run.js', 'cowbird', 'dbdctl', 'elioctl', 'update-img'])
    needed.push(`bin/${name}`);
  for (const name of ['cowbird', 'dbdctl', 'elioctl', 'update-img'])
    needed.push(`dist/src/cli/${name}.js`, `man/${name}.8`);
  // What README.md and docs/ link to, from the package too.
  needed.push('examples/backup.ts', 'bench/README.md', 'bench/results/README.md');
  expectNone(
    needed.filter((path) => !files.includes(path)),
    'Add these to "files" of package.json (or build first: npm run build):',
  );
  const unwanted = files.filter((path) =>
    /\.test\.|\/(testing|testing-contents|scenario)\.|\.map$|^dist\/(test|examples|bench)\/|^(src|test)\/|^bench\/.*\.(ts|c|json)$|tsbuildinfo/.test(
      path,
    ),
  );
  expectNone(unwanted, 'Leave these out by "files" of package.json:');
});

function filePaths(packed: unknown): string[] {
  assert.ok(typeof packed === 'object' && packed !== null && 'files' in packed && Array.isArray(packed.files));
  return packed.files.map((file: unknown) => {
    assert.ok(typeof file === 'object' && file !== null && 'path' in file && typeof file.path === 'string');
    return file.path;
  });
}

test('nothing refers to places outside of the repository', () => {
  const outside = new RegExp(`${['\\.\\.', 'shared'].join('/')}\\b|(?<![\\w.])/${'work'}/`);
  const findings: string[] = [];
  for (const path of repositoryFiles()) {
    const content = readFileSync(join(ROOT, path));
    if (content.includes(0)) continue;
    for (const [i, line] of content.toString('utf8').split('\n').entries()) {
      if (outside.test(line)) findings.push(`${path}:${i + 1}`);
    }
  }
  expectNone(findings, 'Repeat here what a stranger needs; these places exist on one machine only:');
});
