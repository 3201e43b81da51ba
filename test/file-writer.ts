/**
 * Writes files in every way that there is, and keeps a journal of it elsewhere: a line before each operation and one after it.
 *
 *     node file-writer.js DIRECTORY JOURNAL SEED
 *
 * At any moment, what the journal has ended was done, what it has begun and not ended may be done, in part too, and nothing
 * else was. {@link stateAt} makes the files of that moment from the journal.
 */
import {
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  openSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { randomFrom } from '../src/repository/testing.js';
import { SystemError } from '../src/sys/errors.js';
import * as libc from '../src/sys/libc.js';

const BLOCK = 4096;
const FILES_MAX = 24;
const BLOCKS_MAX = 48;

export type FileOperation =
  | { kind: 'create' | 'append'; name: string; lengthBytes: number }
  | { kind: 'direct' | 'mapped'; name: string; offset: number; lengthBytes: number }
  | { kind: 'rename'; name: string; to: string }
  | { kind: 'unlink' | 'sync'; name: string };

type Line = { begin: number; operation: FileOperation } | { end: number };

/** What an operation writes: from its number alone. */
function contentsOf(id: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  const random = randomFrom(id);
  for (let at = 0; at + 4 <= lengthBytes; at += 4) bytes.writeUInt32LE(Math.floor(random() * 2 ** 32), at);
  return bytes;
}

/** Files by name, as an operation leaves them. */
function apply(files: Map<string, Buffer>, id: number, operation: FileOperation): void {
  const { kind, name } = operation;
  const before = files.get(name) ?? Buffer.alloc(0);
  if (kind === 'create') files.set(name, contentsOf(id, operation.lengthBytes));
  else if (kind === 'append') files.set(name, Buffer.concat([before, contentsOf(id, operation.lengthBytes)]));
  else if (kind === 'direct' || kind === 'mapped') {
    const after = Buffer.from(before);
    contentsOf(id, operation.lengthBytes).copy(after, operation.offset);
    files.set(name, after);
  } else if (kind === 'rename') {
    files.set(operation.to, before);
    files.delete(name);
  } else if (kind === 'unlink') files.delete(name);
}

/** Files of the moment at which the journal was this text; `unsure`: names that an operation was at work on. */
export function stateAt(journal: string): { files: Map<string, Buffer>; unsure: Set<string> } {
  const files = new Map<string, Buffer>();
  let open: { begin: number; operation: FileOperation } | undefined;
  for (const text of journal.split('\n').slice(0, -1)) {
    const line: Line = JSON.parse(text);
    if ('begin' in line) open = line;
    else if (open?.begin === line.end) {
      apply(files, open.begin, open.operation);
      open = undefined;
    }
  }
  const unsure = new Set<string>();
  if (open !== undefined) {
    unsure.add(open.operation.name);
    if (open.operation.kind === 'rename') unsure.add(open.operation.to);
  }
  return { files, unsure };
}

function choose(random: () => number, files: Map<string, Buffer>): FileOperation {
  const names = [...files.keys()];
  const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(random() * list.length)];
  const free = Array.from({ length: FILES_MAX }, (_, i) => `f${i}`).filter((name) => !files.has(name));
  const name = pick(names);
  const fresh = pick(free);
  const lengthBytes = Math.floor(random() * 20 * BLOCK) + 1;
  if (name === undefined || (fresh !== undefined && random() < 0.2))
    return { kind: 'create', name: fresh ?? 'f0', lengthBytes };
  const blocks = Math.floor((files.get(name)?.byteLength ?? 0) / BLOCK);
  const kind = pick(['append', 'append', 'direct', 'direct', 'mapped', 'mapped', 'rename', 'unlink', 'sync'] as const);
  if (kind === 'append' && blocks < BLOCKS_MAX) return { kind, name, lengthBytes };
  if ((kind === 'direct' || kind === 'mapped') && blocks > 0) {
    const count = 1 + Math.floor(random() * Math.min(8, blocks));
    const offset = Math.floor(random() * (blocks - count + 1)) * BLOCK;
    return { kind, name, offset, lengthBytes: count * BLOCK };
  }
  if (kind === 'rename' && fresh !== undefined) return { kind, name, to: fresh };
  if (kind === 'unlink') return { kind, name };
  return { kind: 'sync', name };
}

const pages = { address: 0, bytes: Buffer.alloc(0) };

function writeDirect(path: string, contents: Buffer, offset: number): void {
  if (pages.address === 0) {
    const mapping = libc.mapPages(8 * BLOCK);
    pages.address = mapping.address;
    pages.bytes = Buffer.from(mapping.bytes);
  }
  contents.copy(pages.bytes);
  const fd = libc.open(path, libc.O_RDWR + libc.O_DIRECT);
  const count = libc.fast.pwrite(fd, pages.address, contents.byteLength, offset);
  if (count !== contents.byteLength) throw new SystemError('pwrite', libc.lastErrno(), path);
  libc.close(fd);
}

function writeMapped(path: string, contents: Buffer, offset: number): void {
  const fd = openSync(path, 'r+');
  const mapping = libc.mapShared(fd, offset, contents.byteLength);
  contents.copy(new Uint8Array(mapping.bytes));
  libc.unmap(mapping);
  closeSync(fd);
}

function writeWith(path: string, flags: number, contents: Buffer): void {
  const fd = openSync(path, constants.O_WRONLY + flags, 0o600);
  for (let at = 0; at < contents.byteLength; ) at += writeSync(fd, contents, at);
  closeSync(fd);
}

function perform(folder: string, id: number, operation: FileOperation): void {
  const path = join(folder, operation.name);
  switch (operation.kind) {
    case 'create':
      writeWith(path, constants.O_CREAT + constants.O_TRUNC, contentsOf(id, operation.lengthBytes));
      break;
    case 'append':
      writeWith(path, constants.O_APPEND, contentsOf(id, operation.lengthBytes));
      break;
    case 'direct':
      writeDirect(path, contentsOf(id, operation.lengthBytes), operation.offset);
      break;
    case 'mapped':
      writeMapped(path, contentsOf(id, operation.lengthBytes), operation.offset);
      break;
    case 'rename':
      renameSync(path, join(folder, operation.to));
      break;
    case 'unlink':
      unlinkSync(path);
      break;
    case 'sync': {
      const fd = openSync(path, 'r');
      fsyncSync(fd);
      closeSync(fd);
      break;
    }
  }
}

function main([folder = '', journal = '', seed = '1']: string[]): void {
  const log = openSync(journal, 'a');
  ftruncateSync(log, 0);
  const random = randomFrom(Number(seed));
  const files = new Map<string, Buffer>();
  for (let id = 1; statSync(journal).size < 64 * 1_048_576; id++) {
    const operation = choose(random, files);
    writeSync(log, `${JSON.stringify({ begin: id, operation })}\n`);
    perform(folder, id, operation);
    apply(files, id, operation);
    writeSync(log, `${JSON.stringify({ end: id })}\n`);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(process.argv.slice(2));
