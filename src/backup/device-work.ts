/** What the process of a device gives its thread (device-main.ts, device-worker.ts). */
import type { ViewShape } from '../repository/view.js';
import type { PageFileHandle } from '../sys/page-file.js';

/** What the thread is to do. */
export const Phase = {
  /** Nothing yet: a FUSE descriptor that is not mounted cannot be waited for. */
  WAIT: 0,
  SERVE: 1,
  END: 2,
} as const;

export interface DeviceWork {
  fuseFd: number;
  writable: boolean;
  sizeBytes: number;
  /** Shared: one {@link Phase}. */
  phase: Int32Array;
  base:
    | { kind: 'file'; file: PageFileHandle }
    | {
        kind: 'version';
        shape: ViewShape;
        image: PageFileHandle;
        checksums: PageFileHandle;
        chain: PageFileHandle[];
      };
}
