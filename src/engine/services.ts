/** What the keeper does for the engine: everything that must outlive it, and everything that it may not do itself. */

import type { EventInput } from './events.js';
import type { HelperCall, HelperCalls } from './helper-calls.js';
import type { OpenedOrigin, VolumeRecord } from './records.js';

/** What a completed operation answers; `problem`: the part of it that did not succeed. */
export interface DoneOperation {
  requestId: number;
  result: unknown;
  problem?: { code: string; message: string };
}

export interface KeeperCalls {
  /** Opens and claims an origin, and makes the memory file of its volume. */
  openOrigin: { params: { path: string; readOnly: boolean; raw: boolean }; result: OpenedOrigin };
  openFuse: { params: Record<string, never>; result: { fuseFd: number } };
  openStore: { params: { path: string }; result: { storeFd: number; sizeBytes: number } };
  closeFds: { params: { fds: number[] }; result: null };
  /** `done`: with this an operation is complete; its answer, should the engine die before it is given. */
  putVolume: { params: { volume: VolumeRecord; done?: DoneOperation }; result: null };
  /** The same for several volumes at once: all of them, or none. */
  putVolumes: { params: { volumes: VolumeRecord[]; done?: DoneOperation }; result: null };
  dropVolume: { params: { id: string; done: DoneOperation | null }; result: null };
  /** Resolves when the helpers of the engine before have ended, or after a time: what they had in hand is then done. */
  oldHelpersGone: { params: Record<string, never>; result: null };
  /** Starts a helper, or takes one that rests; `protocol`: of the engine that asks. */
  startHelper: { params: { protocol: number }; result: { helper: number } };
  callHelper: { params: { helper: number; call: string; params: unknown; timeoutMs: number }; result: unknown };
  endHelper: { params: { helper: number }; result: null };
  event: { params: EventInput; result: null };
}

export type KeeperCall = keyof KeeperCalls;

/** What the keeper asks of a helper whose session has ended: to give up everything, for whoever wants one next. */
export const REST_CALL = 'rest';

/** A helper in use: one process, one call at a time, ended by `end`. */
export interface HelperSession {
  call<N extends HelperCall>(
    name: N,
    params: HelperCalls[N]['params'],
    timeoutMs?: number,
  ): Promise<HelperCalls[N]['result']>;
  end(): Promise<void>;
}

export interface Keeper {
  readonly pid: number;
  call<N extends KeeperCall>(name: N, params: KeeperCalls[N]['params']): Promise<KeeperCalls[N]['result']>;
  helper(): Promise<HelperSession>;
}

/** @default for calls of a helper */
export const HELPER_TIMEOUT_MS = 30_000;
