/**
 * The manifest: which versions there are. JSON that carries its own SHA-256 (sealed-json.ts).
 *
 * It is written aside, made durable, and renamed over the old one: that is the commit of every change to a repository.
 * `manifest.copy` is the same text, written after the commit. It serves when the first one is damaged or gone; if it is the
 * one before, what follows from it is a rollback to the version before.
 */
import * as v from 'valibot';
import { describeIssue, WholeNumber } from '../sys/checks.js';
import { CowbirdError, messageOf } from '../sys/errors.js';
import { isMediumError, type RepositoryFiles } from './files.js';
import { MANIFEST, MANIFEST_COPY, MANIFEST_NEW } from './layout.js';
import { openSealed, sealJson } from './sealed-json.js';

export const FORMAT = 1;
/** What one string can hold, and some. Reached only by hundreds of thousands of unreadable ranges. */
const MANIFEST_BYTES_MAX = 256 * 1_048_576;
const Hex256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const Digits = v.pipe(v.string(), v.regex(/^\d{1,20}$/));
const VersionNumber = v.pipe(v.number(), v.safeInteger(), v.minValue(1));

const Range = v.strictObject({ offset: WholeNumber, lengthBytes: v.pipe(WholeNumber, v.minValue(1)) });

/** What tells that a source is the one that the chain was made from. */
const Identity = v.strictObject({
  kind: v.picklist(['file', 'device', 'volume']),
  /** As it was named, absolute. */
  path: v.string(),
  /** Of the thing itself: serial number and partition, or the real path of a file. */
  place: v.string(),
  /** Of what it holds: uuid of a file system or partition table; null where there is none. */
  content: v.nullable(v.string()),
});

const Version = v.strictObject({
  number: VersionNumber,
  /** ISO 8601, UTC. */
  time: v.pipe(v.string(), v.isoTimestamp()),
  sizeBytes: WholeNumber,
  engine: v.picklist(['scan', 'driver', 'live']),
  /** Why this engine, in words. */
  reason: v.string(),
  /** Unused blocks are here with their contents too. */
  whole: v.boolean(),
  /** Could not be read: here they are as in the version before, or zeros. */
  skipped: v.array(Range),
  source: Identity,
  /** Given by the engine, which alone knows what it proves; null for none. */
  continuityToken: v.nullable(v.string()),
  /** Of versions of several sources at one instant. */
  togetherId: v.nullable(v.string()),
  bytesRead: WholeNumber,
  bytesWritten: WholeNumber,
  /** Null for the newest, which is the image. */
  delta: v.nullable(v.strictObject({ sha256: Hex256, lengthBytes: WholeNumber, blocks: WholeNumber })),
});

const Fields = v.strictObject({
  sha256: Hex256,
  format: v.literal(FORMAT),
  /** The series uuid, 32 hexadecimal digits. */
  series: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  /** The highest number ever given: numbers are not used again. */
  lastNumber: VersionNumber,
  /** Null until the image has its name back: then it counts as changed by others. */
  image: v.nullable(v.strictObject({ inode: Digits, sizeBytes: WholeNumber, mtimeNs: Digits, ctimeNs: Digits })),
  versions: v.pipe(
    v.array(Version),
    v.minLength(1),
    v.check(
      (versions) => versions.every(({ number }, at) => at === 0 || number > (versions[at - 1]?.number ?? 0)),
      'versions ascend',
    ),
    v.check(
      (versions) => versions.every(({ delta }, at) => (delta === null) === (at === versions.length - 1)),
      'every version but the newest has a delta',
    ),
    v.check(
      (versions) => versions.every(({ sizeBytes }, at) => at === 0 || sizeBytes >= (versions[at - 1]?.sizeBytes ?? 0)),
      'sizes do not shrink',
    ),
  ),
});

/** With its checksum, which is checked by who reads the text. */
export const Manifest = v.pipe(
  Fields,
  v.check(
    ({ lastNumber, versions }) => lastNumber >= (versions.at(-1)?.number ?? 0),
    'lastNumber is not below a version',
  ),
);

export type SkippedRange = v.InferOutput<typeof Range>;
export type SourceIdentity = v.InferOutput<typeof Identity>;
export type VersionRecord = v.InferOutput<typeof Version>;
/** Without its own checksum, which only the encoded text has. */
export type ManifestData = Omit<v.InferOutput<typeof Manifest>, 'sha256'>;

/** The text of a manifest. */
export function encodeManifest(manifest: ManifestData): Buffer {
  return sealJson(manifest);
}

