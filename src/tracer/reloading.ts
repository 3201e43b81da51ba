/**
 * Going on with a COW file that was made clean: header and index are read from where they were, and trusted only if all of
 * it agrees, the origin's fingerprint before and after included. Until then the volume is in passthrough.
 */
import type { IoBuffer } from '../block/device.js';
import { type CowHeader, decodeHeader } from '../cow/header.js';
import { CowbirdError } from '../sys/errors.js';
import { whileGateClosed } from './gate.js';
import { loadIndex, readHeaderPage, type StoreOnDevice } from './index-io.js';
import { Word } from './layout.js';
import type { Steps } from './steps.js';
import { applySwitch } from './switches.js';
import type { Tracer } from './tracer.js';

export interface ReloadParts {
  store: StoreOnDevice;
  buffer: IoBuffer;
  mode: 'incremental' | 'snapshot';
  /** Whether the free map in memory belongs to it. */
  free?: boolean;
  uuid: Uint8Array;
  sequenceId: number;
  /** What else of the header is known, and must agree. Throws with what does not. */
  requireHeader?(header: CowHeader): void;
  /** Of the origin as it is on disk, and what it was when the file became clean. */
  fingerprint(): Uint8Array;
  expectedFingerprint: Uint8Array;
  /** Places that an entry may name. */
  firstPlace: number;
  endPlace: number;
}

/** Loads the index and begins to track. @throws {CowbirdError} EINVAL with what does not agree; then nothing is tracked. */
export function* takeOver(tracer: Tracer, parts: ReloadParts): Steps {
  const { memory, hooks } = tracer;
  const { store, buffer, mode, firstPlace, endPlace } = parts;
  const expected = Buffer.from(parts.expectedFingerprint);
  const header = decodeHeader(yield* readHeaderPage(store, buffer));
  requireAgreement(header, parts);
  parts.requireHeader?.(header);
  if (
    !expected.equals(parts.fingerprint()) ||
    header.extension === undefined ||
    !expected.equals(header.extension.fingerprint)
  ) {
    throw distrust(
      'the origin was used without Cowbird since the COW file became clean, or holds what does not show that (LVM, LUKS, F2FS, FAT, NTFS, swap), so changes may be missing: begin a new series, and compare contents for its first backup',
    );
  }
  const bounds = { indexOnly: mode === 'incremental', firstPlace, endPlace };
  const found = yield* loadIndex(memory, store, buffer, bounds);
  if (found !== header.changedBlocks)
    throw distrust(`its index has ${found} entries and its header says ${header.changedBlocks}`);
  yield* whileGateClosed(
    memory,
    (word) => hooks.wake(word),
    () => {
      if (memory.get(Word.WRITTEN) !== 0 || !expected.equals(parts.fingerprint())) {
        throw distrust('the volume was written before it was reloaded: reload right after attaching');
      }
      applySwitch(memory, { kind: 'reload', mode, free: parts.free === true });
    },
  );
}

function requireAgreement(header: CowHeader, { mode, uuid, sequenceId }: ReloadParts): void {
  if (!header.clean) {
    throw distrust(
      'the COW file is unclean: the machine or the daemon ended without closing it, so changes may be missing',
    );
  }
  const headerMode = header.indexOnly ? 'incremental' : 'snapshot';
  if (headerMode !== mode) throw distrust(`the COW file is in ${headerMode} mode: use reload-${headerMode}`);
  if (!Buffer.from(header.uuid).equals(uuid) || header.sequenceId !== sequenceId) {
    throw distrust(`the COW file is of sequence ${header.sequenceId} of another series`);
  }
}

function distrust(message: string): CowbirdError {
  return new CowbirdError('EINVAL', message);
}
