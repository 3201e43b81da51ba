/**
 * Versions of several repositories at one instant: all of them count, or none. What makes it so is one file in each of them,
 * `together/<id>.json`, that is durable before the first of the manifests is committed: who the others are, and the manifest
 * with which this one counts. The first repository of the list decides: its manifest is the commit of all.
 *
 * What a repository with such a file finds when it is opened, the process that wrote it being gone (it had the locks of all
 * until its end, so no commit can follow any more):
 *
 *     own manifest       the others                                    what is done
 *     has the version    it is the first; one still has its file       the file stays: that one may ask
 *     has the version    else                                          the file is removed
 *     has it not         some other has the version                    rolled forward: the file's manifest is committed
 *     has it not         the first is there, and has it not            rolled back
 *     has it not         it is the first                               rolled back
 *     has it not         the first cannot be found, no other has it    EUCLEAN: nobody here knows
 *
 * "Has the version" is also said by the file of another repository that has had the version and dropped it since: numbers are
 * not used again. Before such a word is acted on, the other's folder is made durable: a power cut must not take it back. A file
 * that is not whole was never finished, so that no manifest was committed: it is removed, and the update rolled back.
 */
import * as v from 'valibot';
import { CowbirdError } from '../sys/errors.js';
import type { RepositoryFiles } from './files.js';
import { TOGETHER, togetherName } from './layout.js';
import { loadManifest, Manifest, type ManifestData, readSmall } from './manifest.js';
import { openSealed, sealJson } from './sealed-json.js';

const FILE_NAME = /^([0-9a-f]{32})\.json$/;
const FORMAT = 1;

const Fields = v.strictObject({
  sha256: v.string(),
  format: v.literal(FORMAT),
  id: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  /** Which of the repositories has this file. */
  self: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
  /** All of them; the first decides. */
  repositories: v.pipe(v.array(v.strictObject({ path: v.string(), series: v.string() })), v.minLength(1)),
  /** As a text of its own: its SHA-256 is part of it. */
  manifest: v.looseObject({}),
});

export interface TogetherRecord {
  id: string;
  self: number;
  repositories: Array<{ path: string; series: string }>;
  manifest: ManifestData;
}

/** `keep`: nothing to do, the file has to stay. `settled`: the file is removed. */
export type Decision = 'forward' | 'back' | 'settled' | 'keep';

export interface UnsettledInstant {
  /** Its file. */
  name: string;
  decision: Decision;
  /** Undefined where the file is not whole. */
  record: TogetherRecord | undefined;
}

/** Writes the file, durably. */
export function writeRecord(files: RepositoryFiles, record: TogetherRecord): void {
  files.makeFolder(TOGETHER);
  files.fsyncFolder('');
  const file = files.open(togetherName(record.id), 'create');
  try {
    file.pwrite(sealJson({ format: FORMAT, ...record }), 0);
    file.fsync();
  } finally {
    file.close();
  }
  files.fsyncFolder(TOGETHER);
}

/** Removes the file, durably. */
export function removeRecord(files: RepositoryFiles, name: string): void {
  files.unlink(name);
  files.fsyncFolder(TOGETHER);
}

/** The file of an instant; undefined where it is not whole, or not there. */
function readRecord(files: RepositoryFiles, name: string): TogetherRecord | undefined {
  if (files.witness(name) === undefined) return undefined;
  const opened = openSealed(readSmall(files, name));
  if (opened.problem !== undefined) return undefined;
  const fields = v.safeParse(Fields, opened.parsed);
  if (!fields.success) return undefined;
  const { id, self, repositories } = fields.output;
  const manifest = v.safeParse(Manifest, { ...fields.output.manifest, sha256: '0'.repeat(64) });
  if (!manifest.success) return undefined;
  const { sha256: _, ...data } = manifest.output;
  return { id, self, repositories, manifest: data };
}

/** Whether a manifest is, or follows, the one that the record was written for. */
function hasCommitted(manifest: ManifestData | undefined, record: TogetherRecord): boolean {
  return manifest?.series === record.manifest.series && manifest.lastNumber >= record.manifest.lastNumber;
}

/**
 * The instants that this repository has files of, and what is to be done about each.
 *
 * @throws {CowbirdError} EUCLEAN where only a repository knows that cannot be found.
 */
export function unsettledInstants(files: RepositoryFiles, manifest: ManifestData | undefined): UnsettledInstant[] {
  const names = (files.list(TOGETHER) ?? []).filter((name) => FILE_NAME.test(name));
  return names.map((file) => {
    const name = `${TOGETHER}/${file}`;
    const record = readRecord(files, name);
    return { name, record, decision: record === undefined ? 'back' : decide(files, manifest, record) };
  });
}

function decide(files: RepositoryFiles, manifest: ManifestData | undefined, record: TogetherRecord): Decision {
  const others = record.repositories.filter((_, i) => i !== record.self);
  if (hasCommitted(manifest, record)) {
    const isAsked =
      record.self === 0 && !others.every(({ path, series }) => isSettled(files.other(path), series, record));
    return isAsked ? 'keep' : 'settled';
  }
  if (record.self === 0) return 'back';
  const answers = others.map(({ path, series }) => answerOf(files.other(path), series, record.id));
  if (answers.includes('committed')) return 'forward';
  // The first of the others is the first of all.
  if (answers[0] === 'not') return 'back';
  const first = record.repositories[0]?.path;
  throw new CowbirdError(
    'EUCLEAN',
    `${files.path}: a version was being made together with one in ${first}, which alone knows whether they count, and cannot be found: make it accessible there, and run this again. Or remove ${files.path}/${togetherName(record.id)} to go on without that version`,
  );
}

/** What another repository says of an instant. */
function answerOf(other: RepositoryFiles, series: string, id: string): 'committed' | 'not' | 'unknown' {
  const names = other.list('');
  // An empty directory is where a disk was, or will be, mounted.
  if (names === undefined || names.length === 0) return 'unknown';
  const manifest = manifestOf(other);
  const record = readRecord(other, togetherName(id));
  const isNamed = manifest?.series === series && manifest.versions.some(({ togetherId }) => togetherId === id);
  if (!isNamed && !(record !== undefined && hasCommitted(manifest, record))) {
    // Without a manifest it is one whose first version was taken back, or somebody's directory.
    const isRepository = manifest !== undefined || record !== undefined || names.includes(TOGETHER);
    return isRepository ? 'not' : 'unknown';
  }
  other.fsyncFolder('');
  return 'committed';
}

/** A repository whose manifests are both damaged says nothing. */
function manifestOf(files: RepositoryFiles): ManifestData | undefined {
  try {
    return loadManifest(files)?.manifest;
  } catch (error) {
    if (error instanceof CowbirdError && error.code === 'EUCLEAN') return undefined;
    throw error;
  }
}

/** Whether another repository will not ask any more. */
function isSettled(other: RepositoryFiles, series: string, { id }: TogetherRecord): boolean {
  return manifestOf(other)?.series === series && other.witness(togetherName(id)) === undefined;
}
