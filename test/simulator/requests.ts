/** What clients ask of the volume and of its snapshot. */
import type { Write } from './register.js';

export type RequestKind = 'write' | 'zero' | 'flush' | 'read' | 'snapshotRead';

export interface Request {
  readonly id: number;
  readonly kind: RequestKind;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly unmap: boolean;
  /** A write of zeros, as a file system makes the index of a COW file. */
  readonly isBlank: boolean;
  /** Goes into the blocks of the store in use. */
  readonly isForeign: boolean;
  /** One for each sector. */
  writes: Write[];
  /** Of a flush or a read. */
  start: number;
  /** Times that it was begun to be served. */
  tries: number;
  isAnswered: boolean;
}

/** What a write puts into its sectors: no two writes and no two sectors are alike. */
export function contentOf(request: Request, index: number): number {
  return request.kind === 'zero' || request.isBlank ? 0 : request.id * 256 + index + 1;
}

export const SECTORS_MAX = 255;

export function describeRequest({ id, kind, offset, lengthBytes, unmap, isForeign }: Request): string {
  const range = kind === 'flush' ? '' : ` ${offset / 512}+${lengthBytes / 512}`;
  return `#${id} ${isForeign ? 'foreign ' : ''}${kind}${unmap ? ' (unmap)' : ''}${range}`;
}