/** @throws {CowbirdError} EUCLEAN, with what is wrong; ENOTSUP for a format of a later Cowbird. */
export function decodeManifest(bytes: Buffer): ManifestData {
  const opened = openSealed(bytes);
  if (opened.problem !== undefined) throw damaged(opened.problem);
  const { parsed } = opened;
  const format = v.safeParse(v.object({ format: v.number() }), parsed);
  if (format.success && format.output.format > FORMAT)
    throw new CowbirdError('ENOTSUP', `The repository has format ${format.output.format}: use a newer Cowbird`);
  const result = v.safeParse(Manifest, parsed);
  if (!result.success) throw damaged(describeIssue(result.issues[0], 'manifest'));
  const { sha256: _, ...manifest } = result.output;
  return manifest;
}

function damaged(why: string): CowbirdError {
  return new CowbirdError('EUCLEAN', `The manifest is damaged: ${why}`, { outcome: 'failed' });
}

export interface LoadedManifest {
  manifest: ManifestData;
  /** What is wrong with `manifest` or `manifest.copy`, in words, each with its file. */
  warnings: string[];
  /** It is the copy's: the image may be of a later version than it says. */
  isFromCopy: boolean;
  /** Manifest and copy are not the same text. */
  differ: boolean;
}

/**
 * The manifest, or its copy where the first is damaged; undefined where there is neither.
 *
 * @throws {CowbirdError} EUCLEAN when both are damaged.
 */
export function loadManifest(files: RepositoryFiles): LoadedManifest | undefined {
  const first = tryLoad(files, MANIFEST);
  const copy = tryLoad(files, MANIFEST_COPY);
  const warnings = [first, copy].flatMap((loaded) => (loaded?.problem === undefined ? [] : [loaded.problem]));
  if (first?.manifest !== undefined) {
    const differ = copy?.text === undefined || !copy.text.equals(first.text);
    return { manifest: first.manifest, warnings, isFromCopy: false, differ };
  }
  if (copy?.manifest !== undefined) {
    const lost = first === undefined ? ['manifest: it is gone; its copy serves'] : warnings;
    return { manifest: copy.manifest, warnings: lost, isFromCopy: true, differ: true };
  }
  if (first === undefined && copy === undefined) return undefined;
  throw new CowbirdError(
    'EUCLEAN',
    `${files.path}: ${warnings.join('; ')}. \`image\` is the newest version, and can be copied as it is`,
    { outcome: 'failed' },
  );
}

type Loaded =
  | { manifest: ManifestData; text: Buffer; problem?: undefined }
  | { manifest?: undefined; text?: undefined; problem: string };

function tryLoad(files: RepositoryFiles, name: string): Loaded | undefined {
  if (files.witness(name) === undefined) return undefined;
  try {
    const text = readSmall(files, name);
    return { manifest: decodeManifest(text), text };
  } catch (error) {
    const isDamage = (error instanceof CowbirdError && error.code === 'EUCLEAN') || isMediumError(error);
    if (!isDamage) throw error;
    return { problem: `${name}: ${messageOf(error)}` };
  }
}

/** A file of JSON as a whole. */
export function readSmall(files: RepositoryFiles, name: string): Buffer {
  const file = files.open(name, 'read');
  try {
    const lengthBytes = file.sizeBytes();
    if (lengthBytes > MANIFEST_BYTES_MAX) throw damaged(`it has ${lengthBytes} bytes`);
    const bytes = Buffer.alloc(lengthBytes);
    const count = file.pread(bytes, 0);
    return bytes.subarray(0, count);
  } finally {
    file.close();
  }
}

/** Writes a manifest so that it is the old one or the new one: the commit. */
export function commitManifest(files: RepositoryFiles, manifest: ManifestData): void {
  replaceFile(files, MANIFEST, encodeManifest(manifest));
}

/** Writes the copy, after the commit of the same manifest. */
export function copyManifest(files: RepositoryFiles, manifest: ManifestData): void {
  replaceFile(files, MANIFEST_COPY, encodeManifest(manifest));
}

function replaceFile(files: RepositoryFiles, name: string, bytes: Buffer): void {
  if (bytes.byteLength > MANIFEST_BYTES_MAX)
    throw new CowbirdError(
      'EFBIG',
      `The manifest would have ${bytes.byteLength} bytes: drop versions with \`cowbird prune\``,
    );
  // What we could not read again must not become what others rely on.
  decodeManifest(bytes);
  const file = files.open(MANIFEST_NEW, 'create');
  try {
    file.pwrite(bytes, 0);
    file.fsync();
  } finally {
    file.close();
  }
  files.rename(MANIFEST_NEW, name);
  files.fsyncFolder('');
}
