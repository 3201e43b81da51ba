/**
 * Bugs made by hand, each of which has to be found: edits of the compiled code, in a copy of it.
 *
 * `by: { seed }`: found by the fixed seeds of the simulator, in which the code as it is finds nothing; this one found it last, and
 * is tried before the others. Else by a test that runs the real programs: its file in `dist`, and its name or a part of it.
 */
export interface Edit {
  /** Must be in the file exactly once. */
  readonly find: string;
  readonly replace: string;
  /** Where it is not that of the canary. */
  readonly file?: string;
}

export interface Canary {
  readonly name: string;
  /** From `dist/src`. */
  readonly file: string;
  readonly edits: readonly Edit[];
  readonly by: { readonly seed: number } | { readonly test: string; readonly name: string };
}

const TRACER = 'tracer/tracer.js';
const SAVING = 'tracer/saving.js';
const SMALL_WRITE = 'tracer/small-write.js';
/** In `saving.js`. */
const APPEND = 'const places = yield* append(tracer, scratch, at / BLOCK_BYTES);';

export const CANARIES: readonly Canary[] = [
  {
    name: 'mark after write',
    file: TRACER,
    edits: [
      { find: `        memory.mark(first, last);\n    }\n`, replace: '    }\n' },
      { find: `memory.mark(first, last);\n        return true;`, replace: 'return true;' },
      {
        find: `yield { kind: 'write', device: this.origin, buffer, at, lengthBytes, offset };`,
        replace: `yield { kind: 'write', device: this.origin, buffer, at, lengthBytes, offset };
            if (this.memory.get(Word.MODE) !== Mode.PASSTHROUGH)
              this.memory.mark(Math.floor(offset / BLOCK_BYTES), Math.floor((offset + lengthBytes - 1) / BLOCK_BYTES));`,
      },
      {
        find: `case 'writing':\n                this.#leave();`,
        replace: `case 'writing':
                if (this.#tracer.memory.get(0) !== 0)
                    this.#tracer.memory.mark(Math.floor(this.#offset / BLOCK_BYTES), Math.floor((this.#offset + this.#lengthBytes - 1) / BLOCK_BYTES));
                this.#leave();`,
        file: SMALL_WRITE,
      },
    ],
    by: { seed: 1 },
  },
  {
    name: 'index before data',
    file: SAVING,
    edits: [
      {
        find: APPEND,
        replace: `tracer.publish = (places) => publish(tracer.memory, missing, places);
    ${APPEND}`,
      },
      {
        find: 'return (yield* tracer.whileTrusted(',
        replace: 'tracer.publish(places);\n    return (yield* tracer.whileTrusted(',
      },
      {
        find: `this.#state = 'saving';\n        return`,
        replace: `this.#state = 'saving';
        publish(tracer.memory, [{ first: this.#first, end: this.#end }], this.#places);
        return`,
        file: SMALL_WRITE,
      },
    ],
    by: { seed: 1 },
  },
  {
    name: 'bits of a run before its index entries',
    file: SAVING,
    edits: [{ find: 'let block = first;\n', replace: 'let block = first;\n        memory.mark(first, end - 1);\n' }],
    by: { seed: 55 },
  },
  {
    name: 'no second look after waiting for claims',
    file: SAVING,
    edits: [
      {
        find: 'const missing = runsToBeSaved(memory, first, last);',
        replace: 'const missing = [{ first, end: last + 1 }];',
      },
    ],
    by: { seed: 6 },
  },
  {
    name: 'no second look after claiming at once',
    file: SAVING,
    edits: [{ find: 'claimed === end && memory.nextSettled(first, end) === end', replace: 'claimed === end' }],
    by: { seed: 188 },
  },
  {
    name: 'gate not looked at by a write that has nothing to save',
    file: TRACER,
    edits: [
      {
        find: `if (memory.get(Word.GATE) === Gate.OPEN) {
            this.hooks.refresh();
            if (`,
        replace: `if (true) {
            this.hooks.refresh();
            if (`,
      },
    ],
    by: { seed: 3 },
  },
  {
    name: 'gate not looked at by a write that saves',
    file: TRACER,
    edits: [
      {
        find: `if (memory.get(Word.GATE) === Gate.OPEN) {
            this.hooks.refresh();
            const first`,
        replace: `if (true) {
            this.hooks.refresh();
            const first`,
      },
    ],
    by: { seed: 6 },
  },
  {
    name: 'foreign write taken for one that only saves',
    file: TRACER,
    edits: [{ find: '(this.#store?.map.firstOwnBlock(first, last) ?? 0) < 0', replace: 'true' }],
    by: { seed: 2 },
  },
  {
    name: 'store written after the snapshot has failed',
    file: TRACER,
    edits: [{ find: 'if (memory.get(Word.FAILED) === 0)\n            return true;', replace: 'return true;' }],
    by: { seed: 20 },
  },
  {
    name: 'claims of a write not released when saving fails',
    file: SMALL_WRITE,
    edits: [
      {
        find: 'releaseClaims(memory, this.#first, this.#end, (word) => hooks.wake(word));',
        replace: 'if (memory.get(1) === 0) releaseClaims(memory, this.#first, this.#end, (word) => hooks.wake(word));',
      },
    ],
    by: { seed: 9 },
  },
  {
    name: 'foreign write taken for one that has nothing to save',
    file: TRACER,
    edits: [
      { find: `if (map !== undefined && map.firstOwnBlock(first, last) >= 0)\n            return false;`, replace: '' },
    ],
    by: { seed: 171 },
  },
  {
    name: 'no second look after a snapshot read',
    file: 'tracer/snapshot-view.js',
    edits: [{ find: `yield* lookAgain(piece, unsaved, before);`, replace: '' }],
    by: { seed: 6 },
  },
  {
    name: 'saved block read into its place while the origin is read over it',
    file: 'tracer/snapshot-view.js',
    edits: [{ find: `if (!isReadOver) {`, replace: 'if (true) {' }],
    by: { seed: 7 },
  },
  {
    name: 'second look before the origin is read',
    file: 'tracer/snapshot-view.js',
    edits: [
      {
        find: `yield* readAll(reads);
    for (`,
        replace: `yield* lookAgain(piece, unsaved, before);
    yield* readAll(reads);
    for (`,
      },
      {
        find: `to);
    yield* lookAgain(piece, unsaved, before);`,
        replace: 'to);',
      },
    ],
    by: { seed: 7 },
  },
  {
    name: 'discard not saved',
    file: TRACER,
    edits: [
      {
        find: `yield* this.#beforeWrite(context, run.offset, run.lengthBytes);`,
        replace: `if (unmap)
                    this.memory.mark(Math.floor(run.offset / BLOCK_BYTES), Math.floor((run.offset + run.lengthBytes - 1) / BLOCK_BYTES));
                else
                    yield* this.#beforeWrite(context, run.offset, run.lengthBytes);`,
      },
    ],
    by: { seed: 1 },
  },
  {
    name: 'flush not passed on',
    file: TRACER,
    edits: [
      { find: `    *flush() {\n        yield { kind: 'flush', device: this.origin };`, replace: `    *flush() {` },
    ],
    by: { seed: 6 },
  },
  {
    name: 'claim released early',
    file: SAVING,
    edits: [
      {
        find: APPEND,
        replace: `releaseClaims(tracer.memory, first, missing.at(-1).end, () => undefined);
    ${APPEND}`,
      },
      {
        find: `const slot = tracer.allocate(count);`,
        replace: `releaseClaims(tracer.memory, this.#first, this.#end, () => undefined);
        const slot = tracer.allocate(count);`,
        file: SMALL_WRITE,
      },
    ],
    by: { seed: 45 },
  },
  {
    name: 'two writers of one index sector',
    file: 'tracer/layout.js',
    edits: [
      {
        find: `Atomics.store(view, entry, place + done++);`,
        replace: `{
            const first = entry & ~127;
            const sector = view.slice(first, first + 128);
            // Where another thread may run.
            this.get(Word.MODE);
            sector[entry & 127] = place + done++;
            view.set(sector, first);
        }`,
      },
    ],
    by: { seed: 21 },
  },
  {
    name: 'foreign write let through while a store write is in flight',
    file: TRACER,
    edits: [{ find: `if (inFlight === 0)\n                return;`, replace: 'return;' }],
    by: { seed: 2 },
  },
  {
    name: 'dormant write issued before the dirty header',
    file: TRACER,
    edits: [
      { find: `if (memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY)\n            return false;`, replace: '' },
      {
        find: `if (memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY)
            yield* this.makeDirty(context);
        yield* this.#guardStore`,
        replace: 'yield* this.#guardStore',
      },
      {
        find: `yield { kind: 'write', device: this.origin, buffer, at, lengthBytes, offset };`,
        replace: `yield { kind: 'write', device: this.origin, buffer, at, lengthBytes, offset };
            if (this.memory.get(Word.MODE) !== Mode.PASSTHROUGH && this.memory.get(Word.HEADER_STATE) !== HeaderState.DIRTY)
                yield* this.makeDirty(context);`,
      },
    ],
    by: { seed: 55 },
  },
  {
    name: 'worker taken for outside while it has writes in hand',
    file: TRACER,
    edits: [{ find: 'Atomics.sub(this.memory.words, busy, 1);', replace: 'this.memory.set(busy, 0);' }],
    by: { seed: 2 },
  },
  {
    name: 'resend before the old engine is reaped',
    file: 'engine/child-end.js',
    edits: [
      {
        find: `child.once('exit', (code, signal) => {
        if (child.connected)
            child.once('disconnect', () => then(code, signal));
        else
            then(code, signal);
    });`,
        replace: `child.once('disconnect', () => then(null, null));`,
      },
    ],
    by: { test: 'src/engine/keeper.test.js', name: 'starts no engine before the old one is reaped' },
  },
  {
    name: 'stale cached COW file trusted',
    file: 'engine/helper-store.js',
    edits: [{ find: 'writeWhole(fd, page, BLOCK_BYTES + first * 8);', replace: '' }],
    by: { test: 'test/handover.test.js', name: 'that was read while the engine wrote it' },
  },
  {
    name: 'memory of one request in hand given to all',
    file: 'engine/stepped.js',
    edits: [{ find: 'const context = this.#free.pop();', replace: 'const context = this.#free[0];' }],
    by: { test: 'src/engine/batch.test.js', name: 'are each answered once' },
  },
  {
    name: 'reply buffer not locked',
    file: 'sys/libc.js',
    edits: [{ find: "check(raw.mlock(mapping.address, lengthBytes), 'mlock',", replace: '[].concat(' }],
    by: { test: 'test/reclaim.test.js', name: 'is locked: each worker' },
  },
  {
    name: 'pause before freeze',
    file: 'engine/tracking.js',
    edits: [
      {
        find: 'const { frozenByOthers } = await',
        // As long as a bounded pause may be, and longer than the freeze's watchdog.
        replace: `volume.memory.set(Word.GATE, 1);
    setTimeout(() => {
        volume.memory.set(Word.GATE, 0);
        volume.wake(Word.GATE);
    }, 6_000);
    const { frozenByOthers } = await`,
      },
    ],
    by: { test: 'test/handover.test.js', name: 'freezes while its writes still go through' },
  },
];
