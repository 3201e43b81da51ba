/** What the control thread and the workers say to each other. Everything hot goes through shared memory instead. */

import type { StoreInUse } from '../tracer/tracer.js';
import type { ArmedPoint } from './fail-points.js';

/** The store of a volume as a worker needs it: the configuration and where its device is. */
export interface WorkerStore extends StoreInUse {
  /** Descriptor and size of a store of its own; the origin's extents are written through the origin. */
  device?: { fd: number; sizeBytes: number };
}

export interface WorkerVolume {
  id: string;
  sizeBytes: number;
  blockCount: number;
  originFd: number;
  originIsFile: boolean;
  readOnly: boolean;
  memory: MappedPart[];
}

/**
 * A part of a volume's memory file, as the control thread has mapped it. Workers look at the same mapping: one of their own
 * would cost page tables for each, and count each page once more.
 */
export interface MappedPart {
  offset: number;
  lengthBytes: number;
  address: number;
}

export interface WorkerSession {
  id: string;
  volumeId: string;
  kind: 'volume' | 'snapshot';
  fd: number;
  /** How many workers may be inside this session at once. */
  concurrency: number;
}

export type ToWorker =
  | { type: 'addVolume'; volume: WorkerVolume }
  | { type: 'setStore'; volumeId: string; generation: number; store: WorkerStore | undefined }
  | { type: 'removeVolume'; volumeId: string }
  | { type: 'addSession'; session: WorkerSession }
  | { type: 'removeSession'; sessionId: string }
  /** Answered with `synced` once everything before it is in effect. */
  | { type: 'sync'; token: number }
  /** Tests only; see `fail-points.ts`. */
  | { type: 'failPoint'; point: ArmedPoint }
  | { type: 'stop' };

export type FromWorker =
  | { type: 'ready'; ioFlusher: boolean }
  | { type: 'synced'; worker: number; token: number }
  | { type: 'attention'; volumeId: string; cause: string | undefined }
  | { type: 'ended'; sessionId: string }
  | { type: 'ioError'; sessionId: string; operation: string; errno: number; message: string }
  | { type: 'stopped' };

export interface WorkerStart {
  number: number;
  /** Written by the control thread after it has posted a message. */
  wakeFd: number;
}
