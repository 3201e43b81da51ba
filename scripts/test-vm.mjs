/**
 * `npm run test:vm`: tests in a guest with a stock kernel; `test/vm/command.ts` has its arguments. Without any, the root disk of a
 * guest is backed up live, too, and a new guest booted from the image.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ROOT, setUpOrSay } from './setup.mjs';

export async function main(args) {
  const setUpCode = await setUpOrSay('test');
  if (setUpCode !== 0) return setUpCode;
  const command = await import(pathToFileURL(join(ROOT, 'dist', 'test', 'vm', 'command.js')).href);
  const code = await command.main(args);
  if (args.length > 0) return code;
  const file = join(ROOT, 'dist', 'test', 'vm-root.long.js');
  const [rootCode] = await once(spawn(process.execPath, ['--test-reporter=tap', file], { stdio: 'inherit' }), 'exit');
  return code === 0 ? (rootCode ?? 1) : code;
}
