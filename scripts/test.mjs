/**
 * `npm test`: set-up, then every compiled test, several files at a time; those that measure time, or look at all of the machine,
 * alone at the end. Arguments choose files by a part of their path (`npm test -- src/cow test/attach`); what begins with `-` goes
 * to Node (`--test-name-pattern=clean`).
 *
 * On a signal Node's runner sends SIGTERM to its test files and ends at once, while they are still unmounting. So all of them are
 * in a process group of their own, away from the terminal: only the runner gets the signal, and the whole group is waited for.
 * What a run that was killed outright left is cleared away by the next (`test/leftovers.ts`).
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync, symlinkSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Interrupted, killGroup, pause, SECOND_SIGNAL_MS, sendSignal } from './children.mjs';
import { TEST_LOCK, takeLock } from './lock.mjs';
import { environment, ROOT, setUpOrSay } from './setup.mjs';
import { readTotals } from './test-reporter.mjs';

const DIST = join(ROOT, 'dist');
/** Whole-system tests that measure time, share something with others (minors, pins of eBPF programs), or need most of the machine. */
const ALONE = ['backup-together', 'canaries', 'hangs', 'live-freeze', 'reclaim', 'tracking-missed'].map(
  (name) => `test/${name}.test.js`,
);
const GROUPS = [
  { folder: 'src', concurrency: 2, timeoutMs: 120_000 },
  // Each has minors of its own. The longest come first.
  { folder: 'test', concurrency: 3, timeoutMs: 600_000, isTogether: true, takes: (file) => !ALONE.includes(file) },
  { folder: 'test', concurrency: 1, timeoutMs: 600_000, takes: (file) => ALONE.includes(file) },
];
const LONGEST = [
  'vm',
  'backup',
  'kills',
  'tracking-kills',
  'repository',
  'defects',
  'life',
  'hard-cases',
  'live',
  'free-aware',
].map((name) => `test/${name}.test.js`);
/** Runs what takes too long for every change instead: `npm run test:long`. */
const LONG = '--long';
const LONG_TIMEOUT_MS = 4 * 3_600_000;
/** How long an interrupted test may take to unmount and detach. */
const CLEAN_UP_MS = 60_000;
const POLL_MS = 50;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** Compiled test files in a folder of `dist`, as paths from there. */
function testFiles(folder, ending) {
  if (!existsSync(join(DIST, folder))) return [];
  const names = readdirSync(join(DIST, folder), { recursive: true }).filter((name) => name.endsWith(ending));
  return names.sort().map((name) => join(folder, name));
}

/** The longest first: a long one at the end would run alone. */
function longestFirst(files) {
  return [...LONGEST.filter((file) => files.includes(file)), ...files.filter((file) => !LONGEST.includes(file))];
}

/** Links to files, whose names sort as the files stand: Node's runner takes what it is given in the order of names. */
function inThisOrder(files, folder) {
  mkdirSync(folder);
  return files.map((file, i) => {
    const link = join(folder, `${String(i).padStart(3, '0')}-${basename(file)}`);
    symlinkSync(join(DIST, file), link);
    return link;
  });
}

