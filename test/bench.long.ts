/** The bench works: every part gives whole results at the smallest scale, and nothing stays behind, also when it is interrupted. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { judgeAll } from '../bench/bars.js';
import { readResults } from '../bench/results.js';
import { boundLoops } from '../src/sys/blkdev.js';
import { ownMounts } from '../src/sys/mounts.js';
import { CANNOT, until } from './lab.js';

const MAIN = fileURLToPath(new URL('../bench/main.js', import.meta.url));
const TIMEOUT_MS = 280_000;
const PROGRAMS = ['qemu-storage-daemon', 'fio', 'gcc', 'losetup', 'mkfs.ext4'];

const hasProgram = (name: string): boolean =>
  (process.env['PATH'] ?? '').split(delimiter).some((folder) => existsSync(join(folder, name)));
const missing = PROGRAMS.filter((name) => !hasProgram(name));
const skip = CANNOT || (missing.length > 0 ? `needs ${missing.join(', ')}: npm run setup -- --for bench` : false);

interface Bench {
  child: ChildProcess;
  /** What it said so far. */
  said(): string;
  ended: Promise<number | null>;
}

function startBench(...args: string[]): Bench {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let text = '';
  child.stderr.on('data', (piece: Buffer) => {
    text += piece.toString('utf8');
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  return { child, said: () => text, ended };
}

/** Whatever of the bench is still there: mounts, loop devices, processes, files. */
function leftIn(folder: string): string[] {
  const processes = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`${folder}/cowbird-bench`);
      } catch {
        // It has ended meanwhile.
        return false;
      }
    });
  return [
    ...ownMounts().flatMap(({ mountPoint }) => (mountPoint.startsWith(`${folder}/`) ? [mountPoint] : [])),
    ...boundLoops().flatMap(({ node, backingFile }) => (backingFile.startsWith(`${folder}/`) ? [node] : [])),
    ...processes,
    ...readdirSync(folder),
  ];
}

describe('npm run bench', { skip, timeout: TIMEOUT_MS }, () => {
  let folder = '';
  let dir = '';
  const running = new Set<Bench>();
  // The file systems of containers and tmpfs may not take O_DIRECT; /var/tmp is where the bench works by default.
  before(() => {
    folder = mkdtempSync(join(existsSync('/var/tmp') ? '/var/tmp' : tmpdir(), 'cowbird-bench-test-'));
    dir = join(folder, 'images');
    mkdirSync(dir);
  });
  after(async () => {
    for (const { child, ended } of running) {
      child.kill('SIGINT');
      await ended;
    }
    rmSync(folder, { recursive: true, force: true });
  });
  const started = (...args: string[]): Bench => {
    const bench = startBench('--tiny', '--dir', dir, ...args);
    running.add(bench);
    void bench.ended.then(() => running.delete(bench));
    return bench;
  };

  it('clears up when it is interrupted in the middle of its work', async () => {
    const bench = started('--only', 'volumes', '--out', join(folder, 'interrupted'));
    await until('two subjects are up', () => bench.said().includes('starting: Cowbird, incremental'), 120_000);
    bench.child.kill('SIGINT');
    assert.equal(await bench.ended, 130, bench.said());
    assert.deepEqual(leftIn(dir), []);
  });

  it('refuses a part that it does not know', async () => {
    const unknown = started('--only', 'everything');
    assert.equal(await unknown.ended, 2);
    assert.match(unknown.said(), /--only everything: the parts are volumes, update-img/);
  });

  it('measures every part, writes tables and a plot, and leaves nothing behind', async () => {
    const out = join(folder, 'results');
    const bench = started('--out', out);
    assert.equal(await bench.ended, 0, bench.said());
    assert.deepEqual(leftIn(dir), []);
    const results = readResults(out);
    const volumes = results['volumes-direct'];
    assert.ok(volumes !== undefined);
    assert.equal(volumes.subjects.length, 10);
    const cells = volumes.cells.map(({ subject, workload }) => `${subject} ${workload}`);
    assert.equal(new Set(cells).size, 16, 'reads on the 6 steady subjects, writes on all 10');
    for (const cell of volumes.cells) assert.ok(cell.iops > 0 && cell.systemCpuSeconds >= 0, JSON.stringify(cell));
    assert.deepEqual(
      results['update-img']?.cases.map(({ pattern, cache }) => `${pattern} ${cache}`),
      ['run warm', 'run cold', 'random warm', 'random cold'],
    );
    assert.equal(results['snapshot-reads']?.rounds.length, 2);
    assert.equal(results.memory?.cases.length, 5);
    assert.ok((results.times?.cases[0]?.setupFreezeMs ?? -1) >= 0, 'the daemon tells how long it froze');
    const judged = judgeAll(results);
    assert.ok(judged.filter(({ spread }) => spread !== undefined).length >= 15, 'bars are computed from the data');
    assert.match(readFileSync(join(out, 'README.md'), 'utf8'), /## Bars\n\n\| .*asked/);
    assert.match(readFileSync(join(out, 'volumes-direct.svg'), 'utf8'), /^<svg [\s\S]*<circle [\s\S]*<\/svg>\n$/);
  });
});
