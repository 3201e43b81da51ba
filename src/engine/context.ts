/** What the operations share: the volumes, the keeper, the pool, one lock for everything that changes. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { lstatSync, mkdirSync, renameSync, rmSync, symlinkSync, unlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import { CowbirdError, errnoOfError } from '../sys/errors.js';
import type { EventInput } from './events.js';
import type { Pool } from './pool.js';
import type { VolumeRecord } from './records.js';
import type { HelperSession, Keeper } from './services.js';
import { isDeadLink, targetOf } from './stale.js';
import type { Volume } from './volume.js';

export interface EnginePaths {
  runDir: string;
  stateDir: string;
  info: string;
  fuseDir: string;
}

export interface EngineContext {
  readonly keeper: Keeper;
  readonly paths: EnginePaths;
  readonly pool: Pool;
  readonly volumes: Map<string, Volume>;
  /** Volumes of a dead engine that this one could not serve: the next one tries again, so all that is theirs stays. */
  readonly stuck: VolumeRecord[];
  emit(event: EventInput): void;
}

/** Of all volumes that are attached, served or not. */
export function attachedRecords({ volumes, stuck }: EngineContext): VolumeRecord[] {
  return [...[...volumes.values()].map(({ record }) => record), ...stuck];
}

/** The call from outside that the present asynchronous context serves. */
export const requestIds = new AsyncLocalStorage<number>();

/** Its number, by which the keeper knows it; 0 for what the engine does by itself. */
export function currentRequestId(): number {
  return requestIds.getStore() ?? 0;
}

/** Steps of an operation that failed are undone in reverse; what cannot be undone is reported, and the rest goes on. */
export class Undo {
  readonly #actions: Array<{ what: string; action: () => Promise<unknown> | unknown }> = [];

  add(what: string, action: () => Promise<unknown> | unknown): void {
    this.#actions.push({ what, action });
  }

  /** From here on what was done stays. */
  clear(): void {
    this.#actions.length = 0;
  }

  async run(context: EngineContext): Promise<void> {
    for (const { what, action } of this.#actions.reverse()) {
      try {
        await action();
      } catch (error) {
        context.emit({ event: 'undo.failed', level: 'error', message: `Could not ${what}: ${String(error)}` });
      }
    }
  }
}

/** Runs an operation with an undo list; on an error what was done is undone before the error goes on. */
export async function undoing<T>(context: EngineContext, operation: (undo: Undo) => Promise<T>): Promise<T> {
  const undo = new Undo();
  try {
    return await operation(undo);
  } catch (error) {
    await undo.run(context);
    throw error;
  }
}

/** One after another, in order of arrival. */
export class Mutex {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action, action);
    this.#last = result.catch(() => undefined);
    return result;
  }
}

/** A helper for the length of an action. */
export async function withHelper<T>(context: EngineContext, action: (helper: HelperSession) => Promise<T>): Promise<T> {
  const helper = await context.keeper.helper();
  try {
    return await action(helper);
  } finally {
    await helper.end();
  }
}

/** Makes a link under /dev. A name that is not ours is never replaced; a dead one of ours is. */
export function makeLink(link: string, target: string): void {
  mkdirSync(dirname(link), { recursive: true, mode: 0o755 });
  refuseForeignLink(link, target);
  const aside = `${link}.${process.pid}`;
  rmSync(aside, { force: true });
  symlinkSync(target, aside);
  renameSync(aside, link);
}

/** @throws {CowbirdError} EBUSY when the name is taken by something that is not ours. */
export function refuseForeignLink(link: string, target = ''): void {
  let stats: ReturnType<typeof lstatSync>;
  try {
    stats = lstatSync(link);
  } catch (error) {
    if (errnoOfError(error) === 2) return;
    throw error;
  }
  if (stats.isSymbolicLink() && (targetOf(link) === target || isDeadLink(link))) return;
  throw new CowbirdError('EBUSY', `${link} exists and is not this daemon's: remove it, or use another name or minor`);
}

export function removeLink(link: string, target: string): void {
  try {
    if (targetOf(link) === target) unlinkSync(link);
  } catch (error) {
    // Gone already, or no link any more: not ours to remove.
    if (![2, 22].includes(errnoOfError(error))) throw error;
  }
}