/** What a person writes to choose a test, as a part of the path of its compiled file. */
const asCompiled = (part) =>
  part
    .replace(/^\.\//, '')
    .replace(/^dist\//, '')
    .replace(/\.ts$/, '.js');

/** Passes signals on to the running process group. */
class Run {
  signal;
  #signalledAt;
  #pid;
  #onSignal = (signal) => {
    const isFirst = this.signal === undefined;
    this.signal ??= signal;
    this.#signalledAt ??= Date.now();
    if (this.#pid === undefined) return;
    if (isFirst) {
      console.error(`\n${signal}: waiting for the tests to clean up`);
      // Without the runner, what it left behind is told directly.
      if (!sendSignal(this.#pid, signal)) killGroup(this.#pid, signal);
    } else if (Date.now() - this.#signalledAt > SECOND_SIGNAL_MS) killGroup(this.#pid, 'SIGKILL');
  };

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  close() {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
  }

  throwIfInterrupted() {
    if (this.signal !== undefined) throw new Interrupted(this.signal);
  }

  async node(args, env) {
    const stdio = ['ignore', 'inherit', 'inherit'];
    const child = spawn(process.execPath, args, { cwd: ROOT, env: environment(env), detached: true, stdio });
    this.#pid = child.pid;
    const code = await new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (exitCode) => resolve(exitCode ?? 1));
    });
    await this.#groupGone(child.pid);
    this.#pid = undefined;
    return code;
  }

  async #groupGone(pid) {
    const until = Date.now() + CLEAN_UP_MS;
    while (killGroup(pid, 0)) {
      if (Date.now() > until) {
        console.error(`tests did not end within ${CLEAN_UP_MS / 1000} s; killed: processes of group ${pid}`);
        killGroup(pid, 'SIGKILL');
        return;
      }
      await pause(POLL_MS);
    }
  }
}

/** Why the whole-system tests cannot run here, when that is so. */
function whyNoSystemTests() {
  if (process.getuid() !== 0) return 'this is not root';
  if (!existsSync('/dev/fuse')) return 'there is no /dev/fuse';
  return undefined;
}

async function runGroups(groups, nodeArgs) {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-test-'));
  const totalsPath = join(folder, 'totals.json');
  const run = new Run();
  let hasFailed = false;
  let giveBack = () => undefined;
  try {
    giveBack = await takeLock(TEST_LOCK, () => run.throwIfInterrupted());
    for (const [i, { files, concurrency, timeoutMs, isTogether }] of groups.entries()) {
      hasFailed ||= (await run.node([join(DIST, 'test', 'leftovers.js')])) !== 0;
      const args = [
        '--test',
        `--test-concurrency=${concurrency}`,
        `--test-timeout=${timeoutMs}`,
        `--test-reporter=${join(ROOT, 'scripts', 'test-reporter.mjs')}`,
        '--test-reporter-destination=stdout',
        ...nodeArgs,
        ...inThisOrder(files, join(folder, String(i))),
      ];
      const more = i < groups.length - 1 ? '1' : '0';
      const together = isTogether ? { COWBIRD_TEST_TOGETHER: '1' } : {};
      const code = await run.node(args, { COWBIRD_TEST_TOTALS: totalsPath, COWBIRD_TEST_MORE: more, ...together });
      hasFailed ||= code !== 0;
      if (run.signal !== undefined) break;
    }
    return { hasFailed, signal: run.signal, totals: readTotals(totalsPath) };
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    return { hasFailed: true, signal: run.signal, totals: {} };
  } finally {
    giveBack();
    run.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

export async function main(args) {
  const startedAt = Date.now();
  const setUpCode = await setUpOrSay('test');
  if (setUpCode !== 0) return setUpCode;
  const isLong = args.includes(LONG);
  const nodeArgs = args.filter((arg) => arg.startsWith('-') && arg !== LONG);
  const parts = args.filter((arg) => !arg.startsWith('-')).map(asCompiled);
  const isChosen = (file) => parts.length === 0 || parts.some((part) => file.includes(part));
  const ending = isLong ? '.long.js' : '.test.js';
  // The long ones measure pauses and times: each alone.
  const long = { timeoutMs: LONG_TIMEOUT_MS, concurrency: 1, isTogether: false };
  const groups = GROUPS.map(({ takes = () => true, ...group }) => ({
    ...group,
    ...(isLong ? long : {}),
    files: longestFirst(testFiles(group.folder, ending).filter((file) => isChosen(file) && takes(file))),
  }));
  const chosen = groups.filter((group) => group.files.length > 0);
  if (chosen.length === 0) {
    console.error(`No test file${parts.length === 0 ? '' : ` matches ${parts.join(' ')}`}`);
    return 1;
  }
  const skipped = chosen.some(({ folder }) => folder === 'test') ? whyNoSystemTests() : undefined;
  const note = `NOTE: ${skipped}: the whole-system tests that need it SKIP themselves`;
  if (skipped !== undefined) console.error(note);

  const { hasFailed, signal, totals } = await runGroups(chosen, nodeArgs);
  if (skipped !== undefined) console.error(note);
  const hasRun = (totals.tests ?? 0) > 0;
  const verdict =
    signal !== undefined ? `interrupted by ${signal}` : hasFailed ? 'FAILED' : hasRun ? 'passed' : 'NO TEST RAN';
  console.error(`Tests ${verdict}, ${Math.round((Date.now() - startedAt) / 1000)} s with set-up`);
  if (signal !== undefined) return 128 + constants.signals[signal];
  return hasFailed || !hasRun ? 1 : 0;
}

if (realpathSync(process.argv[1] ?? '.') === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2));
}
