/** The actions of the commands for snapshots. */
import type { TakenTogether } from '../../index.js';
import { CowbirdError } from '../../sys/errors.js';
import { counted, formatSize, MIB, parseMinor, parseSize } from '../quantities.js';
import { infoText } from '../tables.js';
import { type Action, answer, type Call, operand } from './call.js';
import { hookOptions } from './hooks.js';
import { isVersionRange, repositoryChanges } from './repository.js';

const BYTE = 1;

/** A size option; 0 means the default, as dattobd has it. */
function sizeOption(call: Call, option: string, bareUnitBytes: number): number | undefined {
  const text = call.value(option);
  if (text === undefined) return undefined;
  const bytes = parseSize(text, bareUnitBytes);
  return bytes === 0 ? undefined : bytes;
}

/** The path of a COW file that is to be made. */
export function newCowFile(path: string): string {
  if (path === '') throw new CowbirdError('ENOENT', 'The COW file path is empty');
  return path;
}

function freeOption(call: Call): { freeAware?: true } {
  return call.flag('free-aware') ? { freeAware: true } : {};
}

/** `--together`: the devices, one a line, and the time that all writes were held. */
function answerTogether(call: Call, taken: TakenTogether): undefined {
  const window = taken.windowMs === null ? 'unknown: the engine ended meanwhile' : String(taken.windowMs);
  return answer(call, taken, [...taken.devices, `windowMs ${window}`].join('\n'));
}

/** `/srv/.cow:0`, cut at its last colon. */
function splitMinor(text: string): { rest: string; minor: number } {
  const at = text.lastIndexOf(':');
  if (at < 0) throw new CowbirdError('EINVAL', `\`${text}\` has no colon before a minor: write it as COWFILE:MINOR`);
  return { rest: text.slice(0, at), minor: parseMinor(text.slice(at + 1)) };
}

/** `/dev/cowbird/data:/srv/.cow:0`, cut at its first and its last colon. */
function splitDevice(text: string): { device: string; cowFile: string; minor: number } {
  const { rest, minor } = splitMinor(text);
  const at = rest.indexOf(':');
  if (at < 0) throw new CowbirdError('EINVAL', `\`${text}\` has one colon: write it as DEVICE:COWFILE:MINOR`);
  return { device: rest.slice(0, at), cowFile: newCowFile(rest.slice(at + 1)), minor };
}

async function setupTogether(call: Call): Promise<undefined> {
  const cacheBytes = sizeOption(call, 'cache', BYTE);
  const storeBytes = sizeOption(call, 'size', MIB);
  const options = {
    ...(cacheBytes === undefined ? {} : { cacheBytes }),
    ...(storeBytes === undefined ? {} : { storeBytes }),
    ...freeOption(call),
  };
  const snapshots = call.operands.map((text) => ({ ...splitDevice(text), ...options }));
  return answerTogether(call, await call.library.setupTogether(snapshots, hookOptions(call), call.client));
}

async function transitionTogether(call: Call): Promise<undefined> {
  const storeBytes = sizeOption(call, 'size', MIB);
  const options = { ...(storeBytes === undefined ? {} : { storeBytes }), ...freeOption(call) };
  const snapshots = call.operands.map((text) => {
    const { rest, minor } = splitMinor(text);
    return { cowFile: newCowFile(rest), minor, ...options };
  });
  return answerTogether(call, await call.library.transitionTogether(snapshots, hookOptions(call), call.client));
}

const setupSnapshot: Action = async (call) => {
  if (call.flag('together')) return setupTogether(call);
  const minor = parseMinor(operand(call, 2));
  const cacheBytes = sizeOption(call, 'cache', BYTE);
  const storeBytes = sizeOption(call, 'size', MIB);
  const options = {
    ...(cacheBytes === undefined ? {} : { cacheBytes }),
    ...(storeBytes === undefined ? {} : { storeBytes }),
    ...freeOption(call),
    ...hookOptions(call),
  };
  const cowFile = newCowFile(operand(call, 1));
  const device = await call.library.setupSnapshot(operand(call, 0), cowFile, minor, options, call.client);
  return answer(call, { device }, device);
};

