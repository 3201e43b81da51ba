/**
 * What `dbdctl` and `elioctl` share: the original tools' grammar, streams and exit status.
 *
 * A failure ends stderr with the original's line, word for word, since scripts look for it; what we know beyond it stands on
 * the lines before. Arguments that cannot be read also bring the usage text, on stdout, as there.
 */
import { errnoOf, errnoOfError } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { newCowFile } from './actions/snapshots.js';
import { GetoptError, type GetoptResult, getopt } from './getopt.js';
import { abortedStatus, type Io, type Library } from './io.js';
import { checkMinor, MIB, parseDecimal } from './quantities.js';
import { describe } from './report.js';
import { DRIVER_FAILED } from './spec/drivers.js';
import { programHelp } from './spec/help.js';
import type { CommandSpec, ProgramSpec } from './spec/types.js';
import { strerror } from './strerror.js';

const DRIVER_LINE = 'driver returned an error performing specified action. check dmesg for more info';

export interface DriverTool {
  spec: ProgramSpec;
  alias: 'datto' | 'elastio-snap';
  /** dattobd's rule: the COW file lies on the volume itself. */
  onVolumeOnly: boolean;
}

interface VerbCall {
  tool: DriverTool;
  library: Library;
  client: { signal: AbortSignal };
  /** Operands before the minor. */
  operands: readonly string[];
  minor: number;
  cacheBytes: number | undefined;
  storeBytes: number | undefined;
  reservedBytes: number | undefined;
  /** The first operand as a number of MiB, in bytes. */
  sizeBytes: number;
  ignoreErrors: boolean;
}

interface Verb {
  /** The original's words in `error interpreting <phrase> parameters`. */
  phrase: string;
  /** Reads the first operand as a number. */
  takesSize?: boolean;
  /** Has no minor. */
  noMinor?: boolean;
  /** Does it; success prints nothing. */
  run?(call: VerbCall): Promise<void>;
  /** Asks something; resolves to what is printed. */
  print?(call: VerbCall): Promise<string>;
}

function reloadOptions(call: VerbCall): { alias: DriverTool['alias']; cacheBytes?: number; ignoreErrors?: boolean } {
  return {
    alias: call.tool.alias,
    ...(call.cacheBytes === undefined ? {} : { cacheBytes: call.cacheBytes }),
    ...(call.ignoreErrors ? { ignoreErrors: true } : {}),
  };
}

function storeOptions(call: VerbCall): { storeBytes?: number; onVolumeOnly?: boolean } {
  return {
    ...(call.storeBytes === undefined ? {} : { storeBytes: call.storeBytes }),
    ...(call.tool.onVolumeOnly ? { onVolumeOnly: true } : {}),
  };
}

/** A verb of the original: what it does, and its words in `error interpreting <phrase> parameters`. */
const VERBS: Readonly<Record<string, Verb>> = {
  'setup-snapshot': {
    phrase: 'setup snapshot',
    run: async (call) => {
      const [device = '', cowFile = ''] = call.operands;
      const options = { ...reloadOptions(call), ...storeOptions(call) };
      await call.library.setupSnapshot(device, newCowFile(cowFile), call.minor, options, call.client);
    },
  },
  'reload-snapshot': {
    phrase: 'reload snapshot',
    run: async (call) => {
      const [device = '', cowFile = ''] = call.operands;
      await call.library.reloadSnapshot(device, cowFile, call.minor, reloadOptions(call), call.client);
    },
  },
  'reload-incremental': {
    phrase: 'reload incremental',
    run: async (call) => {
      const [device = '', cowFile = ''] = call.operands;
      await call.library.reloadIncremental(device, cowFile, call.minor, reloadOptions(call), call.client);
    },
  },
  destroy: {
    phrase: 'destroy',
    run: async ({ library, minor, client }) => {
      await library.destroy(minor, client);
    },
  },
  'transition-to-incremental': {
    phrase: 'transition to incremental',
    run: async ({ library, minor, client }) => {
      await library.transitionToIncremental(minor, client);
    },
  },
  'transition-to-snapshot': {
    phrase: 'transition to snapshot',
    run: async (call) => {
      const [cowFile = ''] = call.operands;
      await call.library.transitionToSnapshot(call.minor, newCowFile(cowFile), storeOptions(call), call.client);
    },
  },
  reconfigure: {
    phrase: 'reconfigure',
    run: async ({ library, minor, cacheBytes, client }) => {
      await library.reconfigure(minor, cacheBytes, client);
    },
  },
  'expand-cow-file': {
    phrase: 'expand',
    takesSize: true,
    run: async ({ library, minor, sizeBytes, client }) => {
      await library.expandCowFile(minor, sizeBytes, client);
    },
  },
  'reconfigure-auto-expand': {
    phrase: 'reconfigure auto expand',
    takesSize: true,
    run: async ({ library, minor, sizeBytes, reservedBytes, client }) => {
      await library.reconfigureAutoExpand(minor, sizeBytes, reservedBytes, client);
    },
  },
  info: {
    phrase: 'info',
    print: async ({ library, minor, client }) =>
      JSON.stringify((await library.info(minor, client)).devices[0], null, '\t'),
  },
  'get-free-minor': {
    phrase: 'get_free_minor',
    noMinor: true,
    print: async ({ library, client }) => String(await library.getFreeMinor(client)),
  },
};

