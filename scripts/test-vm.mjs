/** `npm run test:vm`: tests in a guest with a stock kernel; `test/vm/command.ts` has its arguments. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ROOT, setUpOrSay } from './setup.mjs';

export async function main(args) {
  const setUpCode = await setUpOrSay('test');
  if (setUpCode !== 0) return setUpCode;
  const command = await import(pathToFileURL(join(ROOT, 'dist', 'test', 'vm', 'command.js')).href);
  return command.main(args);
}
