/** Writes `man/`, `docs/manual/` and `docs/events.md` from `spec/`: `node dist/src/cli/generate-man.js`. A test compares them with what is committed. */
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { VERSION } from '../version.js';
import { COWBIRD } from './spec/cowbird.js';
import { DBDCTL, ELIOCTL } from './spec/drivers.js';
import { eventsPage } from './spec/events-page.js';
import { manPage } from './spec/man.js';
import { manualPages } from './spec/markdown.js';
import { UPDATE_IMG } from './spec/update-img.js';

/** Directory of the manual's pages: holds nothing else. */
export const MANUAL_DIR = 'docs/manual';

/** Every generated file, by its path in the project. */
export function generatedFiles(): Map<string, string> {
  const files = new Map<string, string>();
  for (const program of [COWBIRD, DBDCTL, ELIOCTL, UPDATE_IMG])
    files.set(`man/${program.name}.8`, manPage(program, VERSION));
  for (const [name, text] of manualPages(COWBIRD)) files.set(`${MANUAL_DIR}/${name}`, text);
  files.set('docs/events.md', eventsPage());
  return files;
}

/** The project that this file was built in, or the working directory. */
export function projectRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'package.json'))) {
    if (directory === dirname(directory)) return process.cwd();
    directory = dirname(directory);
  }
  return directory;
}

function writeAll(root: string): void {
  const files = generatedFiles();
  for (const [path, text] of files) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  for (const name of readdirSync(join(root, MANUAL_DIR))) {
    if (!files.has(`${MANUAL_DIR}/${name}`)) rmSync(join(root, MANUAL_DIR, name));
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeAll(projectRoot());
