/** What a person at a terminal sees of a long command, and that nobody else sees any of it. */
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { progressBar } from './progress.js';

const MIB = 1_048_576;
/** Longer than two pictures of the bar lie apart. */
const PICTURE_MS = 300;

describe('progress', () => {
  it('is a bar for each phase, with percentage, sizes, rate and the time that is left', async () => {
    const terminal = Object.assign(new PassThrough(), { isTTY: true, columns: 160 });
    let seen = '';
    terminal.on('data', (bytes: Buffer) => {
      seen += bytes.toString();
    });
    const bar = await progressBar(terminal);
    assert.ok(bar !== undefined);
    for (const [phase, label] of [
      ['compare', 'comparing'],
      ['copy', 'copying'],
    ] as const) {
      seen = '';
      bar.update({ phase, doneBytes: 0, totalBytes: 100 * MIB });
      await pause(PICTURE_MS);
      bar.update({ phase, doneBytes: 40 * MIB, totalBytes: 100 * MIB });
      await pause(PICTURE_MS);
      assert.match(seen, new RegExp(`${label} [#.]+ 40% \\| 40 MiB of 100 MiB \\| [\\d.]+ [KMG]iB/s \\| \\S+ left`));
    }
    bar.stop();
  });

  it('is nothing where no terminal is', async () => {
    assert.equal(await progressBar(undefined), undefined);
  });
});
