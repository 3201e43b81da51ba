/**
 * `npm run bench`: set-up with what the bench needs, then the bench (`bench/main.ts`). Signals are the bench's own matter once
 * it runs: it clears up what it has made.
 */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ADMIN_PATHS } from './children.mjs';
import { missingPackages } from './packages.mjs';
import { ROOT, setUpOrSay } from './setup.mjs';

export async function main(args) {
  const setUpCode = await setUpOrSay('bench');
  if (setUpCode !== 0) return setUpCode;
  const missing = missingPackages('bench');
  if (missing.length > 0) {
    console.error(`bench: cannot measure without these Debian packages: ${missing.join(' ')}`);
    return 1;
  }
  process.env.PATH = [process.env.PATH ?? '/usr/bin:/bin', ...ADMIN_PATHS].join(':');
  const bench = await import(pathToFileURL(join(ROOT, 'dist', 'bench', 'main.js')).href);
  return bench.main(args);
}
