/** `cowbird`: the command line, built from `spec/cowbird.ts`. Heavy modules are loaded by the command that needs them. */
import type { Command } from 'commander';
import { VERSION } from '../version.js';
import type { Action, Call } from './actions/call.js';
import { abortedStatus, type Io, processIo } from './io.js';
import { reportError, UsageError } from './report.js';
import { COWBIRD, EXIT } from './spec/cowbird.js';
import { commandHelp, groupHelp, optionLabel, programHelp } from './spec/help.js';
import type { CommandSpec, OperandSpec } from './spec/types.js';

/** Runs `cowbird` with these arguments (without node and script) and resolves to the exit code. Never rejects. */
export async function main(argv: string[], io: Io = processIo()): Promise<number> {
  const [first] = argv;
  const json = wantsJson(argv);
  if (first === '--version' || first === '-V') {
    io.out(argv.includes('--json') ? `${JSON.stringify({ version: VERSION })}\n` : `cowbird ${VERSION}\n`);
    return EXIT.done;
  }
  const run: Run = { io, json, subject: COWBIRD.name, status: EXIT.done };
  try {
    await parse(argv, run);
    return io.signal.aborted ? abortedStatus(io.signal) : run.status;
  } catch (error) {
    return reportError(io, error, run.subject, json);
  }
}

interface Run {
  readonly io: Io;
  readonly json: boolean;
  /** What errors begin with: `cowbird attach`. */
  subject: string;
  status: number;
}

/** Whether answers and errors are JSON, known before anything is parsed: errors of parsing are errors too. */
function wantsJson(argv: readonly string[]): boolean {
  const end = argv.indexOf('--');
  return argv.slice(0, end < 0 ? undefined : end).includes('--json');
}

