/** GNU getopt(3), short options only: what the original `dbdctl` parses with. Options and operands may be mixed. */

export interface GetoptResult {
  /** The last value of each option that takes one. */
  values: Map<string, string>;
  flags: Set<string>;
  operands: string[];
}

/** A mistake in the arguments, as getopt says it. */
export class GetoptError extends Error {
  override readonly name = 'GetoptError';
}

/** `optstring` is getopt's: a letter for a switch, a letter and a colon for an option with a value. */
export function getopt(argv: readonly string[], optstring: string): GetoptResult {
  const result: GetoptResult = { values: new Map(), flags: new Set(), operands: [] };
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at] ?? '';
    if (argument === '--') {
      result.operands.push(...argv.slice(at + 1));
      break;
    }
    if (!argument.startsWith('-') || argument === '-') {
      result.operands.push(argument);
      continue;
    }
    if (takeCluster(argument.slice(1), argv[at + 1], optstring, result)) at++;
  }
  return result;
}

/** Takes `-ic5` apart. Returns whether the next argument was its value. */
function takeCluster(letters: string, next: string | undefined, optstring: string, result: GetoptResult): boolean {
  for (let at = 0; at < letters.length; at++) {
    const letter = letters.charAt(at);
    const known = letter === ':' ? -1 : optstring.indexOf(letter);
    if (known < 0) throw new GetoptError(`invalid option -- '${letter}'`);
    if (optstring.charAt(known + 1) !== ':') {
      result.flags.add(letter);
      continue;
    }
    const joined = letters.slice(at + 1);
    const value = joined === '' ? next : joined;
    if (value === undefined) throw new GetoptError(`option requires an argument -- '${letter}'`);
    result.values.set(letter, value);
    return joined === '';
  }
  return false;
}