/** Runs the tool with these arguments and resolves to the exit code. Never rejects. */
export async function runDriverTool(tool: DriverTool, argv: readonly string[], io: Io): Promise<number> {
  const [name, ...rest] = argv;
  const usage = programHelp(tool.spec, true);
  if (name === '--version' || name === '-V') {
    io.out(`${tool.spec.name} ${VERSION}\n`);
    return 0;
  }
  const command = tool.spec.commands.find((candidate) => candidate.name === name);
  const asksHelp = name === 'help' || name === '--help' || name === '-h';
  if (asksHelp || (command !== undefined && rest.some((word) => word === '--help' || word === '-h'))) {
    io.out(usage);
    return 0;
  }
  const verb = command === undefined ? undefined : VERBS[command.name];
  if (command === undefined || verb === undefined) {
    io.out(usage);
    return DRIVER_FAILED;
  }
  let parsed: ParsedArguments;
  try {
    parsed = parseArguments(command, verb, rest);
  } catch (error) {
    if (!(error instanceof GetoptError)) throw error;
    io.err(`${tool.spec.name}: ${error.message}\n`);
    io.err(`error interpreting ${verb.phrase} parameters: ${strerror(errnoOf('EINVAL'))}\n`);
    io.out(usage);
    return DRIVER_FAILED;
  }
  return performVerb(tool, verb, parsed, io);
}

async function performVerb(tool: DriverTool, verb: Verb, parsed: ParsedArguments, io: Io): Promise<number> {
  try {
    if (verb.noMinor !== true) checkMinor(parsed.minor);
    const call: VerbCall = { ...parsed, tool, library: await io.library(), client: { signal: io.signal } };
    await verb.run?.(call);
    if (verb.print !== undefined) io.out(`${await verb.print(call)}\n`);
    return io.signal.aborted ? abortedStatus(io.signal) : 0;
  } catch (error) {
    if (io.signal.aborted) return abortedStatus(io.signal);
    io.err(`${tool.spec.name}: ${describe(error)}\n`);
    io.err(`${DRIVER_LINE}: ${strerror(errnoOfError(error))}\n`);
    return DRIVER_FAILED;
  }
}

type ParsedArguments = Omit<VerbCall, 'tool' | 'library' | 'client'>;

function parseArguments(command: CommandSpec, verb: Verb, argv: readonly string[]): ParsedArguments {
  const optstring = command.options
    .map(({ short, value }) => `${short?.slice(1) ?? ''}${value === undefined ? '' : ':'}`)
    .join('');
  const given = getopt(argv, optstring);
  const wanted = command.operands.length;
  if (given.operands.length !== wanted) {
    throw new GetoptError(`${command.name} takes ${wanted} operands, not ${given.operands.length}`);
  }
  const last = given.operands.at(-1);
  return {
    operands: given.operands.slice(0, -1),
    minor: verb.noMinor === true || last === undefined ? 0 : minorOf(last),
    cacheBytes: numberOption(given, 'c', 1),
    storeBytes: numberOption(given, 'f', MIB),
    reservedBytes: numberOption(given, 'r', MIB),
    sizeBytes: verb.takesSize === true ? scaled(given.operands[0] ?? '', MIB, 'size') : 0,
    ignoreErrors: given.flags.has('i'),
  };
}

/** Digits of any length: a number that is too large is the driver's to refuse, not the parser's. */
function minorOf(text: string): number {
  if (!/^[0-9]+$/.test(text)) throw new GetoptError(`minor \`${text}\` is not a decimal number`);
  return Number(text);
}

/** 0 is the default, as it is when the option is not given. */
function numberOption(given: GetoptResult, letter: string, unitBytes: number): number | undefined {
  const text = given.values.get(letter);
  if (text === undefined) return undefined;
  const bytes = scaled(text, unitBytes, `-${letter}`);
  return bytes === 0 ? undefined : bytes;
}

function scaled(text: string, unitBytes: number, subject: string): number {
  const bytes = (parseDecimal(text) ?? Number.NaN) * unitBytes;
  if (!Number.isSafeInteger(bytes)) {
    const unit = unitBytes === 1 ? 'bytes' : 'MiB';
    throw new GetoptError(`${subject} \`${text}\` is not a decimal number of ${unit}`);
  }
  return bytes;
}
