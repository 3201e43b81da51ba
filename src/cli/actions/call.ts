/** One call of a command of `cowbird`: what was given, and how it answers. */
import type { ClientOptions } from '../../index.js';
import type { Io, Library } from '../io.js';

export interface Call {
  readonly operands: readonly string[];
  /** Value of `--name VALUE`, by its long name without dashes; undefined where it was not given. */
  value(option: string): string | undefined;
  /** Whether a switch was given. */
  flag(option: string): boolean;
  readonly json: boolean;
  readonly io: Io;
  readonly library: Library;
  readonly client: ClientOptions;
}

/** Does one command; resolves to its exit code, 0 where it says nothing else. */
export type Action = (call: Call) => Promise<number | undefined>;

/** The operand at `index`; the parser has counted them. */
export function operand(call: Call, index: number): string {
  const value = call.operands[index];
  if (value === undefined) throw new Error(`operand ${index} is missing: the parser did not count`);
  return value;
}

/** Prints the answer as JSON, or as a person reads it; nothing for an empty text. */
export function answer(call: Call, json: unknown, text: string): undefined {
  if (call.json) call.io.out(`${JSON.stringify(json)}\n`);
  else if (text !== '') call.io.out(`${text}\n`);
}
