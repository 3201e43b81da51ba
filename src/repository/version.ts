/** A version that is open for reading: image, checksums and the deltas between it and the image, their structure checked. */
import { CowFormatError } from '../cow/errors.js';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { type Delta, openDelta, shapeOf, zeroBlockIsZero } from './delta.js';
import type { RepositoryFiles, WritableFile } from './files.js';
import type { JobFiles } from './jobs-common.js';
import { CHECKSUMS, deltaName, IMAGE } from './layout.js';
import type { ManifestData, VersionRecord } from './manifest.js';
import { seriesBytes } from './state.js';
import type { ViewShape } from './view.js';

export interface OpenVersion {
  readonly record: VersionRecord;
  readonly view: ViewShape;
  readonly deltas: readonly Delta[];
  /** Image, checksums and chain, for jobs. */
  readonly files: Required<Pick<JobFiles, 'image' | 'checksums' | 'chain'>>;
  close(): void;
}

/**
 * Opens a version for reading.
 *
 * @throws {CowbirdError} EUCLEAN when a delta between it and the image is damaged or gone.
 */
export function openVersion(files: RepositoryFiles, manifest: ManifestData, record: VersionRecord): OpenVersion {
  const opened: WritableFile[] = [];
  const open = (name: string): WritableFile => {
    const file = files.open(name, 'read');
    opened.push(file);
    return file;
  };
  const close = (): void => {
    for (const file of opened) file.close();
  };
  try {
    const image = open(IMAGE);
    const checksums = open(CHECKSUMS);
    const later = manifest.versions.filter(({ number, delta }) => number >= record.number && delta !== null);
    const deltas = later.map((version) => openListed(files, manifest, version, open));
    const view = { sizeBytes: record.sizeBytes, chain: deltas.map(shapeOf) };
    return { record, view, deltas, files: { image, checksums, chain: deltas.map(({ file }) => file) }, close };
  } catch (error) {
    close();
    throw error;
  }
}

/** A delta that is the one of the manifest. @throws {CowbirdError} EUCLEAN, saying what is wrong with it. */
export function openListed(
  files: RepositoryFiles,
  manifest: ManifestData,
  version: VersionRecord,
  open: (name: string) => WritableFile,
): Delta {
  const name = deltaName(version.number);
  try {
    const delta = openDelta(open(name), version.number, seriesBytes(manifest));
    const next = manifest.versions[manifest.versions.indexOf(version) + 1];
    if (delta.digest !== version.delta?.sha256)
      throw new CowFormatError('ECOWSIZE', 'SHA-256', delta.digest, 'that of the manifest');
    if (delta.nextVersion !== next?.number)
      throw new CowFormatError('ECOWSEQUENCE', 'next version', delta.nextVersion, `${next?.number}`);
    if (!zeroBlockIsZero(delta.file, shapeOf(delta)))
      throw new CowFormatError('ECOWENTRY', 'block of zeros', 'not zero', 'zeros');
    return delta;
  } catch (error) {
    const isGone = codeOf(errnoOfError(error)) === 'ENOENT';
    if (!isGone && !(error instanceof CowFormatError)) throw error;
    const what = isGone ? 'is gone' : `is damaged (${messageOf(error)})`;
    throw new CowbirdError(
      'EUCLEAN',
      `${files.path}: ${name} ${what}: version ${version.number} and those before it cannot be read`,
      { outcome: 'failed' },
    );
  }
}
