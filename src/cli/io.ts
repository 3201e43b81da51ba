/**
 * What a command line touches: two streams, the interrupt, and the library. Handed in, so that tests put their own.
 *
 * Ctrl-C and a reader that went away (`cowbird changes 0 | head -1`) both abort {@link Io.signal}; its reason says which.
 */
import type * as library from '../index.js';

/** The operations of the library that the commands use. */
export type Library = Pick<
  typeof library,
  | 'attach'
  | 'backup'
  | 'changes'
  | 'daemonStatus'
  | 'destroy'
  | 'detach'
  | 'device'
  | 'doctor'
  | 'events'
  | 'expandCowFile'
  | 'getFreeMinor'
  | 'info'
  | 'backupTogether'
  | 'listTracking'
  | 'listVersions'
  | 'listVolumes'
  | 'mount'
  | 'prune'
  | 'reconfigure'
  | 'reconfigureAutoExpand'
  | 'reloadIncremental'
  | 'reloadSnapshot'
  | 'restartDaemon'
  | 'restore'
  | 'setupSnapshot'
  | 'setupTogether'
  | 'startDaemon'
  | 'stopDaemon'
  | 'track'
  | 'transitionTogether'
  | 'transitionToIncremental'
  | 'transitionToSnapshot'
  | 'umount'
  | 'untrack'
  | 'verify'
  | 'versionChanges'
>;

export type AbortCause = 'SIGINT' | 'SIGTERM' | 'EPIPE';

export interface Io {
  out(text: string): void;
  err(text: string): void;
  /** Aborted with an {@link AbortCause} as its reason. */
  readonly signal: AbortSignal;
  /** Where a progress bar may be drawn; undefined where nobody looks. */
  readonly terminal: NodeJS.WriteStream | undefined;
  /** Asks a question that is answered with yes or no; undefined where nobody can answer. */
  readonly ask: ((question: string) => Promise<boolean>) | undefined;
  /** Loaded on the first use: help and versions do without. */
  library(): Promise<Library>;
}

/** Exit code of a command that was aborted. Whoever reads no more has what he wanted. */
export function abortedStatus(signal: AbortSignal): number {
  return signal.reason === 'EPIPE' ? 0 : 130;
}

/** The process's own streams and signals. A second Ctrl-C or SIGTERM ends the process at once. */
export function processIo(): Io {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const satisfies AbortCause[])
    process.once(signal, () => controller.abort(signal));
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') reportLostOutput(error);
    controller.abort('EPIPE' satisfies AbortCause);
  });
  // With nobody left to read the errors, the exit code says it all.
  process.stderr.on('error', () => undefined);
  return {
    out: (text) => {
      if (controller.signal.reason !== 'EPIPE') process.stdout.write(text);
    },
    err: (text) => {
      process.stderr.write(text);
    },
    signal: controller.signal,
    terminal: process.stderr.isTTY ? process.stderr : undefined,
    ask:
      process.stdin.isTTY && process.stderr.isTTY
        ? (question) => askOnTerminal(question, controller.signal)
        : undefined,
    library: () => import('../index.js'),
  };
}

async function askOnTerminal(question: string, signal: AbortSignal): Promise<boolean> {
  const { createInterface } = await import('node:readline/promises');
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  // While it reads a line the terminal hands Ctrl-C to it instead of sending the signal.
  lines.once('SIGINT', () => process.kill(process.pid, 'SIGINT'));
  try {
    return /^y(es)?$/i.test((await lines.question(`${question} [y/N] `, { signal })).trim());
  } finally {
    lines.close();
  }
}

/** An answer that did not arrive (a full disk) is a failure, whatever the command itself says. */
function reportLostOutput(error: Error): void {
  process.stderr.write(`The output could not be written: ${error.message}\n`);
  process.once('exit', () => {
    process.exitCode = 1;
  });
}
