/** The actions of the commands for backups and their repositories. */

import { parseVersionRange } from '../../backup/repository-at.js';
import type {
  BackupOptions,
  BackupPair,
  BackupSummary,
  DeviceOptions,
  RepositoryOptions,
  RetentionPolicy,
} from '../../index.js';
import { CowbirdError } from '../../sys/errors.js';
import { progressBar } from '../progress.js';
import { counted, formatSize, parseDecimal } from '../quantities.js';
import { damageText, versionsText } from '../repository-tables.js';
import { EXIT } from '../spec/cowbird.js';
import { type Action, answer, type Call, operand } from './call.js';
import { hookOptions } from './hooks.js';

const ENGINES = ['auto', 'driver', 'live', 'scan'] as const;
const KEEP_MAX = 1_000_000;
/** For ever, as far as a person is concerned. */
const WAIT_MS_MAX = 2 ** 31 - 1;

/** A count of versions from 1, undefined where the option was not given. */
function countOption(call: Call, name: string): number | undefined {
  const text = call.value(name);
  if (text === undefined) return undefined;
  const count = parseDecimal(text);
  if (count !== undefined && count >= 1 && count <= KEEP_MAX) return count;
  throw new CowbirdError('EINVAL', `--${name} \`${text}\` is not a number from 1 to ${KEEP_MAX}`);
}

function waitOption(call: Call): { waitMs?: number } {
  const text = call.value('wait');
  if (text === undefined) return {};
  if (text === '') return { waitMs: WAIT_MS_MAX };
  const seconds = parseDecimal(text);
  if (seconds === undefined) throw new CowbirdError('EINVAL', `--wait \`${text}\` is not a whole number of seconds`);
  return { waitMs: Math.min(seconds * 1000, WAIT_MS_MAX) };
}

/** Runs a command with a bar where somebody looks, which is gone again whatever happens. */
async function withProgress<T>(call: Call, run: (options: RepositoryOptions) => Promise<T>): Promise<T> {
  const options = { ...waitOption(call), signal: call.io.signal };
  const bar = await progressBar(call.io.terminal);
  try {
    return await run(bar === undefined ? options : { ...options, onProgress: (progress) => bar.update(progress) });
  } finally {
    bar?.stop();
  }
}

/** One line for people on stderr; with --json the object alone, on stdout. */
function summarize(call: Call, summary: object, text: string, warnings: readonly string[]): void {
  for (const warning of warnings) if (!call.json) call.io.err(`warning: ${warning}\n`);
  if (call.json) call.io.out(`${JSON.stringify({ type: 'summary', ...summary })}\n`);
  else call.io.err(`${text}\n`);
}

/** Of engine live: how long a freeze may last. The library says which times are none. */
function freezeTimeout(call: Call): number | undefined {
  const text = call.value('freeze-timeout');
  if (text === undefined) return undefined;
  if (/^\d{1,9}(\.\d{1,3})?$/.test(text)) return Number(text);
  throw new CowbirdError('EINVAL', `--freeze-timeout \`${text}\` is not a number of seconds`);
}

/** What all forms of `backup` take. */
function backupOptions(call: Call): BackupOptions {
  const name = call.value('engine') ?? 'auto';
  const engine = ENGINES.find((known) => known === name);
  if (engine === undefined)
    throw new CowbirdError('EINVAL', `Engine \`${name}\` is not known: there are ${ENGINES.join(', ')}`);
  const keep = countOption(call, 'keep');
  const cow = call.value('cow');
  const hooks = hookOptions(call);
  const freezeTimeoutSeconds = freezeTimeout(call);
  return {
    engine,
    ...(keep === undefined ? {} : { keep }),
    ...(cow === undefined ? {} : { cow }),
    ...(freezeTimeoutSeconds === undefined ? {} : { live: { freezeTimeoutSeconds } }),
    whole: call.flag('whole'),
    skipBadBlocks: call.flag('skip-bad-blocks'),
    ...(Object.keys(hooks).length === 0 ? {} : { hooks }),
  };
}

function backupText(source: string, summary: BackupSummary): string {
  const dropped = summary.dropped.length === 0 ? '' : `; dropped ${counted(summary.dropped.length, 'version')}`;
  const frozen =
    summary.engine === 'live'
      ? `; frozen for ${Math.ceil(summary.freezeMs ?? 0)} ms after ${summary.passes - 1} passes`
      : '';
  return `version ${summary.version} of ${source}: ${formatSize(summary.bytesRead)} read, ${formatSize(summary.bytesWritten)} written, engine ${summary.engine} (${summary.reason})${frozen}${dropped}`;
}

const backup: Action = async (call) => {
  if (call.flag('together')) return backupTogether(call);
  const own = backupOptions(call);
  const source = operand(call, 0);
  const summary = await withProgress(call, (options) =>
    call.library.backup(source, operand(call, 1), { ...options, ...own }),
  );
  summarize(call, summary, backupText(source, summary), summary.warnings);
  return summary.hookFailed ? EXIT.partial : undefined;
};

/** `/dev/cowbird/data:/backup/data`, cut at its last colon. */
function splitPair(text: string): BackupPair {
  const at = text.lastIndexOf(':');
  const pair = { source: text.slice(0, Math.max(at, 0)), repository: text.slice(at + 1) };
  if (pair.source !== '' && pair.repository !== '') return pair;
  throw new CowbirdError('EINVAL', `\`${text}\` is not SOURCE:REPO: write a source, a colon, and its repository`);
}

