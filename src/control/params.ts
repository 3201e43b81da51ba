/** Checking what a client sent, and telling a mistake from a client that is newer than this program. */
import * as v from 'valibot';
import { describeIssue } from '../sys/checks.js';
import { CowbirdError } from '../sys/errors.js';
import { VERSION } from '../version.js';
import { KEEPER_OPERATIONS, type OperationName, type OperationParams, operations } from './schema.js';

const NAME_CHARS_MAX = 80;

/**
 * The parameters of an operation, checked.
 *
 * @throws {CowbirdError} EINVAL: which parameter, which value, and what was expected.
 */
export function parseParams<N extends OperationName>(operation: N, params: unknown): OperationParams<N> {
  const schema: v.GenericSchema<unknown, OperationParams<N>> = operations[operation];
  const parsed = v.safeParse(schema, params);
  if (parsed.success) return parsed.output;
  throw invalid(operation, parsed.issues[0]);
}

function invalid(operation: OperationName, issue: v.BaseIssue<unknown>): CowbirdError {
  const path = v.getDotPath(issue);
  // A key that a strict object does not have, as against one that it misses.
  if (issue.type === 'strict_object' && issue.expected === 'never' && path !== null) {
    return new CowbirdError(
      'EINVAL',
      `${operation}: the running daemon (Cowbird ${VERSION}) does not know the parameter \`${path.slice(0, NAME_CHARS_MAX)}\`; if the command is newer: ${cure(operation)}`,
    );
  }
  return new CowbirdError('EINVAL', describeIssue(issue, 'Parameters'));
}

/** The keeper's own code stays until the daemon is stopped; the engine's is swapped. */
function cure(operation: string): string {
  return isKeeperOperation(operation)
    ? 'unmount the volumes, `cowbird daemon stop`, and start it anew'
    : '`cowbird daemon restart` brings it to the installed version';
}

/** Whether the keeper answers this operation itself. */
export function isKeeperOperation(name: string): name is (typeof KEEPER_OPERATIONS)[number] {
  return KEEPER_OPERATIONS.some((own) => own === name);
}

/** ENOSYS, with what to do where the command is newer. */
export function unknownOperation(operation: string): CowbirdError {
  return new CowbirdError(
    'ENOSYS',
    `The running daemon (Cowbird ${VERSION}) does not know the operation \`${operation}\`; if the command is newer: ${cure(operation)}`,
  );
}
