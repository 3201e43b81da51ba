/** What a seed makes of the world: sizes, how many of each, what goes wrong how often. */
import type { DiskOptions, Faults, Random } from './disk.js';
import { NO_FAULTS } from './disk.js';

export interface Scenario {
  readonly sectors: number;
  readonly workers: number;
  readonly clients: number;
  readonly requests: number;
  /** Longest run that is copied in one go. */
  readonly scratchBlocks: number;
  readonly disk: DiskOptions;
  readonly storeKind: 'origin' | 'device';
  /** Blocks of a store's data region. */
  readonly slots: number;
  readonly originFaults: Faults;
  readonly storeFaults: Faults;
  /** In 100,000 turns. */
  readonly killRate: number;
  readonly powerRate: number;
  readonly hasForeignWrites: boolean;
}

export function scenarioOf(random: Random): Scenario {
  const blocks = 60 + random(80);
  const hasFaults = random(4) === 0;
  const faults = (): Faults => (hasFaults ? { read: random(100), write: random(200), flush: random(400) } : NO_FAULTS);
  return {
    sectors: blocks * 8 + (random(2) === 0 ? 0 : 1 + random(7)),
    workers: 1 + random(4),
    clients: 2 + random(7),
    requests: 60 + random(240),
    scratchBlocks: 9 + random(12),
    disk: { hasHoles: random(2) === 0, refusesUnmap: random(3) === 0, slowPercent: random(2) === 0 ? 20 : 60 },
    storeKind: random(4) === 0 ? 'device' : 'origin',
    slots: random(3) === 0 ? 2 + random(8) : 16 + random(60),
    originFaults: faults(),
    storeFaults: faults(),
    killRate: random(3) === 0 ? 0 : random(400),
    powerRate: random(2) === 0 ? 0 : random(60),
    hasForeignWrites: random(4) === 0,
  };
}
