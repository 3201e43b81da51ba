/**
 * The thread in which `update-img` copies. Its transfers are synchronous; beside it the main thread hears Ctrl-C and draws
 * the progress bar. Arguments: snapshot, image, and the COW file unless contents are to be compared.
 */
import { parentPort } from 'node:worker_threads';
import type { UpdateImageResult } from '../backup/update-from-snapshot.js';
import { codeOf, errnoOfError, messageOf } from '../sys/errors.js';

export type UpdateMessage =
  | { type: 'start'; totalBlocks: number; progressBlocks: number }
  | { type: 'progress'; doneBlocks: number }
  | { type: 'done'; result: UpdateImageResult }
  | { type: 'error'; code: string; message: string; known: boolean };

const REPORT_EVERY_MS = 100;

async function run(post: (message: UpdateMessage) => void): Promise<void> {
  const { updateImageFromSnapshot } = await import('../backup/update-from-snapshot.js');
  const [snapshot = '', image = '', cowFile] = process.argv.slice(2);
  let last = 0;
  const result = await updateImageFromSnapshot({
    snapshot,
    image,
    ...(cowFile === undefined ? { scan: true } : { cowFile }),
    onStart: (numbers) => post({ type: 'start', ...numbers }),
    onProgress: (doneBlocks) => {
      const now = Date.now();
      if (now - last < REPORT_EVERY_MS) return;
      last = now;
      post({ type: 'progress', doneBlocks });
    },
  });
  post({ type: 'done', result });
}

if (parentPort !== null) {
  const port = parentPort;
  const post = (message: UpdateMessage): void => port.postMessage(message);
  try {
    await run(post);
  } catch (error) {
    const known = error instanceof Error && 'code' in error;
    post({ type: 'error', code: codeOf(errnoOfError(error)), message: messageOf(error), known });
  }
}
