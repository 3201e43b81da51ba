/**
 * What a command line is made of: the one source of `--help`, the man pages and `docs/manual/`.
 *
 * The parsers are built from the same data, so that an option cannot be described without being accepted, or the reverse.
 */

export interface OperandSpec {
  /** As it stands in the synopsis: `DEVICE`. */
  name: string;
  help: string;
  optional?: boolean;
  /** Takes whatever follows. */
  many?: boolean;
}

export interface OptionSpec {
  /** One letter, with its dash: `-c`. */
  short?: string;
  /** With its dashes: `--cache`. */
  long?: string;
  /** Name of the value; absent for a switch. */
  value?: string;
  /** The option may stand without its value. */
  optionalValue?: boolean;
  help: string;
}

export interface ExitSpec {
  status: number;
  meaning: string;
}

export interface ExampleSpec {
  command: string;
  meaning: string;
}

export interface CommandSpec {
  /** `attach`, or `daemon start` for a command below another. */
  name: string;
  /** One line, no full stop. */
  summary: string;
  /** Paragraphs. */
  description: readonly string[];
  operands: readonly OperandSpec[];
  options: readonly OptionSpec[];
  /** Operands that are taken instead when a switch is given. */
  otherForm?: { option: OptionSpec; operands: readonly OperandSpec[] };
  /** Exit codes that mean something else here than for the whole program. */
  exits?: readonly ExitSpec[];
  examples?: readonly ExampleSpec[];
}

export interface ProgramSpec {
  name: string;
  summary: string;
  description: readonly string[];
  /** Empty for a program without commands, which then has operands and options of its own. */
  commands: readonly CommandSpec[];
  operands: readonly OperandSpec[];
  /** Accepted before and after a command's name. */
  options: readonly OptionSpec[];
  exits: readonly ExitSpec[];
  environment: readonly { name: string; help: string }[];
  files: readonly { name: string; help: string }[];
  seeAlso: readonly string[];
  examples: readonly ExampleSpec[];
}

export const HELP_OPTION: OptionSpec = { short: '-h', long: '--help', help: 'Show this help and exit.' };
export const VERSION_OPTION: OptionSpec = { short: '-V', long: '--version', help: 'Print the version and exit.' };
export const JSON_OPTION: OptionSpec = { long: '--json', help: 'Print JSON; errors are then JSON on stderr.' };

export const ENVIRONMENT = [
  { name: 'COWBIRD_RUN_DIR', help: "Directory of the daemon's socket, status file and log. Default: /run/cowbird." },
  { name: 'COWBIRD_STATE_DIR', help: 'Directory of what must outlive a reboot. Default: /var/lib/cowbird.' },
] as const;

export const FILES = [
  { name: '/dev/cowbird/NAME', help: "Stable link to an attached volume's device node." },
  { name: '/dev/cowbirdMINOR', help: "Link to a snapshot's device node; there while it is in snapshot mode." },
  { name: '/run/cowbird/info', help: 'Status of everything that is tracked, as JSON; readable by everybody.' },
  {
    name: '/run/cowbird/daemon.log',
    help: "The daemon's log, one JSON object a line, where a command has started the daemon; cut at 4 MiB, the lines before are in daemon.log.old. Under cowbird.service it goes to the journal, as of that unit.",
  },
] as const;