async function backupTogether(call: Call): Promise<number | undefined> {
  const own = backupOptions(call);
  const pairs = call.operands.map(splitPair);
  const summary = await withProgress(call, (options) => call.library.backupTogether(pairs, { ...options, ...own }));
  const warnings = summary.backups.flatMap((one) => one.warnings.map((warning) => `${one.source}: ${warning}`));
  const lines = summary.backups.map((one) => backupText(one.source, one));
  summarize(call, summary, lines.join('\n'), warnings);
  return summary.backups.some(({ hookFailed }) => hookFailed) ? EXIT.partial : undefined;
}

const versions: Action = async (call) => {
  const list = await call.library.listVersions(operand(call, 0));
  for (const warning of list.warnings) if (!call.json) call.io.err(`warning: ${warning}\n`);
  return answer(call, list, call.json ? '' : await versionsText(list.versions));
};

const verify: Action = async (call) => {
  const report = await withProgress(call, (options) => call.library.verify(operand(call, 0), options));
  const lines = report.damage.map(damageText);
  if (!call.json) for (const line of lines) call.io.out(`${line}\n`);
  const whole = report.whole.length === 0 ? 'no version is whole' : `whole: ${report.whole.join(', ')}`;
  const found = lines.length === 0 ? 'no damage' : `${counted(lines.length, 'damaged place')}`;
  summarize(call, report, `${formatSize(report.bytesRead)} verified: ${found}; ${whole}`, []);
  return lines.length === 0 ? EXIT.done : EXIT.failed;
};

const restore: Action = async (call) => {
  const { ask } = call.io;
  const dryRun = call.flag('dry-run');
  const confirm = call.flag('yes')
    ? async (): Promise<boolean> => true
    : ask && ((holds: string) => ask(`${holds}. Go on?`));
  const target = operand(call, 1);
  const summary = await withProgress(call, (options) =>
    call.library.restore(operand(call, 0), target, {
      ...options,
      all: call.flag('all'),
      dryRun,
      ...(confirm === undefined ? {} : { confirm }),
    }),
  );
  const done = dryRun ? 'would be written' : 'written and read back';
  const text = `version ${summary.version} to ${target}: ${formatSize(summary.bytesWritten)} of ${formatSize(summary.sizeBytes)} ${done}`;
  const damage = summary.damaged.map(
    ({ offset, lengthBytes }) =>
      `${lengthBytes} bytes at ${offset} are damaged in the repository, and were not restored`,
  );
  summarize(call, { ...summary, dryRun }, text, [...summary.warnings, ...damage]);
  return damage.length === 0 ? EXIT.done : EXIT.partial;
};

const prune: Action = async (call) => {
  const counts = {
    last: countOption(call, 'keep'),
    daily: countOption(call, 'keep-daily'),
    weekly: countOption(call, 'keep-weekly'),
    monthly: countOption(call, 'keep-monthly'),
  };
  const policy: RetentionPolicy = Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== undefined));
  const dryRun = call.flag('dry-run');
  const summary = await withProgress(call, (options) =>
    call.library.prune(operand(call, 0), policy, { ...options, dryRun }),
  );
  const { kept, dropped } = summary;
  const verb = dryRun ? 'would be dropped' : 'dropped';
  const text = `${dropped.length === 0 ? 'nothing' : dropped.join(', ')} ${verb}; kept: ${kept.join(', ')}`;
  summarize(call, { ...summary, dryRun }, text, []);
  return undefined;
};

/** Whether an operand of `changes` names two versions of a repository. */
export function isVersionRange(text: string): boolean {
  return parseVersionRange(text) !== undefined;
}

/** `cowbird changes REPO@A..B` */
export const repositoryChanges: Action = async (call) => {
  const range = parseVersionRange(operand(call, 0));
  if (range === undefined) throw new CowbirdError('EINVAL', `\`${operand(call, 0)}\` is not REPO@A..B`);
  const report = await call.library.versionChanges(range.repository, range.from, range.to, {
    ...waitOption(call),
    signal: call.io.signal,
  });
  const lines = report.extents.map(({ offset, length }) => `${offset} ${length}`);
  return answer(call, report, [`${formatSize(report.bytes)}, ${counted(lines.length, 'extent')}`, ...lines].join('\n'));
};

/** What `device` and `mount` take. */
function deviceOptions(call: Call): DeviceOptions {
  return { writable: call.flag('writable'), signal: call.io.signal, ...waitOption(call) };
}

const device: Action = async (call) => {
  const made = await call.library.device(operand(call, 0), deviceOptions(call));
  return answer(call, made, made.device);
};

const mount: Action = async (call) => {
  const made = await call.library.mount(operand(call, 0), operand(call, 1), deviceOptions(call));
  return answer(call, made, made.device);
};

const umount: Action = async (call) => {
  await call.library.umount(operand(call, 0));
  return answer(call, {}, '');
};

export const repositoryActions: Readonly<Record<string, Action>> = {
  backup,
  versions,
  verify,
  restore,
  prune,
  mount,
  umount,
  device,
};
