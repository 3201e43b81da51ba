/** Writing and removing files of the system's configuration, and never one that is not ours: each begins with our comment. */
import {
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { CowbirdError, errnoOfError } from '../../sys/errors.js';

const ENOENT = 2;
const EISDIR = 21;
const ENOTEMPTY = 39;

/** First line of every file that is ours. */
export const OURS = '# Written by `cowbird attach --boot`; `cowbird detach --boot` removes it.';

export type BootFile = { path: string; text: string } | { path: string; target: string };

/** Whose a path is. */
export function ownerOf(path: string): 'nobody' | 'ours' | 'other' {
  try {
    if (lstatSync(path).isSymbolicLink()) return readlinkSync(path).startsWith('../cowbird-attach-') ? 'ours' : 'other';
    return readFileSync(path, 'utf8').split('\n')[0] === OURS ? 'ours' : 'other';
  } catch (error) {
    if (errnoOfError(error) === ENOENT) return 'nobody';
    if (errnoOfError(error) === EISDIR) return 'other';
    throw error;
  }
}

/** @throws {CowbirdError} EEXIST where one of them is somebody else's. */
export function refuseForeign(files: readonly BootFile[]): void {
  for (const { path } of files) {
    if (ownerOf(path) !== 'other') continue;
    throw new CowbirdError(
      'EEXIST',
      `${path} exists and was not written by \`cowbird attach --boot\`: move it away, or give another name with --name`,
    );
  }
}

/** Writes all of them or none; returns those that were not so already, and how to undo it. */
export function writeFiles(files: readonly BootFile[]): { written: string[]; undo: () => void } {
  const steps: Array<() => void> = [];
  const undo = (): void => {
    for (const step of steps.reverse()) step();
  };
  const missing = files.filter((file) => !isThere(file));
  try {
    for (const file of missing) {
      const folder = dirname(file.path);
      // The topmost folder that was made, or nothing.
      const made = mkdirSync(folder, { recursive: true, mode: 0o755 });
      if (made !== undefined) steps.push(() => removeFolders(folder, dirname(made)));
      steps.push(restorer(file.path));
      put(file);
    }
    return { written: missing.map(({ path }) => path), undo };
  } catch (error) {
    undo();
    throw error;
  }
}

function isThere(file: BootFile): boolean {
  if (ownerOf(file.path) === 'nobody') return false;
  if (lstatSync(file.path).isSymbolicLink()) return 'target' in file && readlinkSync(file.path) === file.target;
  return 'text' in file && readFileSync(file.path, 'utf8') === file.text;
}

/** Beside it first, then renamed: whoever reads it meanwhile has the old one or the new one. */
function put(file: BootFile): void {
  const aside = `${file.path}.cowbird-new`;
  rmSync(aside, { force: true });
  try {
    if ('target' in file) symlinkSync(file.target, aside);
    else writeFileSync(aside, file.text, { mode: 0o644, flush: true });
    renameSync(aside, file.path);
  } catch (error) {
    rmSync(aside, { force: true });
    throw error;
  }
}

function restorer(path: string): () => void {
  if (ownerOf(path) === 'nobody') return () => removeFile(path);
  if (lstatSync(path).isSymbolicLink()) {
    const target = readlinkSync(path);
    return () => put({ path, target });
  }
  const text = readFileSync(path, 'utf8');
  return () => put({ path, text });
}

/** Removes a file, and its folder where that is one of systemd's for additions to a unit and is empty then. */
export function removeFile(path: string): void {
  rmSync(path, { force: true });
  const folder = dirname(path);
  if (/\.(wants|mount\.d)$/.test(folder)) removeFolders(folder, dirname(folder));
}

/** Removes a folder and those above it, up to `end`, as long as they are empty. */
function removeFolders(folder: string, end: string): void {
  for (let at = folder; at !== end; at = dirname(at)) {
    try {
      rmdirSync(at);
    } catch (error) {
      if (![ENOENT, ENOTEMPTY].includes(errnoOfError(error))) throw error;
      return;
    }
  }
}
