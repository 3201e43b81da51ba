/**
 * Waiting for what has a node for a moment: udev and blkid open whatever is new, and who begins a mount namespace has every mount with
 * him. Only what is still there after a while is a reason to refuse.
 */
import { setTimeout as sleep } from 'node:timers/promises';

const VISITORS_WAIT_MS = 2_000;
const LOOK_AGAIN_MS = 20;

/**
 * Looks until nothing is found any more, and one last time at the end of the wait. Returns what then is still there; at once, where it is
 * found to be no visitor.
 */
export async function outwait<T>(
  look: () => T | undefined | Promise<T | undefined>,
  { waitMs = VISITORS_WAIT_MS, isVisitor = () => true }: { waitMs?: number; isVisitor?: (found: T) => boolean } = {},
): Promise<T | undefined> {
  const deadline = performance.now() + waitMs;
  for (;;) {
    const isLast = performance.now() > deadline;
    const found = await look();
    if (found === undefined || isLast || !isVisitor(found)) return found;
    await sleep(LOOK_AGAIN_MS);
  }
}