function reload(operation: 'reloadSnapshot' | 'reloadIncremental'): Action {
  return async (call) => {
    const minor = parseMinor(operand(call, 2));
    const cacheBytes = sizeOption(call, 'cache', BYTE);
    const options = cacheBytes === undefined ? {} : { cacheBytes };
    await call.library[operation](operand(call, 0), operand(call, 1), minor, options, call.client);
    const { devices } = await call.library.info(minor, call.client);
    // The minor is taken, as it is by the original: what is on the disk decides whether anything can be gone on with.
    for (const { error, error_reason } of devices)
      if (error !== undefined)
        call.io.err(
          `cowbird: warning: minor ${minor} does not go on (${error_reason ?? `error ${error}`}): \`cowbird destroy ${minor}\` makes room for a new series, whose first update compares contents\n`,
        );
    return answer(call, {}, '');
  };
}

const transitionToSnapshot: Action = async (call) => {
  if (call.flag('together')) return transitionTogether(call);
  const minor = parseMinor(operand(call, 1));
  const storeBytes = sizeOption(call, 'size', MIB);
  const options = {
    ...(storeBytes === undefined ? {} : { storeBytes }),
    ...freeOption(call),
    ...hookOptions(call),
  };
  const device = await call.library.transitionToSnapshot(minor, newCowFile(operand(call, 0)), options, call.client);
  return answer(call, { device }, device);
};

const expandCowFile: Action = async (call) => {
  const minor = parseMinor(operand(call, 1));
  const storeBytes = await call.library.expandCowFile(minor, parseSize(operand(call, 0), MIB), call.client);
  return answer(call, { storeBytes }, formatSize(storeBytes));
};

const reconfigureAutoExpand: Action = async (call) => {
  const minor = parseMinor(operand(call, 1));
  const stepBytes = parseSize(operand(call, 0), MIB);
  await call.library.reconfigureAutoExpand(minor, stepBytes, sizeOption(call, 'reserve', MIB), call.client);
  return answer(call, {}, '');
};

const info: Action = async (call) => {
  const [text] = call.operands;
  const document = await call.library.info(text === undefined ? undefined : parseMinor(text), call.client);
  return answer(call, document, call.json ? '' : await infoText(document));
};

const changes: Action = async (call) => {
  if (isVersionRange(operand(call, 0))) return repositoryChanges(call);
  const report = await call.library.changes(parseMinor(operand(call, 0)), call.client);
  const { nr_changed_blocks: blocks, bytes, extents } = report;
  const lines = extents.map(({ offset, length }) => `${offset} ${length}`);
  return answer(
    call,
    report,
    [`${counted(blocks, 'block')}, ${formatSize(bytes)}, ${counted(extents.length, 'extent')}`, ...lines].join('\n'),
  );
};

export const snapshotActions: Readonly<Record<string, Action>> = {
  'setup-snapshot': setupSnapshot,
  'reload-snapshot': reload('reloadSnapshot'),
  'reload-incremental': reload('reloadIncremental'),
  destroy: async (call) => {
    await call.library.destroy(parseMinor(operand(call, 0)), call.client);
    return answer(call, {}, '');
  },
  'transition-to-incremental': async (call) => {
    await call.library.transitionToIncremental(parseMinor(operand(call, 0)), call.client);
    return answer(call, {}, '');
  },
  'transition-to-snapshot': transitionToSnapshot,
  reconfigure: async (call) => {
    await call.library.reconfigure(parseMinor(operand(call, 0)), sizeOption(call, 'cache', BYTE), call.client);
    return answer(call, {}, '');
  },
  'expand-cow-file': expandCowFile,
  'reconfigure-auto-expand': reconfigureAutoExpand,
  'get-free-minor': async (call) => {
    const minor = await call.library.getFreeMinor(call.client);
    return answer(call, { minor }, String(minor));
  },
  info,
  changes,
};
