/**
 * One simulated machine: a volume with its users, an engine that may be killed at any I/O and at any access to the shared
 * memory, and power that may be lost. Everything that happens follows from the seed.
 */
import { SystemError } from '../../src/sys/errors.js';
import { BLOCK_BYTES, HeaderState, Mode, SwitchState, Word } from '../../src/tracer/layout.js';
import { readSnapshot } from '../../src/tracer/snapshot-view.js';
import type { Stepper, Steps } from '../../src/tracer/steps.js';
import { Clients } from './clients.js';
import { emptyCounts } from './counts.js';
import { type Random, SECTOR_BYTES, SimDisk } from './disk.js';
import { Engine } from './engine.js';
import { SharedMemory } from './memory.js';
import { Model } from './model.js';
import { NOTHING, type SavedSeries, type VolumeRecord } from './records.js';
import { describeRequest, type Request } from './requests.js';
import type { Scenario } from './scenario.js';
import { Scheduler, type Thread } from './scheduler.js';
import { Violation } from './violation.js';

const EOPNOTSUPP = 95;
/** Turns in which nothing is answered and nothing ends: more is a hang. */
const PATIENCE = 60_000;

export interface ReloadWish {
  mustSucceed: boolean;
  mustFail: boolean;
}

export class World {
  readonly scenario: Scenario;
  readonly random: Random;
  readonly origin: SimDisk;
  readonly model: Model;
  readonly clients: Clients;
  readonly scheduler: Scheduler;
  memory: SharedMemory;
  /** Held by the keeper. */
  record: VolumeRecord = NOTHING;
  /** In the state directory. */
  saved: SavedSeries | undefined;
  engine: Engine;
  /** A series waits to be gone on with. */
  reload: ReloadWish | undefined;
  /** Between two turns the machine goes down. */
  shutDown: (() => void) | undefined;
  steps = 0;
  readonly counts = emptyCounts();
  #lastProgress = 0;

  constructor(scenario: Scenario, random: Random) {
    this.scenario = scenario;
    this.random = random;
    this.origin = new SimDisk('origin', scenario.sectors * SECTOR_BYTES, scenario.disk);
    for (let sector = 0; sector < scenario.sectors; sector++)
      if (random(3) > 0) this.origin.preset(sector, 0x8000_0000 + sector);
    this.memory = this.#newMemory();
    this.model = new Model(this.origin, this.memory);
    this.model.isSuspended = false;
    this.clients = new Clients(this.model, random);
    const faultsOf = (disk: SimDisk) => (disk === this.origin ? scenario.originFaults : scenario.storeFaults);
    this.scheduler = new Scheduler({ random, origin: this.origin, faultsOf }, this.memory);
    this.engine = new Engine(this);
    this.engine.serve();
  }

