/** `npm run simulate`: the simulator of the write path; `test/simulator/command.ts` has its arguments. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ROOT, setUpOrSay } from './setup.mjs';

export async function main(args) {
  const setUpCode = await setUpOrSay('build');
  if (setUpCode !== 0) return setUpCode;
  const command = await import(pathToFileURL(join(ROOT, 'dist', 'test', 'simulator', 'command.js')).href);
  return command.main(args);
}
