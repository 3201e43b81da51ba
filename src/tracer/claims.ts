/**
 * Claims of blocks: who holds one may save the block, and nobody else may meanwhile.
 *
 * A range is claimed in ascending order of its words, and whoever waits for one holds only lower ones. So nothing waits in a
 * circle, whether they are requests of different workers or of one.
 */
import type { VolumeMemory } from './layout.js';
import type { Step } from './steps.js';

const CLAIM_AWAITED = 0x1_0000;

/** Claims blocks from `from` to `last` as far as they are free; returns the first that is not claimed, `last + 1` at best. */
export function claimFree(memory: VolumeMemory, worker: number, from: number, last: number): number {
  const { words } = memory;
  let block = from;
  while (block <= last && Atomics.compareExchange(words, memory.claimWord(block), 0, worker + 1) === 0) block++;
  return block;
}

/** The step that waits for the release of a claim that somebody holds; undefined when it has changed meanwhile: try again. */
export function waitForClaim(memory: VolumeMemory, block: number): Step | undefined {
  const { words } = memory;
  const word = memory.claimWord(block);
  const owner = Atomics.load(words, word);
  if (owner === 0) return undefined;
  // Say that somebody waits, so that the release wakes.
  const awaited = owner | CLAIM_AWAITED;
  if (owner !== awaited && Atomics.compareExchange(words, word, owner, awaited) !== owner) return undefined;
  return { kind: 'wait', word, value: awaited };
}

/** Releases blocks `[first, end)`, which the caller holds. */
export function releaseClaims(memory: VolumeMemory, first: number, end: number, wake: (word: number) => void): void {
  for (let block = first; block < end; block++) {
    const word = memory.claimWord(block);
    if ((Atomics.exchange(memory.words, word, 0) & CLAIM_AWAITED) !== 0) wake(word);
  }
}
