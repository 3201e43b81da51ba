/**
 * Threads of the simulated engine, in one real thread: at each turn one that can go on, chosen by the seed, moves its I/O on
 * or runs its code up to the next step. At any access to the shared memory others may have turns in between.
 */
import { CowbirdError, SystemError } from '../../src/sys/errors.js';
import type { Step, Stepper, Steps } from '../../src/tracer/steps.js';
import { type Faults, type Io, type IoStep, type Random, SimDisk } from './disk.js';
import { Killed, type SharedMemory } from './memory.js';
import { Violation } from './violation.js';

/** A step that waits for {@link Thread.condition} instead of a word. */
const CONDITION_WORD = -1;

export class Thread {
  readonly name: string;
  /** Writes from this memory, and what zeroes the origin, are the user's own. */
  userBytes: Uint8Array | undefined;
  steps: Stepper | undefined;
  step: Step | undefined;
  /** What its step does; several go on at the same time. */
  ios: Io[] = [];
  condition: () => boolean = () => true;
  /** Hears of the end of its steps. */
  onEnd: (error: unknown) => void = () => undefined;
  /** An I/O error on the origin that concerns the request itself. */
  originError: SystemError | undefined;
  anyError: SystemError | undefined;
  isOnStack = false;

  constructor(name: string) {
    this.name = name;
  }

  start(steps: Stepper, onEnd: (error: unknown) => void): void {
    this.steps = steps;
    this.step = undefined;
    this.ios = [];
    this.originError = undefined;
    this.anyError = undefined;
    this.onEnd = onEnd;
  }

  /** Waits until something is true, letting others run in any case. */
  *until(condition: () => boolean): Steps {
    this.condition = condition;
    yield { kind: 'wait', word: CONDITION_WORD, value: 0 };
    this.condition = () => true;
  }
}

export interface SchedulerParts {
  random: Random;
  origin: SimDisk;
  faultsOf(disk: SimDisk): Faults;
}

export class Scheduler {
  readonly threads: Thread[] = [];
  memory: SharedMemory;
  violation: Violation | undefined;
  isKilled = false;
  readonly #parts: SchedulerParts;

  constructor(parts: SchedulerParts, memory: SharedMemory) {
    this.#parts = parts;
    this.memory = memory;
    this.adopt(memory);
  }

  adopt(memory: SharedMemory): void {
    this.memory = memory;
    memory.preempt = () => this.#preempt();
    memory.preemptIn = this.#pause();
  }

  #pause(): number {
    const { random } = this.#parts;
    return 1 + random(random(3) === 0 ? 4 : 60);
  }

  able(): Thread[] {
    return this.threads.filter((thread) => this.#isAble(thread));
  }

  #isAble(thread: Thread): boolean {
    if (thread.steps === undefined || thread.isOnStack) return false;
    const { step } = thread;
    if (step?.kind !== 'wait') return true;
    if (step.word === CONDITION_WORD) return thread.condition();
    return Atomics.load(this.memory.words, step.word) !== step.value;
  }

  /** One turn of one thread. Violations are kept: the code that runs may catch what is thrown through it. */
  turn(thread: Thread): void {
    try {
      this.#turn(thread);
    } catch (error) {
      if (error instanceof Killed) this.isKilled = true;
      else if (error instanceof Violation) this.violation ??= error;
      else throw error;
    }
  }

  #turn(thread: Thread): void {
    const going = thread.ios.filter(({ isDone }) => !isDone);
    const io = going[going.length > 1 ? this.#parts.random(going.length) : 0];
    if (io !== undefined) io.advance();
    if (thread.ios.some(({ isDone }) => !isDone)) return;
    const failed = thread.ios.filter(({ error }) => error !== undefined);
    thread.ios = [];
    for (const each of failed) this.#noteError(thread, each);
    this.#resume(thread, failed[0]?.error);
  }

  #noteError(thread: Thread, io: Io): void {
    const { error } = io;
    thread.anyError = error;
    const isOfRequest = io.owner === 'user' || io.step.kind === 'flush' || io.step.kind === 'read';
    if (io.disk === this.#parts.origin && isOfRequest) thread.originError = error;
  }

  #resume(thread: Thread, error: SystemError | undefined): void {
    const { steps } = thread;
    if (steps === undefined) return;
    const wasRunning = this.memory.isRunning;
    let next: IteratorResult<Step, void>;
    thread.isOnStack = true;
    this.memory.isRunning = true;
    try {
      next = error === undefined ? steps.next() : steps.throw(error);
    } catch (thrown) {
      if (thrown instanceof Killed || this.memory.isDead) throw new Killed();
      this.#end(thread, thrown);
      return;
    } finally {
      this.memory.isRunning = wasRunning;
      thread.isOnStack = false;
    }
    if (this.memory.isDead) throw new Killed();
    if (next.done === true) {
      this.#end(thread, undefined);
      return;
    }
    thread.step = next.value;
    const step = next.value;
    if (step.kind === 'readTogether') thread.ios = step.reads.map((read) => this.#issue(thread, read));
    else if (step.kind !== 'wait') thread.ios = [this.#issue(thread, step)];
  }

  #end(thread: Thread, error: unknown): void {
    thread.steps = undefined;
    thread.step = undefined;
    if (error instanceof Violation) throw error;
    if (error !== undefined && !(error instanceof SystemError) && !(error instanceof CowbirdError)) {
      throw new Violation(`${thread.name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    }
    this.memory.quietly(() => thread.onEnd(error));
  }

  #issue(thread: Thread, step: IoStep): Io {
    const { random, origin, faultsOf } = this.#parts;
    if (!(step.device instanceof SimDisk)) throw new Error('Simulated code does I/O on simulated disks');
    const isUsers = step.kind === 'zero' || (step.kind === 'write' && step.buffer.bytes === thread.userBytes);
    return step.device.issue(
      step,
      isUsers && step.device === origin ? 'user' : 'engine',
      faultsOf(step.device),
      random,
    );
  }

  /** Others run in the middle of what somebody does. */
  #preempt(): void {
    const { random } = this.#parts;
    this.memory.preemptIn = this.#pause();
    const wasRunning = this.memory.isRunning;
    this.memory.isRunning = false;
    try {
      for (let turns = 1 + random(6); turns > 0 && !this.memory.isDead; turns--) {
        const able = this.able();
        const thread = able[random(Math.max(1, able.length))];
        if (thread === undefined) return;
        this.turn(thread);
      }
    } finally {
      this.memory.isRunning = wasRunning;
    }
  }

  /** The process has died: what the kernel has in hand comes to its end, or is cut short. */
  reap(): void {
    for (const thread of this.threads) for (const io of thread.ios) io.finish();
    this.#drop();
  }

  /** The machine has died: nothing comes to its end. */
  losePower(): void {
    this.#drop();
  }

  #drop(): void {
    this.threads.length = 0;
    this.isKilled = false;
  }
}
