/** Numbers on the command line: minors, sizes, and sizes for people. */
import { CowbirdError } from '../sys/errors.js';

const LAST_MINOR = 255;
const DECIMAL = /^[0-9]+$/;
const SIZE = /^([0-9]+)(?:\.([0-9]+))?([A-Za-z]*)$/;

export const MIB = 1_048_576;

const UNITS: ReadonlyMap<string, number> = new Map(
  ['k', 'm', 'g', 't', 'p'].flatMap((letter, at) => [
    [letter, 1024 ** (at + 1)] as const,
    [`${letter}ib`, 1024 ** (at + 1)] as const,
    [`${letter}b`, 1000 ** (at + 1)] as const,
  ]),
).set('b', 1);

/** A decimal number without sign, or undefined for anything else. `010` is ten. */
export function parseDecimal(text: string): number | undefined {
  if (!DECIMAL.test(text)) return undefined;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : undefined;
}

/** @throws {CowbirdError} EINVAL for a number above 255. */
export function checkMinor(minor: number): number {
  if (minor > LAST_MINOR)
    throw new CowbirdError('EINVAL', `Minor ${minor} is out of range: minors are 0 to ${LAST_MINOR}`);
  return minor;
}

/** @throws {CowbirdError} EINVAL for anything but a decimal number from 0 to 255. */
export function parseMinor(text: string): number {
  if (!DECIMAL.test(text)) {
    throw new CowbirdError('EINVAL', `Minor \`${text}\` is not a decimal number: minors are 0 to ${LAST_MINOR}`);
  }
  return checkMinor(Number(text));
}

/**
 * A size in bytes: `4GiB`, `512M`, `1.5T`, `100MB`, or a bare number of `bareUnitBytes`.
 *
 * @throws {CowbirdError} EINVAL, with the text and what is expected.
 */
export function parseSize(text: string, bareUnitBytes: number): number {
  const [, whole, fraction, suffix] = SIZE.exec(text) ?? [];
  const unit = suffix === '' ? bareUnitBytes : UNITS.get(suffix?.toLowerCase() ?? '');
  if (whole === undefined || unit === undefined || (fraction !== undefined && suffix === '')) {
    throw new CowbirdError(
      'EINVAL',
      `Size \`${text}\` is not understood: write a number and a unit, such as 4GiB, 512MiB or 100MB`,
    );
  }
  const bytes = Math.floor(Number(`${whole}.${fraction ?? '0'}`) * unit);
  if (!Number.isSafeInteger(bytes)) throw new CowbirdError('EINVAL', `Size \`${text}\` is larger than 8 PiB`);
  return bytes;
}

/** A size for people: `6.4 MiB`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 'B';
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return unit === 'B' ? `${bytes} B` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/** `1 block`, `2 blocks` */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
