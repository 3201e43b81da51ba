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
  | 'changes'
  | 'daemonStatus'
  | 'destroy'
  | 'detach'
  | 'doctor'
  | 'events'
  | 'expandCowFile'
  | 'getFreeMinor'
  | 'info'
  | 'listVolumes'
  | 'reconfigure'
  | 'reconfigureAutoExpand'
  | 'reloadIncremental'
  | 'reloadSnapshot'
  | 'restartDaemon'
  | 'setupSnapshot'
  | 'startDaemon'
  | 'stopDaemon'
  | 'transitionToIncremental'
  | 'transitionToSnapshot'
>;

export type AbortCause = 'SIGINT' | 'EPIPE';

export interface Io {
  out(text: string): void;
  err(text: string): void;
  /** Aborted with an {@link AbortCause} as its reason. */
  readonly signal: AbortSignal;
  /** Where a progress bar may be drawn; undefined where nobody looks. */
  readonly terminal: NodeJS.WriteStream | undefined;
  /** Loaded on the first use: help and versions do without. */
  library(): Promise<Library>;
}

/** Exit code of a command that was aborted. Whoever reads no more has what he wanted. */
export function abortedStatus(signal: AbortSignal): number {
  return signal.reason === 'EPIPE' ? 0 : 130;
}

/** The process's own streams and signals. A second Ctrl-C ends the process at once. */
export function processIo(): Io {
  const controller = new AbortController();
  process.once('SIGINT', () => controller.abort('SIGINT' satisfies AbortCause));
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
    library: () => import('../index.js'),
  };
}

/** An answer that did not arrive (a full disk) is a failure, whatever the command itself says. */
function reportLostOutput(error: Error): void {
  process.stderr.write(`The output could not be written: ${error.message}\n`);
  process.once('exit', () => {
    process.exitCode = 1;
  });
}
