/**
 * Errors for people: what happened, with which value, and what to do, under a stable `code`.
 *
 * Two kinds only. A {@link CowbirdError} is for the person or the caller: a refusal or an operating error, with the errno
 * that the field's tools use for it. Anything else that is thrown is a bug of ours and is reported as one.
 */
import { constants } from 'node:os';

const ERRNO_BY_CODE: ReadonlyMap<string, number> = new Map(Object.entries(constants.errno));
const CODE_BY_ERRNO: ReadonlyMap<number, string> = new Map(
  // EAGAIN and EWOULDBLOCK, ENOTSUP and EOPNOTSUPP share a number: the first of each pair is the name we print.
  [...ERRNO_BY_CODE].reverse().map(([code, errno]) => [errno, code] as const),
);
// Linux numbers that Node's table leaves out.
const EXTRA: ReadonlyArray<readonly [string, number]> = [
  ['ENOTBLK', 15],
  ['ESHUTDOWN', 108],
  ['EUCLEAN', 117],
];

/** The errno that belongs to a name such as `EBUSY`, or to `E<number>`; EIO (5) for a name that Linux does not have. */
export function errnoOf(code: string): number {
  const known = ERRNO_BY_CODE.get(code) ?? EXTRA.find(([name]) => name === code)?.[1];
  return known ?? Number(/^E([1-9]\d{0,3})$/.exec(code)?.[1] ?? 5);
}

/** The name of an errno, `E<number>` where Linux has none. */
export function codeOf(errno: number): string {
  return EXTRA.find(([, number]) => number === errno)?.[0] ?? CODE_BY_ERRNO.get(errno) ?? `E${errno}`;
}

/** What became of the system when an operation ended in an error. */
export type Outcome = 'refused' | 'failed' | 'partial';

/** An error that a person reads. `refused` means that nothing was changed (I7). */
export class CowbirdError extends Error {
  override readonly name = 'CowbirdError';
  /** Stable name: an errno name where one fits. */
  readonly code: string;
  readonly errno: number;
  readonly outcome: Outcome;

  constructor(code: string, message: string, options: { outcome?: Outcome; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errno = errnoOf(code);
    this.outcome = options.outcome ?? 'refused';
  }

  toJSON(): { code: string; errno: number; message: string; outcome: Outcome } {
    return { code: this.code, errno: this.errno, message: this.message, outcome: this.outcome };
  }
}

/** A failed system call: which call, on what, with which errno. */
export class SystemError extends Error {
  override readonly name = 'SystemError';
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;

  constructor(syscall: string, errno: number, subject = '') {
    super(`${syscall}${subject === '' ? '' : ` ${subject}`}: ${codeOf(errno)} (errno ${errno})`);
    this.code = codeOf(errno);
    this.errno = errno;
    this.syscall = syscall;
  }
}

/** The errno of whatever was thrown: our own classes, Node's system errors, or EIO for anything else. */
export function errnoOfError(error: unknown): number {
  if (error instanceof CowbirdError || error instanceof SystemError) return error.errno;
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return errnoOf(error.code);
  return 5;
}

/** The message of whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Fails a programmer's assumption loudly; stays on in production.
 *
 * A message with values in it is passed as a function where requests are served: texts that nobody reads cost memory.
 */
export function assert(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new Error(`Assertion failed: ${typeof message === 'string' ? message : message()}`);
}
