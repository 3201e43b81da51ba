/** Errors of `cowbird` for people and programs, and the exit code of each. */
import { CowbirdError, codeOf, errnoOf, errnoOfError, messageOf } from '../sys/errors.js';
import { abortedStatus, type Io } from './io.js';
import { EXIT } from './spec/cowbird.js';

/** A command line that cannot be understood. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** Says what went wrong on stderr and returns the exit code. `subject`: the program or `cowbird attach`. */
export function reportError(io: Io, error: unknown, subject: string, json: boolean): number {
  if (io.signal.aborted) {
    const status = abortedStatus(io.signal);
    if (status !== 0)
      print(io, json, subject, {
        code: 'EINTR',
        errno: errnoOf('EINTR'),
        message: error instanceof CowbirdError && error.code === 'EINTR' ? error.message : INTERRUPTED,
      });
    return status;
  }
  if (error instanceof UsageError) {
    if (json) print(io, json, subject, { code: 'EINVAL', errno: errnoOf('EINVAL'), message: error.message });
    else io.err(`${subject}: ${error.message}\n`);
    return EXIT.usage;
  }
  if (error instanceof CowbirdError) {
    print(io, json, subject, { code: error.code, errno: error.errno, message: error.message });
    return EXIT[error.outcome];
  }
  const errno = errnoOfError(error);
  print(io, json, subject, { code: codeOf(errno), errno, message: describe(error) });
  if (!json && isBug(error) && error instanceof Error) io.err(`${error.stack ?? ''}\n`);
  return EXIT.failed;
}

const INTERRUPTED =
  'Interrupted; what the daemon has begun it finishes: `cowbird info` and `cowbird list` show the outcome';

/** Neither ours nor the system's: a mistake in Cowbird. */
function isBug(error: unknown): boolean {
  return !(error instanceof Error && 'code' in error);
}

/** The message of any error, with what to do where that is known. */
export function describe(error: unknown): string {
  if (isBug(error)) return `A mistake in Cowbird, please report it: ${messageOf(error)}`;
  const isSocket = error instanceof Error && 'syscall' in error && error.syscall === 'connect';
  return isSocket && errnoOfError(error) === errnoOf('EACCES') ? `${messageOf(error)}: run as root` : messageOf(error);
}

function print(io: Io, json: boolean, subject: string, error: { code: string; errno: number; message: string }): void {
  if (json) io.err(`${JSON.stringify({ error })}\n`);
  else io.err(`${subject}: ${error.message} (${error.code})\n`);
}