  #newMemory(): SharedMemory {
    return new SharedMemory(Math.ceil(this.scenario.sectors / (BLOCK_BYTES / SECTOR_BYTES)), this.random);
  }

  /** Runs to the end. @throws {Violation} */
  run(): void {
    while (!this.#isOver()) this.#step();
    this.#checkAtEnd();
  }

  #isOver(): boolean {
    if (this.clients.issued < this.scenario.requests) return false;
    this.clients.isQuiet = true;
    return this.clients.unanswered.size === 0 && this.engine.isIdle && this.reload === undefined;
  }

  #step(): void {
    this.steps++;
    const { random, scenario, clients } = this;
    const isEnding = clients.issued >= scenario.requests;
    if (!clients.isQuiet && clients.unanswered.size < scenario.clients && random(3) === 0) this.#ask();
    if (!isEnding) this.#disturb();
    this.engine.assign();
    if (this.engine.isIdle) this.engine.startOperation(isEnding);
    const able = this.scheduler.able();
    const thread = able[random(Math.max(1, able.length))];
    if (thread !== undefined) this.scheduler.turn(thread);
    this.#afterTurn();
    if (this.steps - this.#lastProgress > PATIENCE)
      throw new Violation(`I5: nothing was answered in ${PATIENCE} turns: ${this.#describeHands()}`);
    if (random(400) === 0 && this.engine.isServing) this.memory.quietly(() => this.model.checkAll());
  }

  #describeHands(): string {
    const threads = this.scheduler.threads
      .filter(({ steps }) => steps !== undefined)
      .map(({ name, step }) => `${name} at ${step?.kind} ${step?.kind === 'wait' ? step.word : ''}`);
    return [...threads, ...[...this.clients.unanswered].map(describeRequest)].join('; ');
  }

  #ask(): void {
    const { memory, engine, model } = this;
    const isOpen = this.record.snapshot?.isOpen === true && !engine.isClosing;
    const mayBeForeign = (engine.isIdle || engine.isCleaning) && !model.isSuspended && this.scenario.hasForeignWrites;
    memory.quietly(() => this.clients.sendAny(isOpen, mayBeForeign ? this.#foreignPercent() : 0));
  }

  /** Where somebody's write into the store is worth most: beside a write of ours; and where it looks like any other one. */
  #foreignPercent(): number {
    const { memory } = this;
    if (memory.get(Word.STORE_WRITES) > 0) return 25;
    return memory.get(Word.MODE) === Mode.INCREMENTAL ? 8 : 2;
  }

  /** How much is at stake when power is lost now: the header on disk may say clean; and data is on its way. */
  #promises(): number {
    const { memory, clients } = this;
    if (memory.quietly(() => memory.get(Word.HEADER_STATE)) === HeaderState.DIRTY) return 1;
    return clients.hasInHand(({ kind }) => kind === 'write') ? 100 : 10;
  }

  /** Death comes after so many accesses, at once, or to the whole machine. */
  #disturb(): void {
    const { random, scenario, memory, scheduler } = this;
    const dice = random(100_000);
    const powerRate = scenario.powerRate * this.#promises();
    if (dice < scenario.killRate) {
      if (random(3) === 0) scheduler.isKilled = true;
      else memory.deathIn = Math.min(memory.deathIn, 1 + random(random(2) === 0 ? 40 : 600));
    } else if (dice < scenario.killRate + powerRate) {
      this.losePower();
    }
  }

  #afterTurn(): void {
    const { scheduler, memory } = this;
    if (scheduler.violation !== undefined) throw scheduler.violation;
    if (this.shutDown !== undefined) {
      const shutDown = this.shutDown;
      this.shutDown = undefined;
      shutDown();
    } else if (scheduler.isKilled) this.#kill();
    else memory.quietly(() => this.model.checkTouched());
  }

  #kill(): void {
    const { scheduler, memory, clients } = this;
    this.counts.kills++;
    if (memory.isDead) memory.restore();
    memory.deathIn = Number.POSITIVE_INFINITY;
    memory.quietly(() => {
      scheduler.reap();
      this.model.checkTouched();
    });
    if (scheduler.violation !== undefined) throw scheduler.violation;
    clients.queue.length = 0;
    this.engine = new Engine(this);
    this.engine.resume();
    this.progress();
  }

  /** Something was answered, or has ended. */
  progress(): void {
    this.#lastProgress = this.steps;
  }

  /** The machine is off at this moment. */
  losePower(): void {
    this.scheduler.losePower();
    this.clients.drop();
    // Raw writes before a reload that leave the super block alone are not noticed by the next attachment: a limit that
    // `docs/reliability.md` names. A file system's mount would have changed it.
    const isWritten = this.memory.quietly(() => this.memory.get(Word.WRITTEN)) !== 0;
    if (this.reload !== undefined && isWritten && this.saved !== undefined)
      this.saved = { ...this.saved, fingerprint: undefined };
    this.losePowerOfDisks();
    this.boot({ mustSucceed: false, mustFail: false });
  }

  /** What was not flushed may be lost, and now and then what was lost is found in another place of what was not flushed. */
  losePowerOfDisks(): void {
    this.counts.powerLosses++;
    const { model, random, origin } = this;
    const store = this.record.snapshot?.disk;
    if (store !== undefined && store !== origin) store.losePower(random, () => -1);
    const candidates = [...origin.unflushedSectors()].filter((sector) => !model.isOwn(sector));
    const misdirect = (): number => {
      if (random(20) > 0 || candidates.length === 0) return -1;
      return candidates[random(candidates.length)] ?? -1;
    };
    const strays = origin.losePower(random, misdirect);
    model.powerLost(new Set(strays));
  }

  /** The machine starts: nothing is left but what is on disks. */
  boot(wish: ReloadWish): void {
    const { model, clients, saved } = this;
    this.record = NOTHING;
    this.scheduler.losePower();
    this.memory = this.#newMemory();
    this.scheduler.adopt(this.memory);
    model.memory = this.memory;
    // Who writes before the reload forbids it.
    clients.isQuiet = saved !== undefined && (wish.mustSucceed || this.random(4) > 0);
    clients.reserved.fill(0);
    model.prepared.fill(0);
    if (saved === undefined) {
      model.giveUpTracking();
    } else {
      model.isSuspended = true;
      for (const { block, count } of saved.store.kind === 'origin' ? saved.store.extents : [])
        clients.reserved.fill(1, block, block + count);
      this.reload = wish;
    }
    this.engine = new Engine(this);
    this.engine.serve();
    this.progress();
  }

  /** A series goes on. */
  wentOn(): void {
    if (this.reload?.mustFail === true)
      throw new Violation('I3: a series went on although the origin was used meanwhile');
    this.counts.reloads++;
    this.#endReload();
  }

  /** A series was not trusted. */
  refused(reason: unknown): void {
    const { originFaults, storeFaults } = this.scenario;
    const isHealthy = originFaults.read + storeFaults.read === 0;
    if (this.reload?.mustSucceed === true && isHealthy)
      throw new Violation(`A clean series was refused: ${String(reason)}`);
    this.counts.refusals++;
    this.#endReload();
    this.model.giveUpTracking();
  }

  #endReload(): void {
    this.reload = undefined;
    this.clients.isQuiet = false;
  }

  /** The steps with which a worker serves a request. */
  serve(request: Request, thread: Thread, worker: number): void {
    const { engine } = this;
    const tracer = engine.tracerOf(worker);
    const context = { worker, scratch: engine.makeScratch() };
    const buffer = { bytes: new Uint8Array(request.lengthBytes), address: 0 };
    this.model.fill(request, buffer.bytes);
    thread.userBytes = buffer.bytes;
    const { kind, offset, lengthBytes, unmap } = request;
    let steps: Stepper;
    if (kind === 'write') steps = tracer.write(context, buffer, 0, lengthBytes, offset);
    else if (kind === 'zero') steps = tracer.zero(context, offset, lengthBytes, unmap);
    else if (kind === 'flush') steps = tracer.flush();
    else if (kind === 'snapshotRead')
      steps = readSnapshot(tracer, { buffer, at: 0, scratch: context.scratch }, lengthBytes, offset);
    else steps = readOrigin(this.origin, buffer, lengthBytes, offset);
    const generation = this.memory.quietly(() => this.memory.get(Word.GENERATION));
    thread.start(steps, (error) => {
      this.#answer(request, thread, buffer.bytes, error);
      if (request.isForeign && error === undefined) this.#checkForeign(request, generation);
    });
  }

  /** A store that was there all the time is not trusted any more once somebody else has written into it. */
  #checkForeign(request: Request, generation: number): void {
    const { memory, model } = this;
    const isSame = memory.get(Word.GENERATION) === generation && memory.get(Word.MODE) !== Mode.PASSTHROUGH;
    const last = Math.floor((request.offset + request.lengthBytes - 1) / BLOCK_BYTES);
    for (let block = Math.floor(request.offset / BLOCK_BYTES); isSame && block <= last; block++)
      if (model.own[block] === 1 && memory.get(Word.FAILED) === 0)
        throw new Violation(`I6: ${describeRequest(request)} is a foreign write, and the snapshot goes on`);
  }

  #answer(request: Request, thread: Thread, bytes: Uint8Array, error: unknown): void {
    this.progress();
    this.clients.answer(request);
    if (request.kind === 'snapshotRead') {
      if (error === undefined) this.model.checkSnapshotRead(request, bytes);
      else this.#checkRefusedRead(request, thread, error);
      return;
    }
    if (error !== undefined) {
      const isUnsupported = request.unmap && error instanceof SystemError && error.errno === EOPNOTSUPP;
      if (!isUnsupported && thread.originError === undefined)
        throw new Violation(`I1: ${describeRequest(request)} failed, and the origin did not: ${String(error)}`);
    } else if (request.kind === 'read') {
      this.model.checkRead(request, bytes);
    }
    this.model.end(request, error !== undefined);
  }

  #checkRefusedRead(request: Request, thread: Thread, error: unknown): void {
    const hasFailed = this.memory.get(Word.FAILED) !== 0 || this.memory.get(Word.MODE) !== Mode.SNAPSHOT;
    if (!hasFailed && thread.anyError === undefined)
      throw new Violation(`I2: ${describeRequest(request)} was refused without a cause: ${String(error)}`);
  }

  #checkAtEnd(): void {
    this.memory.quietly(() => {
      if (this.record.pending !== null || this.memory.get(Word.SWITCH) === SwitchState.WITHIN)
        throw new Violation('An operation was left half done');
      this.model.checkAll();
    });
  }
}

function* readOrigin(
  device: SimDisk,
  buffer: { bytes: Uint8Array; address: number },
  lengthBytes: number,
  offset: number,
): Steps {
  yield { kind: 'read', device, buffer, at: 0, lengthBytes, offset };
}
