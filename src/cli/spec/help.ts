/** Help texts, as `--help` prints them. */
import type { CommandSpec, ExitSpec, OperandSpec, OptionSpec, ProgramSpec } from './types.js';
import { HELP_OPTION } from './types.js';

const WIDTH = 80;
const LABEL_INDENT = 2;
const LABEL_WIDTH_MAX = 24;

/** `-c, --cache CACHE` */
export function optionLabel(option: OptionSpec): string {
  const names = [option.short, option.long].filter((name) => name !== undefined).join(', ');
  if (option.value === undefined) return names;
  return option.optionalValue === true ? `${names}[=${option.value}]` : `${names} ${option.value}`;
}

/** What follows the name in a synopsis: `[-c CACHE] DEVICE COWFILE MINOR`. */
export function synopsis(options: readonly OptionSpec[], operands: readonly OperandSpec[]): string {
  const shown = options.filter((option) => option.long !== HELP_OPTION.long && option.long !== '--version');
  const optionParts = shown.map((option) => {
    const name = option.short ?? option.long ?? '';
    if (option.value === undefined) return `[${name}]`;
    return option.optionalValue === true ? `[${name}[=${option.value}]]` : `[${name} ${option.value}]`;
  });
  const operandParts = operands.map(({ name, optional, many }) => {
    const text = many === true ? `${name}...` : name;
    return optional === true ? `[${text}]` : text;
  });
  return [...optionParts, ...operandParts].join(' ');
}

/** Each way to write a command, without the program's and the command's name. */
export function forms(command: CommandSpec): string[] {
  const { options, operands, otherForm } = command;
  if (otherForm === undefined) return [synopsis(options, operands)];
  const others = options.filter((option) => option !== otherForm.option);
  const name = optionLabel(otherForm.option);
  return [synopsis(others, operands), `${name} ${synopsis(others, otherForm.operands)}`];
}

/** Operands of all forms of a command, each once. */
export function operandsOf({ operands, otherForm }: CommandSpec): OperandSpec[] {
  return [...operands, ...(otherForm?.operands ?? [])];
}

/** The exit codes of one command: the program's, with what the command says otherwise. */
export function exitsOf(program: ProgramSpec, command?: CommandSpec): ExitSpec[] {
  return program.exits.map((exit) => command?.exits?.find(({ status }) => status === exit.status) ?? exit);
}

/** Options that a command accepts, `--help` too. */
export function optionsOf(command: CommandSpec): OptionSpec[] {
  return [...command.options, HELP_OPTION];
}

/** Help of one command of a program. */
export function commandHelp(program: ProgramSpec, command: CommandSpec): string {
  const usages = forms(command).map((form, i) => {
    const line = [program.name, command.name, form].filter((part) => part !== '').join(' ');
    return i === 0 ? `Usage: ${line}` : `       ${line}`;
  });
  return sections([
    usages,
    command.description.flatMap((paragraph, at) => (at === 0 ? wrap(paragraph, 0) : ['', ...wrap(paragraph, 0)])),
    titled(
      'Operands:',
      operandsOf(command).map(({ name, help }) => [name, help]),
    ),
    titled(
      'Options:',
      optionsOf(command).map((option) => [optionLabel(option), option.help]),
    ),
    examples(command.examples ?? []),
    titled(
      'Exit codes:',
      exitsOf(program, command).map(({ status, meaning }) => [String(status), meaning]),
    ),
  ]);
}

/** Help of a group such as `daemon`, whose commands are `daemon start` and others. */
export function groupHelp(program: ProgramSpec, group: string): string {
  const members = program.commands.filter(({ name }) => name.startsWith(`${group} `));
  return sections([
    [`Usage: ${program.name} ${group} COMMAND`],
    titled(
      'Commands:',
      members.map(({ name, summary }) => [name, summary]),
    ),
    titled('Options:', [[optionLabel(HELP_OPTION), HELP_OPTION.help]]),
    titled(
      'Exit codes:',
      exitsOf(program).map(({ status, meaning }) => [String(status), meaning]),
    ),
  ]);
}

/** Help of a whole program. `detailed`: each command with its synopsis and options, for programs without help of a command. */
export function programHelp(program: ProgramSpec, detailed = false): string {
  const own = synopsis(program.operands.length > 0 ? program.options : [], program.operands);
  const usage = program.commands.length > 0 ? `${program.name} COMMAND [ARGUMENT...]` : `${program.name} ${own}`;
  const summaries = program.commands.map(({ name, summary }): [string, string] => [name, summary]);
  return sections([
    [`Usage: ${usage}`],
    program.description.flatMap((paragraph, at) => (at === 0 ? wrap(paragraph, 0) : ['', ...wrap(paragraph, 0)])),
    detailed ? detailedCommands(program) : titled('Commands:', summaries),
    titled(
      'Operands:',
      program.operands.map(({ name, help }) => [name, help]),
    ),
    titled(
      'Options:',
      program.options.map((option) => [optionLabel(option), option.help]),
    ),
    examples(program.examples),
    titled(
      'Exit codes:',
      program.exits.map(({ status, meaning }) => [String(status), meaning]),
    ),
  ]);
}

function detailedCommands(program: ProgramSpec): string[] {
  const lines = ['Commands:'];
  for (const command of program.commands) {
    lines.push(
      `  ${[program.name, command.name, synopsis(command.options, command.operands)].filter((part) => part !== '').join(' ')}`,
    );
    lines.push(...wrap(`${command.summary}.`, 6));
    for (const option of command.options) lines.push(...wrap(`${optionLabel(option)}: ${option.help}`, 6));
  }
  return lines;
}

function examples(list: readonly { command: string; meaning: string }[]): string[] {
  if (list.length === 0) return [];
  return ['Examples:', ...list.flatMap(({ command, meaning }) => [`  ${command}`, ...wrap(meaning, 6)])];
}

function titled(title: string, rows: ReadonlyArray<readonly [string, string]>): string[] {
  if (rows.length === 0) return [];
  const width = Math.min(LABEL_WIDTH_MAX, Math.max(...rows.map(([label]) => label.length))) + 2;
  const lines = [title];
  for (const [label, help] of rows) {
    const text = wrap(help, LABEL_INDENT + width);
    const head = `${' '.repeat(LABEL_INDENT)}${label}`;
    if (label.length + 2 > width) lines.push(head, ...text);
    else lines.push(head.padEnd(LABEL_INDENT + width) + (text[0] ?? '').trimStart(), ...text.slice(1));
  }
  return lines;
}

function sections(parts: ReadonlyArray<readonly string[]>): string {
  return `${parts
    .filter((lines) => lines.length > 0)
    .map((lines) => lines.join('\n'))
    .join('\n\n')}\n`;
}

function wrap(text: string, indent: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(' '.repeat(indent) + line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, ' '.repeat(indent) + line];
}
