/**
 * Set-up: npm packages, build, Debian packages. Idempotent, and it may be ended at any point: a stamp says for which inputs a
 * step was done; it is removed first and written last. Programs that ran for the step are another file's matter
 * (children.mjs), as is the lock (lock.mjs).
 */
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Children, ProgramFailed, ROOT, readIfThere, STATE, say } from './children.mjs';
import { SETUP_LOCK, takeLock } from './lock.mjs';
import { installPackages } from './packages.mjs';

export { environment, ROOT } from './children.mjs';
export { hasProgram } from './packages.mjs';

const DIST = join(ROOT, 'dist');
const BUILD_INFO = join(DIST, '.tsbuildinfo');
/** There while tsc runs: what it wrote until it was stopped cannot be built upon. */
const BUILD_UNDER_WAY = join(STATE, 'build-under-way');
const SOURCE_FOLDERS = ['src', 'test', 'examples', 'bench'];
/** `build`: only what makes `dist`. */
const PURPOSES = ['build', 'demo', 'test', 'bench'];

function filesUnder(folder) {
  if (!existsSync(folder)) return [];
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath ?? entry.path, entry.name));
}

function digest(parts) {
  return createHash('sha256').update(parts.join('\n')).digest('hex');
}

const read = (name) => readFileSync(join(ROOT, name), 'utf8');

/** What the npm packages depend on. */
function dependencyKey() {
  return digest([process.arch, read('package-lock.json')]);
}

const sources = () => SOURCE_FOLDERS.flatMap((name) => filesUnder(join(ROOT, name))).sort();

/** What the build depends on: names, sizes and times of every source. */
function buildKey() {
  const parts = [dependencyKey(), read('tsconfig.json')];
  for (const path of sources()) {
    const { size, mtimeMs } = statSync(path);
    parts.push(`${path.slice(ROOT.length)} ${size} ${mtimeMs}`);
  }
  return digest(parts);
}

/** Does a step unless it was done for the same inputs and its result is there. The stamp goes first and comes last. */
async function once(name, key, isPresent, action) {
  const stamp = join(STATE, name);
  if (readIfThere(stamp) === key && isPresent()) return;
  mkdirSync(STATE, { recursive: true });
  rmSync(stamp, { force: true });
  await action();
  writeFileSync(`${stamp}.new`, key);
  renameSync(`${stamp}.new`, stamp);
}

async function installDependencies(children) {
  const wanted = Object.entries(JSON.parse(read('package-lock.json')).packages)
    .filter(([path, entry]) => path !== '' && entry.optional !== true)
    .map(([path]) => join(ROOT, path, 'package.json'));
  await once(
    'dependencies',
    dependencyKey(),
    () => wanted.every(existsSync),
    async () => {
      say('installing the npm packages of package-lock.json');
      const quiet = ['--no-audit', '--no-fund', '--no-progress', '--no-update-notifier', '--loglevel=error'];
      await children.run('npm', ['ci', '--ignore-scripts', ...quiet]);
    },
  );
}

const compiledFrom = (path) => join(DIST, path.slice(ROOT.length).replace(/\.ts$/, '.js'));
const isCompiled = () => sources().every((path) => !path.endsWith('.ts') || existsSync(compiledFrom(path)));

async function build(children) {
  await once('build', buildKey(), isCompiled, async () => {
    say('compiling');
    removeOrphans();
    if (existsSync(BUILD_UNDER_WAY) || !isCompiled()) rmSync(BUILD_INFO, { force: true });
    writeFileSync(BUILD_UNDER_WAY, '');
    const tsc = join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
    try {
      await children.run(process.execPath, [tsc, '-p', join(ROOT, 'tsconfig.json')]);
    } catch (error) {
      // It came to its own end: what it wrote is consistent, only the types are not right.
      if (error instanceof ProgramFailed && existsSync(BUILD_INFO)) rmSync(BUILD_UNDER_WAY);
      throw error;
    }
    rmSync(BUILD_UNDER_WAY);
  });
}

/** Compiled files whose source is gone must not run as tests, nor be packed. */
function removeOrphans() {
  for (const path of filesUnder(DIST)) {
    const source = join(ROOT, path.slice(DIST.length).replace(/(\.d\.ts|\.js)(\.map)?$/, '.ts'));
    if (path !== BUILD_INFO && !existsSync(source)) rmSync(path);
  }
  const folders = existsSync(DIST) ? readdirSync(DIST, { withFileTypes: true, recursive: true }) : [];
  const paths = folders
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name));
  for (const path of paths.sort().reverse()) if (readdirSync(path).length === 0) rmdirSync(path);
}

/** Does what is missing for a purpose: `build`, `demo`, `test` or `bench`. Throws; `exitCode` of the error is the one to end with. */
export async function setUp(purpose) {
  const children = new Children();
  try {
    const release = await takeLock(SETUP_LOCK, () => children.throwIfInterrupted());
    try {
      await children.endLeftover();
      await installDependencies(children);
      await build(children);
      if (purpose !== 'build') await installPackages(children, purpose);
      children.throwIfInterrupted();
    } finally {
      release();
    }
  } finally {
    children.close();
  }
}

/** `setUp` for a command line: says what went wrong and returns the exit code. */
export async function setUpOrSay(purpose) {
  try {
    await setUp(purpose);
    return 0;
  } catch (error) {
    say(error.message);
    return error.exitCode ?? 1;
  }
}

export async function main(args) {
  const at = args.indexOf('--for');
  const purpose = at >= 0 ? args[at + 1] : 'demo';
  if (!PURPOSES.includes(purpose) || args.length > (at >= 0 ? 2 : 0)) {
    say(`usage: npm run setup [-- --for ${PURPOSES.join('|')}]`);
    return 2;
  }
  return setUpOrSay(purpose);
}

if (realpathSync(process.argv[1] ?? '.') === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2));
}
