/** What a block device holds, read from it. */
import { HEAD_BYTES, type Signature, signatureOf } from '../block/signature.js';
import { DirectReader } from '../sys/direct-reader.js';

/** By its first blocks; undefined: nothing that has a name here. @throws {SystemError} where they cannot be read. */
export function signatureOfNode(node: string): Signature | undefined {
  return signatureOf(headOfNode(node));
}

/** The first blocks from a place on, past the page cache. @throws {SystemError} where they cannot be read. */
export function headOfNode(node: string, startBytes = 0): Buffer {
  const reader = new DirectReader(node);
  try {
    const head = Buffer.alloc(HEAD_BYTES);
    for (let at = 0; at < HEAD_BYTES; ) {
      const count = reader.read(head.subarray(at), startBytes + at);
      // A smaller device: what is not there counts as zeros.
      if (count === 0) break;
      at += count;
    }
    return head;
  } finally {
    reader.close();
  }
}

/** By which a repository knows its source again: `ext4 UUID`; null where contents have no identity of their own. */
export function contentOf(signature: Signature | undefined): string | null {
  return signature?.id === undefined ? null : `${signature.name} ${signature.id}`;
}
