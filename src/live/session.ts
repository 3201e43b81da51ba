/** One user's tracking of one device, while a process has it. */
import { closeSync } from 'node:fs';
import { assert } from '../sys/errors.js';
import { BLOCK_BYTES, type BlockBitmap } from './bitmap.js';
import { type DeviceView, viewOfNumber } from './device-view.js';
import { type KernelMap, PAGE_BYTES } from './kernel-map.js';
import { addPage, type DiskPlaces, distribute } from './moves.js';
import { withLock } from './places.js';
import type { ContinuityToken, LiveTracking } from './tracking.js';
import type { UserSet, UserState } from './user-set.js';

interface Opened {
  view: DeviceView;
  number: string;
  places: DiskPlaces;
  map: KernelMap;
  set: UserSet;
  lockFd: number;
}

export class TrackingSession implements LiveTracking {
  readonly sizeBytes: number;
  readonly blockCount: number;
  readonly #opened: Opened;
  readonly #bits = new Uint32Array(PAGE_BYTES / 4);
  #doubt: string | undefined;
  #isOpen = true;

  constructor(opened: Opened) {
    this.#opened = opened;
    this.sizeBytes = opened.view.sizeBytes;
    this.blockCount = Math.ceil(this.sizeBytes / BLOCK_BYTES);
  }

  get token(): ContinuityToken {
    return tokenOf(this.#opened.set.state, 'mark');
  }

  get next(): ContinuityToken {
    return tokenOf(this.#opened.set.state, 'attempt');
  }

  take(into: BlockBitmap, without?: ReadonlySet<string>): number {
    this.#requireOpen();
    const { map, places, set, view } = this.#opened;
    return withLock(places.lock, () => {
      distribute(map, places, without);
      let added = 0;
      for (let page = set.pending.next(0); page < map.pageCount; page = set.pending.next(page + 1))
        if (set.takePage(page, this.#bits)) added += addPage(into, view, page, this.#bits);
      return added;
    });
  }

  overNotes(): ReadonlySet<string> {
    this.#requireOpen();
    return this.#opened.map.overNotes();
  }

  doubt(): string | undefined {
    this.#requireOpen();
    const { map, number, set, view } = this.#opened;
    this.#doubt ??= changeOf(view, viewOfNumber(number)) ?? map.doubtSince(set.state.baseline);
    return this.#doubt;
  }

  commit(): ContinuityToken {
    this.#requireOpen();
    this.#opened.set.commit();
    return this.token;
  }

  abandon(): void {
    this.#requireOpen();
    withLock(this.#opened.places.lock, () => this.#opened.set.abandon());
  }

  close(): void {
    this.#requireOpen();
    this.#isOpen = false;
    const { map, set, lockFd } = this.#opened;
    set.close();
    map.close();
    closeSync(lockFd);
  }

  /** The map's memory is not there any more afterwards: reading it would end the process. */
  #requireOpen(): void {
    assert(this.#isOpen, 'tracking is used until it is closed, and closed once');
  }
}

function tokenOf(state: UserState, which: 'mark' | 'attempt'): ContinuityToken {
  return {
    bootId: state.bootId,
    device: state.device,
    sizeBytes: state.sizeBytes,
    mapId: state.mapId,
    user: state.user,
    generation: state.generation + (which === 'attempt' ? 1 : 0),
    mark: state[which],
  };
}

/** What became of a device since it was looked at; undefined when it is as it was. */
export function changeOf(
  before: Pick<DeviceView, 'identity' | 'sizeBytes'>,
  now: DeviceView | undefined,
): string | undefined {
  if (now === undefined) return `the disk is gone (${before.identity})`;
  if (now.identity !== before.identity)
    return `${now.node} is another disk, medium or partition than before (${now.identity}, was ${before.identity})`;
  if (now.sizeBytes !== before.sizeBytes)
    return `${now.node} was resized from ${before.sizeBytes} to ${now.sizeBytes} bytes`;
  return undefined;
}
