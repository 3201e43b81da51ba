/** What is wrong with a COW file: which field, with which value. */

export type CowErrorCode =
  | 'ECOWREAD'
  | 'ECOWTRUNCATED'
  | 'ECOWMAGIC'
  | 'ECOWFLAGS'
  | 'ECOWVERSION'
  | 'ECOWSEQUENCE'
  | 'ECOWFPOS'
  | 'ECOWSIZE'
  | 'ECOWENTRY'
  | 'ECOWCOUNT'
  | 'ECOWEXTENSION';

export class CowFormatError extends Error {
  override readonly name = 'CowFormatError';
  readonly code: CowErrorCode;
  readonly field: string;
  readonly value: number | bigint | string;

  constructor(code: CowErrorCode, field: string, value: number | bigint | string, expected: string) {
    super(`COW file: ${field} is ${value}, expected ${expected}`);
    this.code = code;
    this.field = field;
    this.value = value;
  }
}