async function parse(argv: readonly string[], run: Run): Promise<void> {
  const { Command, CommanderError } = await import('commander');
  const program = configure(new Command(COWBIRD.name), COWBIRD.name, programHelp(COWBIRD), run);
  for (const option of COWBIRD.options) if (option.long !== '--help') program.option(optionLabel(option), option.help);
  const groups = new Map<string, Command>();
  for (const spec of COWBIRD.commands) addCommand(program, groups, spec, run);
  try {
    await program.parseAsync(withJoinedValues(argv), { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return;
    if (error.code === 'commander.help') throw new UsageError(noCommand(argv));
    const text = error.message
      .replace(/^error: /, '')
      .replace(/\s+/g, ' ')
      .replace(/\.?\s*$/, '');
    throw new UsageError(`${text}; see \`${run.subject} --help\``);
  }
}

/** Decimal digits: what an option whose value may be left out takes from the next word. */
const OPTIONAL_VALUE = /^\d+$/;

/**
 * Options whose value may be left out, with the value joined to them: `--wait 60` waits 60 s, and in `--wait REPO` the next word
 * is none of theirs.
 */
function withJoinedValues(argv: readonly string[]): string[] {
  const options = COWBIRD.commands.flatMap((command) => command.options);
  const names = new Set(options.flatMap(({ long, optionalValue }) => (optionalValue === true && long ? [long] : [])));
  const joined: string[] = [];
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? '';
    if (word === '--') return [...joined, ...argv.slice(at)];
    if (!names.has(word)) {
      joined.push(word);
      continue;
    }
    const next = argv[at + 1] ?? '';
    const takesNext = OPTIONAL_VALUE.test(next);
    joined.push(`${word}=${takesNext ? next : ''}`);
    if (takesNext) at++;
  }
  return joined;
}

function noCommand(argv: readonly string[]): string {
  const group = argv.find((argument) => !argument.startsWith('-'));
  return `No command was given; see \`${[COWBIRD.name, group].filter((word) => word !== undefined).join(' ')} --help\``;
}

/** One help text, errors thrown, nothing printed but through `io`. */
function configure(command: Command, subject: string, help: string, run: Run): Command {
  command.helpInformation = () => help;
  return command
    .exitOverride((error) => {
      run.subject = subject;
      throw error;
    })
    .helpCommand(false)
    .configureOutput({
      writeOut: (text) => run.io.out(text),
      // Called with help that answers a missing command, and with errors: both are reported by main().
      writeErr: () => undefined,
    });
}

function addCommand(program: Command, groups: Map<string, Command>, spec: CommandSpec, run: Run): void {
  const words = spec.name.split(' ');
  const leaf = words.at(-1) ?? spec.name;
  let parent = program;
  if (words.length > 1) {
    const [group = ''] = words;
    parent =
      groups.get(group) ??
      configure(program.command(group), `${COWBIRD.name} ${group}`, groupHelp(COWBIRD, group), run);
    groups.set(group, parent);
  }
  const subject = `${COWBIRD.name} ${spec.name}`;
  const command = configure(parent.command(leaf), subject, commandHelp(COWBIRD, spec), run);
  // Which operands there are to be is known only when the options are.
  if (spec.otherForm !== undefined) command.argument('[operands...]');
  else for (const operand of spec.operands) command.argument(argumentOf(operand));
  for (const option of spec.options) {
    const brackets = option.optionalValue === true ? '[]' : '<>';
    const value = option.value === undefined ? '' : ` ${brackets[0]}${option.value}${brackets[1]}`;
    const names = [option.short, option.long].filter((part) => part !== undefined).join(', ');
    command.option(names + value, option.help);
  }
  command.action(async () => {
    run.subject = subject;
    requireForm(spec, command);
    run.status = await perform(spec, command, run);
  });
}

/** Commander's way to write an operand. */
function argumentOf({ name, optional, many }: OperandSpec): string {
  const inner = many === true ? `${name}...` : name;
  return optional === true ? `[${inner}]` : `<${inner}>`;
}

/** @throws {UsageError} when a command with two forms was not given the operands of the one that it was called in. */
function requireForm({ name, operands, otherForm }: CommandSpec, command: Command): void {
  if (otherForm === undefined) return;
  const option = otherForm.option.long ?? '';
  const isOther = command.getOptionValue(camelCase(option.replace(/^--/, ''))) === true;
  const wanted = isOther ? otherForm.operands : operands;
  const least = wanted.filter(({ optional }) => optional !== true).length;
  const most = wanted.some(({ many }) => many === true) ? Number.POSITIVE_INFINITY : wanted.length;
  const { length } = command.args;
  if (length >= least && length <= most) return;
  const form = `${isOther ? `${option} ` : ''}${wanted.map(argumentOf).join(' ')}`;
  throw new UsageError(`${length} operands were given for ${form}; see \`cowbird ${name} --help\``);
}

async function perform(spec: CommandSpec, command: Command, run: Run): Promise<number> {
  const { io, json } = run;
  if (spec.name === 'help') return showHelp(command.args, io, json);
  const action = await actionOf(spec.name);
  const options: Record<string, unknown> = command.opts();
  const call: Call = {
    operands: command.args,
    value: (option) => {
      const value = options[camelCase(option)];
      return typeof value === 'string' ? value : undefined;
    },
    flag: (option) => options[camelCase(option)] === true,
    json,
    io,
    library: await io.library(),
    client: { signal: io.signal },
  };
  return (await action(call)) ?? EXIT.done;
}

/** What does a command; the tables are loaded only now. */
async function actionOf(name: string): Promise<Action> {
  const [{ snapshotActions }, { volumeActions }, { repositoryActions }, { liveActions }] = await Promise.all([
    import('./actions/snapshots.js'),
    import('./actions/volumes.js'),
    import('./actions/repository.js'),
    import('./actions/live.js'),
  ]);
  const action = snapshotActions[name] ?? volumeActions[name] ?? repositoryActions[name] ?? liveActions[name];
  if (action === undefined) throw new Error(`no action for ${name}`);
  return action;
}

/** Commander's name for `--read-only`. */
function camelCase(option: string): string {
  return option.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function showHelp(words: readonly string[], io: Io, json: boolean): number {
  const name = words.join(' ');
  const spec = COWBIRD.commands.find((command) => command.name === name);
  const isGroup = COWBIRD.commands.some((command) => command.name.startsWith(`${name} `));
  if (name !== '' && spec === undefined && !isGroup)
    throw new UsageError(`No command is called \`${name}\`; see \`cowbird help\``);
  if (json)
    io.out(
      `${JSON.stringify(spec ?? { ...COWBIRD, commands: COWBIRD.commands.filter((c) => c.name.startsWith(name)) })}\n`,
    );
  else if (spec !== undefined) io.out(commandHelp(COWBIRD, spec));
  else io.out(name === '' ? programHelp(COWBIRD) : groupHelp(COWBIRD, name));
  return EXIT.done;
}
