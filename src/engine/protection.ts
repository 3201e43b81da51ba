/**
 * What keeps memory pressure away from the daemon: out of limited memory groups, last in line for the OOM killer, and with
 * its program text locked. All of it as far as the system allows; what it does not allow is reported once.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { groupsOf, leaveMemoryLimit, memoryLimitOf } from '../sys/cgroup.js';
import { messageOf } from '../sys/errors.js';
import * as libc from '../sys/libc.js';
import { type FileRange, programText } from '../sys/maps.js';
import type { EventInput } from './events.js';

/** With this in the daemon's environment it stays in the memory group that it is put into, whatever comes of it. */
const STAYS = process.env['COWBIRD_KEEP_CGROUP'] === '1';
/**
 * In this time a worker of an engine that was put into a full group may be caught. Measured with an engine that was put, over
 * and over, into a group whose pages were all dirty: 2 of 95 times with 100 ms, 1 of 254 with 20 ms, which cost 1 % of a CPU.
 */
const LOOK_MS = 50;
/** Every so many looks also at limits that were set for groups that they are in already. */
const LIMIT_LOOKS = 20;
/** Never killed for memory: its end is an I/O error for every volume. */
const KEEPER_OOM_SCORE = -1000;
/** Killed last: its end is a pause; a group in which nothing at all may be killed would hang instead. */
const ENGINE_OOM_SCORE = -999;
const PIECE_BYTES = 1_048_576;
/** The text is locked whole where it is at most this part of the memory that there is. */
const TEXT_PART_MAX = 1 / 8;

type Report = (event: EventInput) => void;

/** Of the keeper, before it starts anything: what it sets here its children inherit. */
export function protectKeeper(report: Report): void {
  libc.trySetIoFlusher();
  setOomScore(KEEPER_OOM_SCORE);
  if (!STAYS) leave(process.pid, 'daemon', report);
}

/** Of the engine's control thread. Its workers do their own part. */
export function protectEngine(): void {
  libc.trySetIoFlusher();
  setOomScore(ENGINE_OOM_SCORE);
}

/** Root without CAP_SYS_RESOURCE may raise a score and never lower it: then it stays as it is. */
function setOomScore(score: number): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', `${score}`);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && (error.code === 'EACCES' || error.code === 'EPERM')))
      throw error;
  }
}

/**
 * Keeps keeper and engine out of limited groups, whoever puts them there. The keeper looks for both: an engine that is
 * caught already, waiting for a page of a volume that it serves itself, could not.
 */
export class GroupGuard {
  readonly #report: Report;
  readonly #enginePid: () => number | null;
  /** Where each was found, once it was seen to that no group there limits it. */
  readonly #seen = new Map<'keeper' | 'engine', string>();
  #looks = 0;

  constructor(enginePid: () => number | null, report: Report) {
    this.#report = report;
    this.#enginePid = enginePid;
    if (!STAYS) setInterval(() => this.#look(), LOOK_MS).unref();
  }

  /** Before a process is started: what that takes is charged to the keeper's group, and in a full one it could wait for ever. */
  leaveNow(): void {
    if (!STAYS) leave(process.pid, 'keeper', this.#report);
  }

  #look(): void {
    const isDue = ++this.#looks % LIMIT_LOOKS === 0;
    this.#lookAt('keeper', process.pid, isDue);
    const pid = this.#enginePid();
    if (pid !== null) this.#lookAt('engine', pid, isDue);
  }

  #lookAt(who: 'keeper' | 'engine', pid: number, isDue: boolean): void {
    if (!isDue && groupsOf(pid) === this.#seen.get(who)) return;
    leave(pid, who, this.#report);
    this.#seen.set(who, groupsOf(pid) ?? '');
  }
}

const refusals = new Set<string>();

/** What the kernel does not allow is reported once for each group. */
function leave(pid: number, who: string, report: Report): void {
  try {
    const left = leaveMemoryLimit(pid);
    if (left === undefined) return;
    const message = `The ${who} has left the memory group ${left.group} (limit ${left.limitBytes} bytes): in there, memory pressure could make it wait for its own volumes`;
    report({ event: 'memory.group', level: 'warning', message });
  } catch (error) {
    // A process that has ended needs nothing.
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH')) return;
    const message = `The ${who} is in a limited memory group and cannot leave it: ${messageOf(error)}. \`cowbird doctor\` says more`;
    if (refusals.has(message)) return;
    refusals.add(message);
    report({ event: 'memory.group', level: 'warning', message });
  }
}

/**
 * Locks this process's program text, in pieces, so that nothing waits long for it.
 *
 * First so that every page stays once it is there (no I/O, no memory), then, where there is room, every page at once, so
 * that a path which is taken for the first time under memory pressure need not be read from a disk. Where the memory is
 * small the first has to do: the whole text is some 90 MiB, which a small group would pay for with an OOM kill.
 */
export async function lockProgramText(report: Report): Promise<void> {
  const text = programText(readFileSync('/proc/self/maps', 'utf8'));
  const refused = text.filter(({ address, lengthBytes }) => !libc.tryLockOnFault(address, lengthBytes));
  if (refused.length > 0) {
    const message = `${refused.length} of ${text.length} parts of the program could not be locked in memory (${refused[0]?.path}): give the daemon CAP_IPC_LOCK, or LimitMEMLOCK=infinity`;
    report({ event: 'memory.unlocked', level: 'warning', message });
    return;
  }
  const textBytes = text.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const memoryBytes = Math.min(totalmem(), memoryLimitOf('self')?.limitBytes ?? Number.POSITIVE_INFINITY);
  if (textBytes > memoryBytes * TEXT_PART_MAX) return;
  for (const range of text) await lockWhole(range);
}

async function lockWhole({ address, lengthBytes }: FileRange): Promise<void> {
  for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
    // Locked on fault already: a refusal here (a file that was cut meanwhile) leaves no more than that.
    if (!libc.tryLock(address + done, Math.min(PIECE_BYTES, lengthBytes - done))) return;
    await new Promise((resolve) => setImmediate(resolve));
  }
}
