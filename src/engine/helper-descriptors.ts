/** Descriptors of the keeper, as a helper uses them. */
import { CowbirdError } from '../sys/errors.js';
import * as libc from '../sys/libc.js';

/** Whoever adopts this process when the keeper dies is not the keeper. */
const KEEPER_PID = process.ppid;

/** A duplicate of one of the keeper's, for the length of an action: none stays open here. The keeper is our parent. */
export function withKeepers<T>(keepersFd: number, action: (fd: number) => T): T {
  if (process.ppid !== KEEPER_PID)
    throw new CowbirdError('ESRCH', `The keeper (pid ${KEEPER_PID}) has ended`, { outcome: 'failed' });
  const fd = libc.duplicateFrom(KEEPER_PID, keepersFd);
  try {
    return action(fd);
  } finally {
    libc.close(fd);
  }
}

/** Part of one of the keeper's memory files, mapped for the length of an action: no view of it may live longer. */
export function whileMapped<T>(
  keepersFd: number,
  offset: number,
  lengthBytes: number,
  action: (bytes: ArrayBuffer) => T,
): T {
  const mapping = withKeepers(keepersFd, (fd) => libc.mapShared(fd, offset, lengthBytes));
  try {
    return action(mapping.bytes);
  } finally {
    libc.unmap(mapping);
  }
}
