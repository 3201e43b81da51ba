/** A copy of the compiled code with a bug in it, and runs of the simulator over such a copy. */
import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Canary, Edit } from './canaries.js';
import type { Counts } from './counts.js';

/** Seen from `dist/test/simulator`. */
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
/** What the simulator imports; a canary of a real test needs everything, tests too. */
const FOLDERS = ['src/sys', 'src/block', 'src/cow', 'src/tracer', 'test/simulator'];

/** How often the text of each edit is in its file. */
export function occurrences({ file, edits }: Canary): number[] {
  return edits.map(({ find, file: own = file }) => {
    const text = readFileSync(join(ROOT, 'dist', 'src', own), 'utf8');
    return text.split(find).length - 1;
  });
}

function edit(path: string, { find, replace }: Edit): void {
  writeFileSync(path, readFileSync(path, 'utf8').split(find).join(replace));
}

/** Gives the root of a copy to an action, and removes it. */
export async function withMutant<T>(canary: Canary, action: (root: string) => Promise<T>): Promise<T> {
  const root = mkdtempSync(join(tmpdir(), 'cowbird-canary-'));
  try {
    const isSimulated = 'seed' in canary.by;
    const left = isSimulated ? /\.(map|d\.ts|test\.js)$/ : /\.(map|d\.ts)$/;
    for (const folder of isSimulated ? FOLDERS : ['src', 'test']) {
      const isCode = (path: string): boolean => !left.test(path);
      cpSync(join(ROOT, 'dist', folder), join(root, 'dist', folder), { recursive: true, filter: isCode });
    }
    cpSync(join(ROOT, 'package.json'), join(root, 'package.json'));
    symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
    for (const each of canary.edits) edit(join(root, 'dist', 'src', each.file ?? canary.file), each);
    return await action(root);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

export interface Finding {
  /** Undefined when all seeds were clean. */
  seed: number | undefined;
  message: string;
  seeds: number;
  steps: number;
  counts: Counts;
}

const LIMIT_MS = 240_000;

/**
 * Runs seeds over the compiled code in a folder, in a process of its own, up to the first that finds something. `first`: a seed to
 * run before them.
 */
export function runSeedsIn(root: string, from: number, to: number, first?: number): Promise<Finding> {
  const main = join(root, 'dist', 'test', 'simulator', 'main.js');
  return new Promise((resolve, reject) => {
    const args = [main, ...[from, to, ...(first === undefined ? [] : [first])].map(String)];
    execFile(process.execPath, args, { timeout: LIMIT_MS, maxBuffer: 1_048_576 }, (error, stdout, stderr) => {
      if (error !== null) {
        reject(new Error(`the simulator ended with ${stderr.trim() || error.message}`));
        return;
      }
      const found: Finding = JSON.parse(stdout);
      resolve(found);
    });
  });
}

export { ROOT };
