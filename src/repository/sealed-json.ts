/**
 * JSON that a person can read; its first field is the SHA-256 of the whole file with that field's 64 digits taken as zeros, so
 * that a change of any bit is noticed.
 */
import { createHash } from 'node:crypto';
import { messageOf } from '../sys/errors.js';

const NO_DIGEST = '0'.repeat(64);
/** The digest is in the first line but one. */
const HEAD_CHARS = 100;

export function sealJson(fields: object): Buffer {
  const text = `${JSON.stringify({ sha256: NO_DIGEST, ...fields }, null, 1)}\n`;
  return Buffer.from(text.replace(NO_DIGEST, createHash('sha256').update(text).digest('hex')));
}

/** The parsed text, or what is wrong with it, in words. */
export function openSealed(bytes: Buffer): { parsed: unknown; problem?: undefined } | { problem: string } {
  const text = bytes.toString('utf8');
  const stored = /"sha256": "([0-9a-f]{64})"/.exec(text.slice(0, HEAD_CHARS))?.[1];
  if (stored === undefined) return { problem: 'it does not begin with its SHA-256' };
  const computed = createHash('sha256')
    .update(bytes.subarray(0, text.indexOf(stored)))
    .update(NO_DIGEST)
    .update(bytes.subarray(text.indexOf(stored) + stored.length))
    .digest('hex');
  if (computed !== stored) return { problem: `its SHA-256 is ${computed}, it says ${stored}` };
  try {
    return { parsed: JSON.parse(text) };
  } catch (error) {
    return { problem: messageOf(error) };
  }
}
