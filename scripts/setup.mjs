/**
 * Set-up: dependencies, build, Debian packages. Idempotent: a stamp says what was done for which inputs, and is written last
 * and removed first, so that a set-up that was interrupted anywhere is done again. One at a time: the lock is held by a live
 * process, or it is stale.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { missingPackages } from './packages.mjs';

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');
const STATE = join(ROOT, '.cowbird-setup');
const LOCK = join(STATE, 'lock');
const ADMIN_PATHS = ['/usr/local/sbin', '/usr/sbin', '/sbin'];
const LOCK_POLL_MS = 200;

let child;
let interrupted;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    interrupted = signal;
    child?.kill(signal);
  });
}

/** Whether a program is on the path, or where the administrator's programs are. */
export function hasProgram(name) {
  const folders = [...(process.env.PATH ?? '').split(delimiter), ...ADMIN_PATHS];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Runs a program to its end; throws when it fails or when we were interrupted. */
async function run(command, args, options = {}) {
  const code = await new Promise((resolve, reject) => {
    child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'], ...options });
    child.once('error', reject);
    child.once('exit', (exitCode, signal) => resolve(exitCode ?? signal));
  });
  child = undefined;
  if (interrupted !== undefined) throw new Error(`interrupted by ${interrupted}`);
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${code}`);
}

function* files(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* files(path);
    else yield path;
  }
}

function digest(parts) {
  return createHash('sha256').update(parts.join('\n')).digest('hex');
}

/** What the dependencies depend on. */
function dependencyKey() {
  return digest([process.version, readFileSync(join(ROOT, 'package-lock.json'), 'utf8')]);
}

/** What the build depends on: names, sizes and times of every source. */
function buildKey() {
  const parts = [dependencyKey(), readFileSync(join(ROOT, 'tsconfig.json'), 'utf8')];
  for (const folder of ['src', 'test', 'examples'].map((name) => join(ROOT, name)).filter(existsSync)) {
    for (const path of files(folder)) {
      const { size, mtimeMs } = statSync(path);
      parts.push(`${path.slice(ROOT.length)} ${size} ${mtimeMs}`);
    }
  }
  return digest(parts);
}

function isDone(name, key) {
  const path = join(STATE, name);
  return existsSync(path) && readFileSync(path, 'utf8') === key;
}

async function once(name, key, present, action) {
  if (present() && isDone(name, key)) return;
  rmSync(join(STATE, name), { force: true });
  await action();
  writeFileSync(join(STATE, `${name}.new`), key);
  renameSync(join(STATE, `${name}.new`), join(STATE, name));
}

async function installDependencies() {
  const present = () => existsSync(join(ROOT, 'node_modules', 'koffi'));
  await once('dependencies', dependencyKey(), present, async () => {
    console.log('setup: installing the npm packages of package-lock.json');
    await run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']);
  });
}

async function build() {
  const present = () => existsSync(join(ROOT, 'dist', 'src', 'index.js'));
  await once('build', buildKey(), present, async () => {
    console.log('setup: compiling');
    removeOrphans();
    await run(process.execPath, [
      join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'),
      '-p',
      join(ROOT, 'tsconfig.json'),
    ]);
  });
}

/** Compiled files whose source is gone must not run as tests, nor be packed. */
function removeOrphans() {
  const dist = join(ROOT, 'dist');
  if (!existsSync(dist)) return;
  let removed = false;
  for (const path of files(dist)) {
    const source = path.slice(dist.length + 1).replace(/(\.d\.ts|\.js)(\.map)?$/, '.ts');
    if (path.endsWith('.tsbuildinfo') || existsSync(join(ROOT, source))) continue;
    rmSync(path);
    removed = true;
  }
  if (removed || !existsSync(join(dist, 'src', 'index.js'))) rmSync(join(dist, '.tsbuildinfo'), { force: true });
}

async function installPackages(purpose) {
  const missing = missingPackages(purpose, hasProgram);
  if (missing.length === 0) return;
  if (process.env.COWBIRD_SETUP === 'no-apt') {
    console.log(`setup: not installed, as COWBIRD_SETUP=no-apt asks: ${missing.join(' ')}`);
    return;
  }
  if (!hasProgram('apt-get') || process.getuid() !== 0) {
    const why = hasProgram('apt-get') ? 'installing needs root' : 'there is no apt-get here';
    console.log(`setup: missing, and ${why}: ${missing.join(' ')}`);
    return;
  }
  console.log(`setup: installing these Debian packages: ${missing.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const quiet = { env, stdio: ['ignore', 'ignore', 'inherit'] };
  if (spawnSync('dpkg', ['--audit'], { encoding: 'utf8' }).stdout !== '')
    await run('dpkg', ['--configure', '-a'], quiet);
  await run('apt-get', ['update', '-q'], quiet);
  await run('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...missing], quiet);
}

/** Start time of a process in clock ticks: with the pid it names one process for good. */
function startTime(pid) {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[19];
  } catch {
    return undefined;
  }
}

async function takeLock() {
  mkdirSync(STATE, { recursive: true });
  const mine = `${process.pid} ${startTime(process.pid)}`;
  let said = false;
  for (;;) {
    try {
      writeFileSync(LOCK, mine, { flag: 'wx' });
      return;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const holder = existsSync(LOCK) ? readFileSync(LOCK, 'utf8') : '';
    const [pid, started] = holder.split(' ');
    if (holder !== '' && startTime(pid) !== started) {
      // Whoever renames the stale lock away is the one that removed it.
      renameSync(LOCK, `${LOCK}.stale.${process.pid}`);
      rmSync(`${LOCK}.stale.${process.pid}`, { force: true });
      continue;
    }
    if (!said) console.log(`setup: another set-up runs (pid ${pid}); waiting for it`);
    said = true;
    await new Promise((resolve) => setTimeout(resolve, LOCK_POLL_MS));
    if (interrupted !== undefined) throw new Error(`interrupted by ${interrupted}`);
  }
}

/** Does what is missing for a purpose: `demo` or `test`. */
export async function setUp(purpose) {
  await takeLock();
  try {
    await installDependencies();
    await build();
    await installPackages(purpose);
  } finally {
    rmSync(LOCK, { force: true });
  }
}

export async function main(args) {
  const at = args.indexOf('--for');
  const purpose = at >= 0 ? args[at + 1] : 'demo';
  try {
    await setUp(purpose);
    return 0;
  } catch (error) {
    console.error(`setup: ${error.message}`);
    return interrupted === undefined ? 1 : 130;
  }
}
