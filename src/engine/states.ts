/**
 * The states of a tracked volume and what each event does in each of them, as data.
 *
 * `state` as users see it is dattobd's: SNAPSHOT 1 + ACTIVE 2 + UNVERIFIED 4; a failure is a number of its own beside it.
 * An event that a row does not name is refused with the errno given for it, and nothing changes.
 */

export const SNAPSHOT_BIT = 1;
export const ACTIVE_BIT = 2;
export const UNVERIFIED_BIT = 4;

export type StateName =
  | 'none'
  | 'dormantIncremental'
  | 'dormantSnapshot'
  | 'activeIncremental'
  | 'activeSnapshot'
  | 'unverifiedIncremental'
  | 'unverifiedSnapshot'
  | 'failedIncremental'
  | 'failedSnapshot';

export type EventName =
  | 'setupSnapshot'
  | 'reloadSnapshot'
  | 'reloadIncremental'
  | 'mounted'
  | 'unmounted'
  | 'transitionToIncremental'
  | 'transitionToSnapshot'
  | 'reconfigure'
  | 'expandCowFile'
  | 'reconfigureAutoExpand'
  | 'failure'
  | 'destroy';

/** The state after an event, or the name of the errno with which it is refused. */
export type Transition = { to: StateName } | { refuse: 'ENOENT' | 'EBUSY' | 'EINVAL' };

const to = (state: StateName): Transition => ({ to: state });
const refuse = (code: 'ENOENT' | 'EBUSY' | 'EINVAL'): Transition => ({ refuse: code });

const IN_USE = {
  setupSnapshot: refuse('EBUSY'),
  reloadSnapshot: refuse('EBUSY'),
  reloadIncremental: refuse('EBUSY'),
  destroy: to('none'),
} as const;

/** Every state × every event. */
export const STATE_TABLE: Readonly<Record<StateName, Readonly<Record<EventName, Transition>>>> = {
  none: {
    setupSnapshot: to('activeSnapshot'),
    reloadSnapshot: to('unverifiedSnapshot'),
    reloadIncremental: to('unverifiedIncremental'),
    mounted: to('none'),
    unmounted: to('none'),
    transitionToIncremental: refuse('ENOENT'),
    transitionToSnapshot: refuse('ENOENT'),
    reconfigure: refuse('ENOENT'),
    expandCowFile: refuse('ENOENT'),
    reconfigureAutoExpand: refuse('ENOENT'),
    failure: to('none'),
    destroy: refuse('ENOENT'),
  },
  activeSnapshot: {
    ...IN_USE,
    mounted: to('activeSnapshot'),
    unmounted: to('dormantSnapshot'),
    transitionToIncremental: to('activeIncremental'),
    transitionToSnapshot: refuse('EINVAL'),
    reconfigure: to('activeSnapshot'),
    expandCowFile: to('activeSnapshot'),
    reconfigureAutoExpand: to('activeSnapshot'),
    failure: to('failedSnapshot'),
  },
  activeIncremental: {
    ...IN_USE,
    mounted: to('activeIncremental'),
    unmounted: to('dormantIncremental'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: to('activeSnapshot'),
    reconfigure: to('activeIncremental'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('failedIncremental'),
  },
  dormantSnapshot: {
    ...IN_USE,
    mounted: to('activeSnapshot'),
    unmounted: to('dormantSnapshot'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: refuse('EINVAL'),
    reconfigure: to('dormantSnapshot'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('failedSnapshot'),
  },
  dormantIncremental: {
    ...IN_USE,
    mounted: to('activeIncremental'),
    unmounted: to('dormantIncremental'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: refuse('EINVAL'),
    reconfigure: to('dormantIncremental'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('failedIncremental'),
  },
  unverifiedSnapshot: {
    ...IN_USE,
    mounted: to('activeSnapshot'),
    unmounted: to('unverifiedSnapshot'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: refuse('EINVAL'),
    reconfigure: to('unverifiedSnapshot'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('unverifiedSnapshot'),
  },
  unverifiedIncremental: {
    ...IN_USE,
    mounted: to('activeIncremental'),
    unmounted: to('unverifiedIncremental'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: refuse('EINVAL'),
    reconfigure: to('unverifiedIncremental'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('unverifiedIncremental'),
  },
  failedSnapshot: {
    ...IN_USE,
    mounted: to('failedSnapshot'),
    unmounted: to('failedSnapshot'),
    transitionToIncremental: refuse('EINVAL'),
    // The change map went on: the next snapshot's old COW file lists everything.
    transitionToSnapshot: to('activeSnapshot'),
    reconfigure: refuse('EINVAL'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('failedSnapshot'),
  },
  failedIncremental: {
    ...IN_USE,
    mounted: to('failedIncremental'),
    unmounted: to('failedIncremental'),
    transitionToIncremental: refuse('EINVAL'),
    transitionToSnapshot: to('activeSnapshot'),
    reconfigure: refuse('EINVAL'),
    expandCowFile: refuse('EINVAL'),
    reconfigureAutoExpand: refuse('EINVAL'),
    failure: to('failedIncremental'),
  },
};

export interface StateFacts {
  mode: 'snapshot' | 'incremental';
  unverified: boolean;
  /** Somewhere mounted read-write, or a volume without a file system in use. */
  active: boolean;
  failed: boolean;
}

/** The row of the table for what is so. */
export function stateName(facts: StateFacts): StateName {
  const suffix = facts.mode === 'snapshot' ? 'Snapshot' : 'Incremental';
  // Unverified first: whatever failed, its list of changes was never proved whole, so no next snapshot may stand on it.
  if (facts.unverified) return `unverified${suffix}`;
  if (facts.failed) return `failed${suffix}`;
  return facts.active ? `active${suffix}` : `dormant${suffix}`;
}

/** dattobd's number for what is so. */
export function stateNumber(facts: StateFacts): number {
  const snapshot = facts.mode === 'snapshot' ? SNAPSHOT_BIT : 0;
  if (facts.unverified) return snapshot + UNVERIFIED_BIT;
  return snapshot + (facts.active ? ACTIVE_BIT : 0);
}
