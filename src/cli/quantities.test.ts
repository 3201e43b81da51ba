import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CowbirdError } from '../sys/errors.js';
import { formatSize, MIB, parseDecimal, parseMinor, parseSize } from './quantities.js';

const isInvalid = (error: unknown): boolean =>
  error instanceof CowbirdError && error.code === 'EINVAL' && error.errno === 22;

describe('sizes on the command line', () => {
  it('take the unit of their option when they are bare numbers', () => {
    assert.equal(parseSize('5', 1), 5);
    assert.equal(parseSize('5', MIB), 5 * MIB);
    assert.equal(parseSize('010', MIB), 10 * MIB);
    assert.equal(parseSize('0', MIB), 0);
  });

  it('count by 1024 with K, KiB and so on, and by 1000 with KB and so on, in any case', () => {
    for (const [text, bytes] of [
      ['1K', 1024],
      ['1KiB', 1024],
      ['1kb', 1000],
      ['3M', 3 * MIB],
      ['3MiB', 3 * MIB],
      ['3MB', 3_000_000],
      ['4GiB', 4_294_967_296],
      ['2g', 2_147_483_648],
      ['1TiB', 1_099_511_627_776],
      ['1.5T', 1_649_267_441_664],
      ['7B', 7],
    ] as const) {
      assert.equal(parseSize(text, MIB), bytes, text);
    }
  });

  it('are EINVAL, naming the text, when they are anything else', () => {
    for (const text of [
      '',
      'abc',
      '5x',
      '0x10',
      '-5',
      '+5',
      '1e3',
      '1.5',
      '1,5G',
      ' 5',
      '5 M',
      '5MiBs',
      '9999999P',
      '.5G',
    ]) {
      assert.throws(
        () => parseSize(text, MIB),
        (error) => isInvalid(error) && String(error).includes(`\`${text}\``),
        text,
      );
    }
  });

  it('are printed for people with two or three digits', () => {
    assert.deepEqual([0, 1023, 1024, 6_710_886, 70 * MIB, 5 * 1024 ** 4].map(formatSize), [
      '0 B',
      '1023 B',
      '1.0 KiB',
      '6.4 MiB',
      '70 MiB',
      '5.0 TiB',
    ]);
  });
});

describe('minors', () => {
  it('are decimal, so that 010 is ten', () => {
    assert.equal(parseMinor('010'), 10);
    assert.equal(parseMinor('0'), 0);
    assert.equal(parseMinor('255'), 255);
  });

  it('are EINVAL outside 0 to 255 and for anything that is not digits', () => {
    for (const text of [
      '256',
      '1000',
      '4294967296',
      '99999999999999999999',
      '-1',
      '0x10',
      '5x',
      'abc',
      '',
      ' 1',
      '1.0',
    ]) {
      assert.throws(() => parseMinor(text), isInvalid, text);
    }
  });
});

describe('decimal numbers', () => {
  it('are undefined past what a number holds exactly', () => {
    assert.equal(parseDecimal('9007199254740991'), 9_007_199_254_740_991);
    assert.equal(parseDecimal('9007199254740992'), undefined);
  });
});
