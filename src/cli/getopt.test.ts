import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { GetoptError, getopt } from './getopt.js';

describe("the original tools' options", () => {
  it('may stand before, between and after the operands', () => {
    for (const argv of [
      ['-c', '7', '-f', '9', 'dev', 'cow', '0'],
      ['dev', '-c', '7', 'cow', '-f', '9', '0'],
      ['dev', 'cow', '0', '-f', '9', '-c', '7'],
      ['-c7', 'dev', 'cow', '-f9', '0'],
    ]) {
      const { values, operands } = getopt(argv, 'c:f:');
      assert.deepEqual([values.get('c'), values.get('f'), operands], ['7', '9', ['dev', 'cow', '0']]);
    }
  });

  it('may be joined, a switch before an option with its value', () => {
    const { values, flags } = getopt(['-if5'], 'f:i');
    assert.deepEqual([values.get('f'), flags.has('i')], ['5', true]);
  });

  it('end at a double dash', () => {
    assert.deepEqual(getopt(['-i', '--', '-i', '-x'], 'i').operands, ['-i', '-x']);
  });

  it('take a lone dash for an operand', () => {
    assert.deepEqual(getopt(['-', 'x'], 'i').operands, ['-', 'x']);
  });

  it('are refused when unknown or without their value', () => {
    for (const argv of [['-z'], ['-c'], ['--cache', '5'], ['-iz'], ['-5'], ['-:']]) {
      assert.throws(() => getopt(argv, 'c:i'), GetoptError, argv.join(' '));
    }
  });
});
