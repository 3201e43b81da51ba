import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { LOG_BYTES_MAX, LogStream } from './log-stream.js';

const LINE = `${'x'.repeat(299)}\n`;
/** More than any pipe takes. */
const LINES = 1_000;

function temporary(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-log-'));
  t.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** A pipe whose writing end waits, as a daemon gets it from a shell. */
function pipe(t: TestContext): { reader: number; writer: number } {
  const path = join(temporary(t), 'pipe');
  execFileSync('mkfifo', [path]);
  const reader = openSync(path, constants.O_RDONLY + constants.O_NONBLOCK);
  const writer = openSync(path, 'w');
  return { reader, writer };
}

function readAll(fd: number): string {
  const buffer = Buffer.alloc(1_048_576);
  let length = 0;
  try {
    for (let count = -1; count !== 0; length += count)
      count = readSync(fd, buffer, length, buffer.length - length, null);
  } catch (error) {
    assert.ok(error instanceof Error && 'code' in error && error.code === 'EAGAIN', String(error));
  }
  return buffer.subarray(0, length).toString();
}

describe('the log', () => {
  it('drops what a full pipe does not take, and says how much once it does', { timeout: 10_000 }, (t) => {
    const { reader, writer } = pipe(t);
    const log = new LogStream(writer);
    for (let i = 0; i < LINES; i++) log.write(LINE);
    const first = readAll(reader).split('\n').slice(0, -1);
    assert.ok(first.length > 100 && first.length < LINES);
    log.write('last\n');
    const [rest, note = '', ...after] = readAll(reader).split('\n');
    assert.equal(rest, LINE.trim());
    assert.equal(Number(/"(\d+) lines of the log were dropped"/.exec(note)?.[1]), LINES - first.length - 1);
    assert.deepEqual(after, ['last', '']);
    for (const fd of [reader, writer]) closeSync(fd);
  });

  it('goes on when nobody holds the other end', (t) => {
    const { reader, writer } = pipe(t);
    const log = new LogStream(writer);
    closeSync(reader);
    for (let i = 0; i < LINES; i++) log.write(LINE);
    closeSync(writer);
  });

  it('is whole in a file', (t) => {
    const path = join(temporary(t), 'log');
    const fd = openSync(path, 'a');
    const log = new LogStream(fd);
    for (let i = 0; i < LINES; i++) log.write(LINE);
    closeSync(fd);
    assert.equal(readFileSync(path, 'utf8'), LINE.repeat(LINES));
  });

  it('in a file of its own is cut when it is long, and what it had is kept once', (t) => {
    const path = join(temporary(t), 'daemon.log');
    writeFileSync(path, 'of the daemon before\n'.repeat(250_000));
    const fd = openSync(path, 'a');
    const log = new LogStream(fd, path);
    log.write('first\n');
    assert.equal(readFileSync(path, 'utf8'), 'first\n', 'also at the start');
    assert.equal(statSync(`${path}.old`).size, 5_250_000);
    const lines = 3 * Math.ceil(LOG_BYTES_MAX / LINE.length);
    for (let i = 0; i < lines; i++) log.write(LINE);
    for (const file of [path, `${path}.old`]) {
      const { size } = statSync(file);
      assert.ok(size > 0 && size <= LOG_BYTES_MAX + LINE.length, `${file} has ${size} bytes`);
    }
    assert.equal(statSync(`${path}.old`).size >= LOG_BYTES_MAX, true);
    log.write('last\n');
    assert.ok(readFileSync(path, 'utf8').endsWith(`${LINE}last\n`));
    closeSync(fd);
  });

  it('in a file of somebody else is left as it grows', (t) => {
    const folder = temporary(t);
    const fd = openSync(join(folder, 'theirs'), 'a');
    const log = new LogStream(fd, join(folder, 'daemon.log'));
    const lines = Math.ceil(LOG_BYTES_MAX / LINE.length) + 10;
    for (let i = 0; i < lines; i++) log.write(LINE);
    assert.equal(statSync(join(folder, 'theirs')).size, lines * LINE.length);
    closeSync(fd);
  });
});
