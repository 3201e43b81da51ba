/** COW files elsewhere: the keeper opens and holds them, by a path that was looked at before. */
import { fstatSync } from 'node:fs';
import * as libc from '../sys/libc.js';
import type { EngineContext, Undo } from './context.js';
import type { StoreFile } from './helper-calls.js';
import { requireSameFile } from './helper-files.js';

export interface OpenedElsewhere {
  /** Keeper's descriptor and ours. */
  storeFd: number;
  ownFd: number;
  sizeBytes: number;
}

/** Not immutable: ext4 and others refuse writes to such a file even through an open descriptor. On failure the caller's list closes it. */
export async function openElsewhere(context: EngineContext, undo: Undo, file: StoreFile): Promise<OpenedElsewhere> {
  const { keeper } = context;
  const { storeFd, sizeBytes } = await keeper.call('openStore', { path: file.path });
  undo.add('close the store', () => keeper.call('closeFds', { fds: [storeFd] }));
  const ownFd = libc.duplicateFrom(keeper.pid, storeFd);
  undo.add('close the duplicate of the store', () => libc.close(ownFd));
  // The helper that looked at the path and the keeper that opened it may have met two files.
  requireSameFile(fstatSync(ownFd), file);
  return { storeFd, ownFd, sizeBytes };
}
