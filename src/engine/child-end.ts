/** When a child process has ended: the one place that knows of those that never ran. */
import type { ChildProcess } from 'node:child_process';

type Then = (code: number | null, signal: NodeJS.Signals | null) => void;

/**
 * Calls back once: the process is dead, reaped, and everything was heard that it had said, for a record may have been the last
 * of it. One that never ran (no memory, no descriptors, node itself was replaced) has nothing that could exit.
 */
export function whenEnded(child: ChildProcess, then: Then): void {
  child.once('exit', (code, signal) => {
    if (child.connected) child.once('disconnect', () => then(code, signal));
    else then(code, signal);
  });
  whenNeverRan(child, () => then(null, null));
}

/** Calls back when it turns out that there is no such process. */
export function whenNeverRan(child: ChildProcess, then: () => void): void {
  let isOver = false;
  child.on('error', () => {
    if (isOver || child.pid !== undefined) return;
    isOver = true;
    then();
  });
}
