/**
 * One life of the simulated engine: workers that serve requests with the real tracer, and a control thread that runs one
 * operation at a time (`operations.ts`), in the order of effects of `src/engine/pending.ts`.
 */
import { createHash } from 'node:crypto';
import { dataOffsetBytes } from '../../src/cow/geometry.js';
import { encodeHeader } from '../../src/cow/header.js';
import { whileGateClosed } from '../../src/tracer/gate.js';
import { BLOCK_BYTES, Gate, Mode, SwitchState, Word } from '../../src/tracer/layout.js';
import { recover } from '../../src/tracer/recover.js';
import type { Steps } from '../../src/tracer/steps.js';
import type { StoreConfig } from '../../src/tracer/store-map.js';
import { applySwitch } from '../../src/tracer/switches.js';
import { type StoreInUse, Tracer } from '../../src/tracer/tracer.js';
import type { SimDisk } from './disk.js';
import { chooseOperation, finish, settle } from './operations.js';
import type { PendingOperation, SnapshotRecord, VolumeRecord } from './records.js';
import { type Scheduler, Thread } from './scheduler.js';
import { Violation } from './violation.js';
import type { World } from './world.js';

interface Configuration {
  generation: number;
  store: StoreInUse | undefined;
  disk: SimDisk;
}

/** Requests of one worker at a time, each at any of its steps. */
const IN_HAND_MAX = 3;

interface Worker {
  /** Each has a request, or none. */
  readonly threads: readonly Thread[];
  readonly tracer: Tracer;
  readonly mail: Configuration[];
  generation: number;
}

export class Engine {
  readonly world: World;
  readonly control = new Thread('control');
  readonly tracer: Tracer;
  readonly buffer: { bytes: Uint8Array; address: number };
  /** The snapshot's device is being taken down: nobody may open it. */
  isClosing = false;
  /** The COW file is being made clean while it is used. */
  isCleaning = false;
  record: VolumeRecord;
  readonly #workers: Worker[] = [];
  /** What a dead engine left is set right. */
  isServing = false;
  #restBeforeNext = 0;

  constructor(world: World) {
    this.world = world;
    this.record = world.record;
    const { memory, origin, scenario } = world;
    const scheduler: Scheduler = world.scheduler;
    scheduler.threads.push(this.control);
    const hooks = { wake: () => undefined, attention: () => this.dropTrust() };
    this.tracer = new Tracer(memory, origin, { ...hooks, refresh: () => undefined });
    this.buffer = this.makeScratch();
    for (let number = 0; number < scenario.workers; number++) {
      const refresh = () => {
        if (memory.get(Word.GENERATION) !== worker.generation) takeMail(worker);
      };
      const worker: Worker = {
        threads: Array.from({ length: IN_HAND_MAX }, (_, i) => new Thread(`worker ${number}, request ${i}`)),
        tracer: new Tracer(memory, origin, { ...hooks, refresh }),
        mail: [],
        generation: 0,
      };
      this.#workers.push(worker);
      scheduler.threads.push(...worker.threads);
    }
    this.#restBeforeNext = world.random(200);
  }

  /** Memory for copying: of the control thread, or of one request. */
  makeScratch(): { bytes: Uint8Array; address: number } {
    return { bytes: new Uint8Array(this.world.scenario.scratchBlocks * BLOCK_BYTES), address: 0 };
  }

  get isIdle(): boolean {
    return this.control.steps === undefined;
  }

  tracerOf(worker: number): Tracer {
    return this.#worker(worker).tracer;
  }

