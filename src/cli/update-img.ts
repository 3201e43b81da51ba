/** `update-img`: the original's arguments, messages and exit codes; a block error is not success here. */
import { Worker } from 'node:worker_threads';
import type { UpdateImageResult } from '../index.js';
import { CowbirdError } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { abortedStatus, type Io, processIo } from './io.js';
import { singleBar } from './progress.js';
import { programHelp, synopsis } from './spec/help.js';
import { UPDATE_EXIT, UPDATE_IMG } from './spec/update-img.js';
import type { UpdateMessage } from './update-worker.js';

const BAR_FORMAT = '{bar} {percentage}% | {value} of {total} blocks | {eta_formatted}';

export interface UpdateRequest {
  snapshot: string;
  /** Undefined: compare contents. */
  cowFile: string | undefined;
  image: string;
}

export interface UpdateListener {
  onStart(numbers: { totalBlocks: number; progressBlocks: number }): void;
  onProgress(doneBlocks: number): void;
}

/** Copies; rejects when `signal` is aborted. */
export type Update = (
  request: UpdateRequest,
  listener: UpdateListener,
  signal: AbortSignal,
) => Promise<UpdateImageResult>;

/** Runs `update-img` with these arguments (without node and script) and resolves to the exit code. Never rejects. */
export async function main(argv: string[], io: Io = processIo(), update: Update = updateInThread): Promise<number> {
  const parsed = parse(argv);
  if (parsed === 'help' || parsed === 'version') {
    io.out(parsed === 'help' ? programHelp(UPDATE_IMG) : `update-img ${VERSION}\n`);
    return 0;
  }
  if (typeof parsed === 'string') {
    io.err(`update-img: ${parsed}\nUsage: update-img ${synopsis(UPDATE_IMG.options, UPDATE_IMG.operands)}\n`);
    return UPDATE_EXIT.mismatch;
  }
  // On a terminal only; stdout keeps the lines that scripts read.
  const bar = io.terminal === undefined ? undefined : await singleBar(io.terminal, BAR_FORMAT);
  try {
    const listener: UpdateListener = {
      onStart: ({ totalBlocks, progressBlocks }) => {
        io.out(`snapshot is ${totalBlocks} blocks large\ncopying blocks\n`);
        bar?.start(progressBlocks, 0);
      },
      onProgress: (doneBlocks) => bar?.update(doneBlocks),
    };
    const result = await update(parsed, listener, io.signal);
    bar?.stop();
    return report(io, result);
  } catch (error) {
    bar?.stop();
    return reportFailure(io, error);
  }
}

/** What is to be done, or what is wrong with the arguments. */
function parse(argv: readonly string[]): UpdateRequest | 'help' | 'version' | (string & {}) {
  const operands: string[] = [];
  let scan = false;
  let onlyOperands = false;
  for (const argument of argv) {
    if (onlyOperands || !argument.startsWith('-') || argument === '-') operands.push(argument);
    else if (argument === '--') onlyOperands = true;
    else if (argument === '--scan') scan = true;
    else if (argument === '--help' || argument === '-h') return 'help';
    else if (argument === '--version' || argument === '-V') return 'version';
    else return `unknown option ${argument}`;
  }
  const wanted = scan ? 2 : 3;
  if (operands.length !== wanted)
    return `${wanted} operands are wanted${scan ? ' with --scan' : ''}, ${operands.length} were given`;
  const [snapshot = '', second = '', third = ''] = operands;
  return scan ? { snapshot, cowFile: undefined, image: second } : { snapshot, cowFile: second, image: third };
}

function report(io: Io, result: UpdateImageResult): number {
  io.out(`copying complete: ${result.changedBlocks} blocks changed, ${result.errors} errors\n`);
  if (result.errors === 0) return 0;
  for (const failure of result.failures) io.err(`update-img: ${failure}\n`);
  io.err(
    `update-img: ${result.errors} blocks were not copied: the image is not the snapshot; run it again with the same arguments\n`,
  );
  return UPDATE_EXIT.blockErrors;
}

function reportFailure(io: Io, error: unknown): number {
  if (io.signal.aborted) {
    if (io.signal.reason !== 'EPIPE') io.err('Interrupted: run it again with the same arguments\n');
    return abortedStatus(io.signal) || UPDATE_EXIT.blockErrors;
  }
  if (error instanceof CowbirdError) {
    io.err(`${error.message}\n`);
    return error.errno;
  }
  io.err(
    `update-img: A mistake in Cowbird, please report it: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  return UPDATE_EXIT.blockErrors;
}

/** Copies in a thread of its own, which an interrupt ends between two transfers. */
async function updateInThread(
  request: UpdateRequest,
  listener: UpdateListener,
  signal: AbortSignal,
): Promise<UpdateImageResult> {
  const { snapshot, image, cowFile } = request;
  const argv = cowFile === undefined ? [snapshot, image] : [snapshot, image, cowFile];
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL('./update-worker.js', import.meta.url), { argv });
    signal.addEventListener('abort', () => void worker.terminate());
    worker.on('message', (message: UpdateMessage) => {
      if (message.type === 'start') listener.onStart(message);
      else if (message.type === 'progress') listener.onProgress(message.doneBlocks);
      else if (message.type === 'done') resolve(message.result);
      else reject(message.known ? new CowbirdError(message.code, message.message) : new Error(message.message));
    });
    worker.on('error', reject);
    worker.on('exit', (code) =>
      reject(new CowbirdError('EINTR', `The copying thread ended (${code}) before the copy did`)),
    );
  });
}
