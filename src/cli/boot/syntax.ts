/** How paths and words are written in systemd's units. */
import { CowbirdError } from '../../sys/errors.js';

/** A path as a part of a unit's name, as `systemd-escape --path` does it. */
export function escapePath(path: string): string {
  const parts = path.split('/').filter((part) => part !== '');
  const joined = parts.join('/');
  if (joined === '') return '-';
  return [...Buffer.from(joined)]
    .map((byte, at) => {
      const character = String.fromCharCode(byte);
      if (character === '/') return '-';
      const plain = /[A-Za-z0-9:_.]/.test(character) && !(at === 0 && character === '.');
      return plain ? character : `\\x${byte.toString(16).padStart(2, '0')}`;
    })
    .join('');
}

/** One word of a unit's line: quoted where needed; `%` begins a specifier everywhere, `$` a variable in commands. */
export function word(text: string, kind: 'command' | 'path' = 'path'): string {
  if (/\p{Cc}/u.test(text)) throw new CowbirdError('EINVAL', `${JSON.stringify(text)} cannot stand in a systemd unit`);
  const escaped = text.replaceAll('%', '%%').replaceAll('$', kind === 'command' ? '$$$$' : '$$');
  if (/^[\w./:=@+,%$-]+$/.test(escaped)) return escaped;
  return `"${escaped.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
}

/** A command line. The program's own path is no place for variables. */
export function command(program: string, args: readonly string[]): string {
  return [word(program), ...args.map((argument) => word(argument, 'command'))].join(' ');
}
