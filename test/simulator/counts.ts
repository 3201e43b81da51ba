/** What happened in a run, to see that it was worth it. */
export interface Counts {
  kills: number;
  /** Switches that a death cut off, made whole by the next engine. */
  halfSwitches: number;
  powerLosses: number;
  reloads: number;
  /** Series that were not trusted. */
  refusals: number;
  /** Operations that failed before their switch. */
  undone: number;
  /** Snapshots that were found failed. */
  failures: number;
  /** Switches by kind. */
  kinds: Record<string, number>;
}

export function emptyCounts(): Counts {
  return { kills: 0, halfSwitches: 0, powerLosses: 0, reloads: 0, refusals: 0, undone: 0, failures: 0, kinds: {} };
}

export function addCounts(sum: Counts, more: Counts): void {
  for (const [kind, count] of Object.entries(more.kinds)) sum.kinds[kind] = (sum.kinds[kind] ?? 0) + count;
  sum.kills += more.kills;
  sum.halfSwitches += more.halfSwitches;
  sum.powerLosses += more.powerLosses;
  sum.reloads += more.reloads;
  sum.refusals += more.refusals;
  sum.undone += more.undone;
  sum.failures += more.failures;
}
