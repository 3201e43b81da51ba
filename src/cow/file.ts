/**
 * Reading a COW file: everything is checked before anything is believed.
 *
 * Order: length of the header, magic, flags, version, size of the volume, lengths, position; then the index piece by piece,
 * never in memory of a size that the file asks for, and its count of entries against the header's.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { CowFormatError } from './errors.js';
import { BLOCK_SIZE_BYTES, blockCount, dataOffsetBytes, ENTRY_SIZE_BYTES, HEADER_SIZE_BYTES } from './geometry.js';
import { type CowHeader, decodeHeader } from './header.js';
import { decodeEntries } from './index-codec.js';

/** A file or device that is read by position. */
export interface PositionedReader {
  readonly lengthBytes: number;
  /** Reads up to the buffer's length; returns how many bytes came, 0 at the end. */
  read(buffer: Uint8Array, offset: number): number;
}

/**
 * A regular file, read through the page cache: for files that no engine writes by address. `DirectReader` is for the others.
 */
export class PlainReader implements PositionedReader {
  readonly lengthBytes: number;
  readonly #fd: number;

  constructor(path: string) {
    // Without O_NONBLOCK the open of a named pipe waits for somebody who writes to it.
    this.#fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = fstatSync(this.#fd);
    if (!stats.isFile()) {
      closeSync(this.#fd);
      throw new TypeError(`${path} is no regular file: its length is not in its status`);
    }
    this.lengthBytes = stats.size;
  }

  read(buffer: Uint8Array, offset: number): number {
    return readSync(this.#fd, buffer, 0, buffer.byteLength, offset);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

export interface BlockRun {
  firstBlock: number;
  blockCount: number;
}

const PIECE_BYTES = 1_048_576;

export interface CowFile {
  readonly header: CowHeader;
  readonly blockCount: number;
  /** Entries of the index in order, in pieces. */
  entries(): Generator<{ firstBlock: number; entries: Uint32Array }, void, undefined>;
  /** Runs of changed blocks, ascending. Checks the count against the header when it comes to its end. */
  changedRuns(): Generator<BlockRun, void, undefined>;
  /** The saved contents of a block; undefined where it is not saved. Only of a CLEAN file in snapshot mode. */
  readSaved(block: number): Uint8Array | undefined;
}

/**
 * Opens a COW file of a volume of `volumeSizeBytes`.
 *
 * @throws {CowFormatError} for the first field that is wrong.
 */
export function readCowFile(reader: PositionedReader, volumeSizeBytes: number): CowFile {
  const header = decodeHeader(readFully(reader, 0, HEADER_SIZE_BYTES, 'header'));
  const blocks = blockCount(volumeSizeBytes);
  const dataOffset = dataOffsetBytes(blocks);
  requireVolume(header, volumeSizeBytes);
  checkSizes(reader, header, dataOffset);
  const bounds = {
    indexOnly: header.indexOnly,
    firstPlace: dataOffset / BLOCK_SIZE_BYTES,
    endPlace: header.positionBlocks,
  };
  function* entries(): Generator<{ firstBlock: number; entries: Uint32Array }, void, undefined> {
    const indexEnd = dataOffset - HEADER_SIZE_BYTES;
    for (let at = 0; at < indexEnd; at += PIECE_BYTES) {
      const bytes = readFully(reader, HEADER_SIZE_BYTES + at, Math.min(PIECE_BYTES, indexEnd - at), 'index');
      const firstBlock = at / ENTRY_SIZE_BYTES;
      const decoded = decodeEntries(bytes, bounds, firstBlock);
      const beyond = decoded.subarray(Math.max(0, blocks - firstBlock)).findIndex((entry) => entry !== 0);
      if (beyond >= 0) {
        throw new CowFormatError(
          'ECOWENTRY',
          `entry of block ${blocks + beyond}`,
          'set',
          '0: the volume ends before it',
        );
      }
      yield { firstBlock, entries: decoded.subarray(0, Math.max(0, blocks - firstBlock)) };
    }
  }
  return {
    header,
    blockCount: blocks,
    entries,
    changedRuns: () => runsOf(entries(), header),
    readSaved: (block) => readSaved(reader, header, bounds, dataOffset, blocks, block),
  };
}

/** The length of the index tells volumes apart by 16 MiB only; a file of ours says the size to the byte. */
function requireVolume({ extension }: CowHeader, volumeSizeBytes: number): void {
  if (extension === undefined || extension.volumeSizeBytes === volumeSizeBytes) return;
  throw new CowFormatError(
    'ECOWEXTENSION',
    'volume size',
    extension.volumeSizeBytes,
    `${volumeSizeBytes}, the bytes of this volume`,
  );
}

function checkSizes(reader: PositionedReader, header: CowHeader, dataOffset: number): void {
  const { fileSizeBytes, positionBlocks, indexOnly } = header;
  if (reader.lengthBytes < dataOffset) {
    throw new CowFormatError(
      'ECOWTRUNCATED',
      'file length',
      reader.lengthBytes,
      `${dataOffset} bytes at least for this volume`,
    );
  }
  if (indexOnly && fileSizeBytes !== dataOffset) {
    throw new CowFormatError('ECOWSIZE', 'fsize', fileSizeBytes, `${dataOffset} for this volume in incremental mode`);
  }
  if (!indexOnly && (fileSizeBytes < dataOffset || fileSizeBytes > reader.lengthBytes)) {
    throw new CowFormatError(
      'ECOWSIZE',
      'fsize',
      fileSizeBytes,
      `${dataOffset} to the file's ${reader.lengthBytes} bytes`,
    );
  }
  const firstPlace = dataOffset / BLOCK_SIZE_BYTES;
  if (!indexOnly && (positionBlocks < firstPlace || positionBlocks > Math.ceil(fileSizeBytes / BLOCK_SIZE_BYTES))) {
    throw new CowFormatError(
      'ECOWFPOS',
      'fpos',
      positionBlocks,
      `${firstPlace} to ${Math.ceil(fileSizeBytes / BLOCK_SIZE_BYTES)}`,
    );
  }
}

function* runsOf(
  pieces: Iterable<{ firstBlock: number; entries: Uint32Array }>,
  header: CowHeader,
): Generator<BlockRun, void, undefined> {
  let start = -1;
  let next = 0;
  let count = 0;
  for (const { firstBlock, entries } of pieces) {
    for (let i = 0; i < entries.length; i++) {
      const block = firstBlock + i;
      const changed = entries[i] !== 0;
      if (changed) count++;
      if (changed && start < 0) start = block;
      if (!changed && start >= 0) {
        yield { firstBlock: start, blockCount: block - start };
        start = -1;
      }
      next = block + 1;
    }
  }
  if (start >= 0) yield { firstBlock: start, blockCount: next - start };
  if (header.version === 1 && header.clean && count !== header.changedBlocks) {
    throw new CowFormatError('ECOWCOUNT', 'nr_changed', header.changedBlocks, `${count}, the entries that are set`);
  }
}

function readSaved(
  reader: PositionedReader,
  header: CowHeader,
  bounds: { indexOnly: boolean; firstPlace: number; endPlace: number },
  dataOffset: number,
  blocks: number,
  block: number,
): Uint8Array | undefined {
  // The index of a file in use is in memory: what the disk calls "not saved" may well be (I2).
  if (!header.clean) throw new CowFormatError('ECOWFLAGS', 'flags', 'unclean', 'CLEAN: its index is not on the disk');
  if (header.indexOnly)
    throw new CowFormatError('ECOWFLAGS', 'mode', 'incremental', 'snapshot: an incremental file has no data');
  if (!Number.isSafeInteger(block) || block < 0 || block >= blocks)
    throw new RangeError(`Block ${block} is not in a volume of ${blocks} blocks`);
  const at = HEADER_SIZE_BYTES + block * ENTRY_SIZE_BYTES;
  const [place = 0] = decodeEntries(readFully(reader, at, ENTRY_SIZE_BYTES, 'index'), bounds, block);
  if (place === 0) return undefined;
  if (place * BLOCK_SIZE_BYTES < dataOffset)
    throw new CowFormatError('ECOWENTRY', `entry of block ${block}`, place, 'a place of data');
  return readFully(reader, place * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, 'data');
}

/** Reads exactly so many bytes. What is not there is an error, never zeros. */
export function readFully(reader: PositionedReader, offset: number, lengthBytes: number, field: string): Buffer {
  if (offset + lengthBytes > reader.lengthBytes) {
    throw new CowFormatError(
      'ECOWTRUNCATED',
      `${field} end`,
      offset + lengthBytes,
      `within the file's ${reader.lengthBytes} bytes`,
    );
  }
  const bytes = Buffer.alloc(lengthBytes);
  let done = 0;
  while (done < lengthBytes) {
    const count = reader.read(bytes.subarray(done), offset + done);
    if (count <= 0) throw new CowFormatError('ECOWTRUNCATED', field, offset + done, 'more bytes');
    done += count;
  }
  return bytes;
}
