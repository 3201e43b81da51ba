/**
 * `npm test`: set-up, then every compiled test. Tests beside the sources run two at a time; whole-system tests, which own
 * loop devices and mounts, one after another. Arguments choose files by a part of their path.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, setUp } from './setup.mjs';

const FILE_TIMEOUT_MS = 300_000;

function* testFiles(folder) {
  if (!existsSync(folder)) return;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* testFiles(path);
    else if (entry.name.endsWith('.test.js')) yield path;
  }
}

async function runTests(files, concurrency) {
  const args = [
    '--enable-source-maps',
    '--test',
    `--test-concurrency=${concurrency}`,
    `--test-timeout=${FILE_TIMEOUT_MS}`,
    ...files,
  ];
  const child = spawn(process.execPath, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] });
  const forward = (signal) => child.kill(signal);
  process.on('SIGINT', forward).on('SIGTERM', forward);
  const code = await new Promise((resolve) => child.once('exit', (exitCode) => resolve(exitCode ?? 130)));
  process.off('SIGINT', forward).off('SIGTERM', forward);
  return code;
}

export async function main(args) {
  const startedAt = Date.now();
  try {
    await setUp('test');
  } catch (error) {
    console.error(`setup: ${error.message}`);
    return 1;
  }
  const chosen = (path) => args.length === 0 || args.some((part) => path.includes(part.replace(/\.ts$/, '.js')));
  const unit = [...testFiles(join(ROOT, 'dist', 'src'))].filter(chosen);
  const system = [...testFiles(join(ROOT, 'dist', 'test'))].filter(chosen);
  if (unit.length + system.length === 0) {
    console.error(`No test matches ${args.join(' ')}`);
    return 1;
  }
  if (process.getuid() !== 0 || !existsSync('/dev/fuse')) {
    console.log('NOTE: not root, or no /dev/fuse: the whole-system tests skip themselves here');
  }
  let failed = 0;
  if (unit.length > 0 && (await runTests(unit, 2)) !== 0) failed++;
  if (system.length > 0 && (await runTests(system, 1)) !== 0) failed++;
  console.log(`Tests took ${Math.round((Date.now() - startedAt) / 1000)} s${failed === 0 ? '' : ', and some failed'}`);
  return failed === 0 ? 0 : 1;
}
