/** What is checked alike wherever something comes in from outside: requests on the control socket, files of our own. */
import * as v from 'valibot';

/** A path that the kernel takes as it is: absolute, and without the NUL at which a C string would end early. */
export const AbsolutePath = v.pipe(
  v.string(),
  v.startsWith('/'),
  v.excludes('\0', 'a path has no NUL character'),
  v.maxLength(4095),
);

/** A count of bytes or blocks. */
export const WholeNumber = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

export const VOLUME_NAME = /^[A-Za-z0-9._-]{1,64}$/;

const MESSAGE_CHARS_MAX = 200;
const VALUE_CHARS_MAX = 80;

/** Which field, what was expected, which value; short, whatever the value is. `whole` names what has no field. */
export function describeIssue(issue: v.BaseIssue<unknown>, whole: string): string {
  const message = issue.message.slice(0, MESSAGE_CHARS_MAX);
  return `${v.getDotPath(issue)?.slice(0, MESSAGE_CHARS_MAX) ?? whole}: ${message} (value ${shown(issue.input)})`;
}

/** A value in words. What is nested is only named: to write it out could take more stack than there is. */
function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, VALUE_CHARS_MAX));
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}
