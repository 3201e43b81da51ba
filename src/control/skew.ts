/** What a client says when the daemon speaks another major of the control API, or is none. */
import type { IncomingMessage } from 'node:http';
import { CowbirdError } from '../sys/errors.js';
import { VERSION } from '../version.js';
import type { Paths } from './paths.js';
import { API_MAJOR, MAJOR_HEADER, VERSION_HEADER } from './schema.js';

/** EPROTO with both versions and what to do, where the answer is that of another major; undefined where it is ours. */
export function otherMajor(paths: Paths, { headers }: Pick<IncomingMessage, 'headers'>): CowbirdError | undefined {
  const major = headers[MAJOR_HEADER];
  if (major === undefined || major === String(API_MAJOR)) return undefined;
  return new CowbirdError(
    'EPROTO',
    `The daemon in ${paths.runDir} is Cowbird ${headers[VERSION_HEADER] ?? '?'} (control API ${major}), this command is Cowbird ${VERSION} (control API ${API_MAJOR}): use that version's command, or unmount the volumes and \`cowbird daemon stop\`; the next command then starts ${VERSION}`,
  );
}

/** No daemon of ours of any version answers like that. */
export function strangeAnswer(paths: Paths, operation: string, cause?: unknown): CowbirdError {
  return new CowbirdError(
    'EPROTO',
    `What listens on ${paths.socket} does not answer ${operation} as a Cowbird daemon does: look with \`ss -xlp\` whose socket it is`,
    { cause },
  );
}
