/**
 * `npm test`: set-up, then every compiled test, two files at a time; whole-system tests (`test/`), which own loop devices and
 * mounts, one after another, with those beside them that have a machine of their own. Arguments choose files by a part of their
 * path (`npm test -- src/cow test/attach`); what begins with `-` goes to Node (`--test-name-pattern=clean`).
 *
 * On a signal Node's runner sends SIGTERM to its test files and ends at once, while they are still unmounting. So all of them are
 * in a process group of their own, away from the terminal: only the runner gets the signal, and the whole group is waited for.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, realpathSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { killGroup, pause, SECOND_SIGNAL_MS, sendSignal } from './children.mjs';
import { environment, ROOT, setUpOrSay } from './setup.mjs';
import { readTotals } from './test-reporter.mjs';

const DIST = join(ROOT, 'dist');
const GROUPS = [
  { folder: 'src', concurrency: 2, timeoutMs: 120_000 },
  // Those that have loop devices and mounts wait for each other (`test/lab.ts`), also for those of another run.
  { folder: 'test', concurrency: 2, timeoutMs: 600_000 },
];
/** Whole-system tests with a machine of their own: they run beside the others. */
const OWN_MACHINE = ['test/vm.test.js', 'test/vm-root.test.js', 'test/simulator.test.js'];
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

/** Has those with a machine of their own evenly among the others, so that one of them is always beside one of those. */
function spread(files) {
  const own = files.filter((file) => OWN_MACHINE.includes(file));
  const others = files.filter((file) => !OWN_MACHINE.includes(file));
  const share = Math.ceil(others.length / Math.max(1, own.length));
  return own.length === 0 ? files : own.flatMap((file, i) => [file, ...others.slice(i * share, (i + 1) * share)]);
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
  try {
    for (const [i, { files, concurrency, timeoutMs }] of groups.entries()) {
      const args = [
        '--enable-source-maps',
        '--test',
        `--test-concurrency=${concurrency}`,
        `--test-timeout=${timeoutMs}`,
        `--test-reporter=${join(ROOT, 'scripts', 'test-reporter.mjs')}`,
        '--test-reporter-destination=stdout',
        ...nodeArgs,
        ...files.map((file) => join(DIST, file)),
      ];
      const more = i < groups.length - 1 ? '1' : '0';
      const code = await run.node(args, { COWBIRD_TEST_TOTALS: totalsPath, COWBIRD_TEST_MORE: more });
      hasFailed ||= code !== 0;
      if (run.signal !== undefined) break;
    }
    return { hasFailed, signal: run.signal, totals: readTotals(totalsPath) };
  } finally {
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
  const groups = GROUPS.map(({ timeoutMs, ...group }) => ({
    ...group,
    timeoutMs: isLong ? LONG_TIMEOUT_MS : timeoutMs,
    files: spread(testFiles(group.folder, ending).filter(isChosen)),
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