  #worker(number: number): Worker {
    const worker = this.#workers[number];
    if (worker === undefined) throw new Error(`There is a worker ${number}`);
    return worker;
  }

  serve(): void {
    this.isServing = true;
  }

  /** Gives requests to workers that have none. */
  assign(): void {
    if (!this.isServing) return;
    const { clients, random } = this.world;
    this.#workers.forEach((worker, number) => {
      const busy = worker.threads.filter(({ steps }) => steps !== undefined);
      const idle = worker.threads.find(({ steps }) => steps === undefined);
      if (idle === undefined || (busy.length > 0 && random(2) === 0)) return;
      if (busy.length === 0 && random(3) === 0) takeMail(worker);
      const request = clients.take();
      if (request !== undefined) this.world.serve(request, idle, number);
    });
  }

  startOperation(isEnding: boolean): void {
    if (!this.isServing) return;
    if (!isEnding && --this.#restBeforeNext > 0) return;
    this.#restBeforeNext = this.world.random(200);
    const operation = chooseOperation(this, isEnding);
    if (operation !== undefined) this.#run(operation);
  }

  #run(steps: Steps): void {
    this.control.start(steps, (error) => {
      if (error !== undefined) throw new Violation(`An operation failed without being undone: ${String(error)}`);
      this.world.progress();
    });
  }

  // What `src/engine/resume.ts` does.

  resume(): void {
    this.#run(this.#serveAgain());
  }

  *#serveAgain(): Steps {
    const isSwitched = this.#resumeSwitch();
    this.#requireAgreement();
    this.dropTrust();
    this.configureStore();
    yield* recover(this.tracer, { worker: 0, scratch: this.buffer });
    this.world.clients.sendAgain();
    this.serve();
    yield* settle(this, isSwitched);
  }

  #resumeSwitch(): boolean {
    const { memory, model, reload } = this.world;
    const { pending } = this.record;
    if (pending === null || pending.change === null || memory.get(Word.SWITCH) === SwitchState.BEFORE) {
      model.isSuspended = reload !== undefined;
      return false;
    }
    if (memory.get(Word.SWITCH) === SwitchState.WITHIN) {
      applySwitch(memory, pending.change);
      this.world.counts.halfSwitches++;
      this.tellModel(pending);
    } else if (pending.change.kind === 'reload' && reload !== undefined) {
      this.tellModel(pending);
    }
    this.record = { ...this.record, snapshot: pending.next };
    return true;
  }

  #requireAgreement(): void {
    const { memory } = this.world;
    const { snapshot, pending } = this.record;
    if (pending === null) memory.set(Word.SWITCH, SwitchState.BEFORE);
    if (snapshot === null) {
      memory.set(Word.MODE, Mode.PASSTHROUGH);
      return;
    }
    const expected = snapshot.mode === 'snapshot' ? Mode.SNAPSHOT : Mode.INCREMENTAL;
    if (memory.get(Word.MODE) !== expected) throw new Violation('Record and memory disagree after a kill');
  }

  // What `src/engine/volume.ts` and `pending.ts` do.

  *whilePaused(change: () => void): Steps {
    const { memory } = this.world;
    yield* whileGateClosed(memory, () => undefined, change);
    if (memory.get(Word.GATE) === Gate.SWITCHING) throw new Violation('The gate stayed closed');
  }

  performSwitch(): void {
    const { pending } = this.record;
    if (pending === null || pending.change === null) throw new Violation('A switch is described before it is made');
    const { model, memory } = this.world;
    memory.quietly(() => {
      model.isSuspended = true;
    });
    // Nowhere is a death worth more than within a switch.
    const { random, scenario } = this.world;
    if (scenario.killRate > 0 && random(15) === 0) memory.deathIn = Math.min(memory.deathIn, 1 + random(25));
    applySwitch(memory, pending.change);
    this.tellModel(pending);
    this.record = { ...this.record, snapshot: pending.next };
    this.configureStore();
  }

  tellModel(pending: PendingOperation): void {
    const { model, memory, counts } = this.world;
    const kind = pending.change?.kind ?? '';
    counts.kinds[kind] = (counts.kinds[kind] ?? 0) + 1;
    memory.quietly(() => {
      if (pending.change?.kind === 'reload') this.world.wentOn();
      model.switched(pending);
    });
  }

  /** Gives everybody the store of the current record. */
  configureStore(): void {
    const { snapshot } = this.record;
    const { memory, origin } = this.world;
    const disk = snapshot?.disk ?? origin;
    const store =
      snapshot === null
        ? undefined
        : { config: snapshot.store, dirtyHeader: this.headerFor(snapshot, { clean: false, changedBlocks: 0 }) };
    this.tracer.setStore(store, disk);
    const generation = memory.get(Word.GENERATION) + 1;
    for (const { mail } of this.#workers) mail.push({ generation, store, disk });
    memory.set(Word.GENERATION, generation);
  }

  headerFor(
    snapshot: SnapshotRecord,
    fields: { clean: boolean; changedBlocks: number; fingerprint?: Uint8Array },
  ): Uint8Array {
    const { memory, origin } = this.world;
    const indexOnly = snapshot.mode === 'incremental';
    const dataOffset = dataOffsetBytes(memory.blockCount);
    const { fingerprint } = fields;
    return encodeHeader({
      clean: fields.clean,
      indexOnly,
      vmallocUpper: false,
      positionBlocks: positionOf(snapshot.store, indexOnly, dataOffset, memory.get(Word.NEXT_SLOT) >>> 0),
      fileSizeBytes: indexOnly ? dataOffset : snapshot.store.placeCount * BLOCK_BYTES,
      sequenceId: snapshot.sequenceId,
      uuid: Buffer.from(snapshot.uuid, 'hex'),
      version: 1,
      changedBlocks: fields.changedBlocks,
      ...(fingerprint === undefined ? {} : { extension: { fingerprint, volumeSizeBytes: origin.sizeBytes } }),
    });
  }

  /** Of the super block, which a file system changes whenever it is mounted. */
  fingerprint(): Buffer {
    return createHash('sha256').update(this.world.origin.bytes.subarray(1024, 2048)).digest();
  }

  saveRecord(): void {
    // To the keeper and back takes a message: others run, and the engine may die before it or after it.
    this.world.memory.get(Word.GENERATION);
    this.world.record = this.record;
    this.world.memory.get(Word.GENERATION);
  }

  /** The control thread hears of a failure by a message; here at once, as nothing else fails in between. */
  dropTrust(): void {
    const { world } = this;
    const { memory } = world;
    const isLost = memory.quietly(() => memory.get(Word.FAILED) !== 0 && memory.get(Word.MODE) !== Mode.PASSTHROUGH);
    if (memory.isDead || !isLost || world.saved === undefined) return;
    world.saved = { ...world.saved, fingerprint: undefined };
  }

  saveSeries(fingerprint: Buffer | undefined): void {
    const { snapshot } = this.record;
    const { memory } = this.world;
    if (snapshot === null) throw new Error('A series has a record');
    const { mode, uuid, sequenceId, store, disk } = snapshot;
    const nextSlot = memory.get(Word.NEXT_SLOT) >>> 0;
    this.world.saved = { mode, uuid, sequenceId, store, disk, nextSlot, fingerprint };
  }

  /** Tells the keeper which blocks a file takes, before anything is written to it. */
  announce(): void {
    this.world.memory.set(Word.SWITCH, SwitchState.BEFORE);
    this.record = { ...this.record, pending: { change: null, old: this.record.snapshot, next: null } };
    this.saveRecord();
  }

  describe(change: PendingOperation['change'], next: SnapshotRecord | null): void {
    this.world.memory.set(Word.SWITCH, SwitchState.BEFORE);
    this.record = { ...this.record, pending: { change, old: this.record.snapshot, next } };
    this.saveRecord();
  }

  /** A switch that needs no new store. */
  *switchPaused(change: PendingOperation['change'], next: SnapshotRecord | null): Steps {
    this.describe(change, next);
    yield* this.whilePaused(() => this.performSwitch());
    yield* finish(this);
  }

  /** A file of so many places, in pieces of the free blocks at the end of the volume; undefined when it is full. */
  allocate(placeCount: number): StoreConfig['extents'] | undefined {
    const { clients, random } = this.world;
    const free = [...clients.reserved.keys()].filter(
      (block) =>
        block >= USER_BLOCKS &&
        clients.reserved[block] === 0 &&
        (block + 1) * BLOCK_BYTES <= this.world.origin.sizeBytes,
    );
    if (free.length < placeCount) return undefined;
    const extents: StoreConfig['extents'] = [];
    let place = 0;
    while (place < placeCount) {
      const at = random(free.length);
      const block = free[at] ?? 0;
      let count = 1;
      const longest = Math.min(placeCount - place, 1 + random(12));
      while (count < longest && free[at + count] === block + count) count++;
      free.splice(at, count);
      extents.push({ place, block, count });
      clients.reserved.fill(1, block, block + count);
      place += count;
    }
    return extents;
  }
}

/** Blocks at the start that never belong to a store. */
const USER_BLOCKS = 20;

function takeMail(worker: Worker): void {
  for (let mail = worker.mail.shift(); mail !== undefined; mail = worker.mail.shift()) {
    worker.tracer.setStore(mail.store, mail.disk);
    worker.generation = mail.generation;
  }
}

function positionOf(store: StoreConfig, indexOnly: boolean, dataOffset: number, nextSlot: number): number {
  const indexPlaces = dataOffset / BLOCK_BYTES;
  if (indexOnly) return indexPlaces;
  return store.slots.length > 1 ? store.placeCount : indexPlaces + nextSlot;
}
