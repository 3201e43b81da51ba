/** `npm run simulate`: the simulator for as long as wanted, one seed again, or a canary. */
import { parseArgs } from 'node:util';
import { CANARIES, type Canary } from './canaries.js';
import { addCounts, emptyCounts } from './counts.js';
import { runSeedsIn, withMutant } from './mutants.js';
import { type Result, runSeed } from './run.js';

/** In which each bug made by hand is found. */
export const SEEDS_OF_CI = 600;
const USAGE = `usage: npm run simulate -- [--minutes M] [--from SEED]   new seeds, one after another (default: 1 minute)
       npm run simulate -- --seed SEED [--canary NAME]   one seed again
       npm run simulate -- --canary NAME [--seeds N]     with a bug made by hand, seeds 1 to N (default: ${SEEDS_OF_CI})
canaries: ${CANARIES.map(({ name }) => `"${name}"`).join(', ')}`;

const REPORT_MS = 10_000;

/** What a person has to type to see a failure again. */
export function commandFor(seed: number, canary?: string): string {
  return `npm run simulate -- --seed ${seed}${canary === undefined ? '' : ` --canary "${canary}"`}`;
}

type Print = (line: string) => void;

function tellViolation(print: Print, seed: number, message: string, canary?: string): void {
  print(message);
  print(`seed ${seed} fails. To repeat it: ${commandFor(seed, canary)}`);
}

function tellRate(print: Print, sum: { seeds: number; steps: number }, startedAt: number): void {
  const seconds = (performance.now() - startedAt) / 1000;
  print(`${sum.seeds} seeds, ${sum.steps} steps, ${Math.round(sum.steps / seconds)} steps/s`);
}

/** Seeds from one on for some time; 1 when one of them fails. */
function runLong(print: Print, from: number, minutes: number): number {
  const startedAt = performance.now();
  const sum = { seeds: 0, steps: 0 };
  const counts = emptyCounts();
  let reportAt = startedAt + REPORT_MS;
  print(`seeds from ${from}`);
  while (performance.now() - startedAt < minutes * 60_000) {
    const result = runSeed(from + sum.seeds);
    sum.seeds++;
    sum.steps += result.steps;
    addCounts(counts, result.counts);
    if (result.violation !== undefined) {
      tellViolation(print, result.seed, result.violation.message);
      return 1;
    }
    if (performance.now() > reportAt) {
      tellRate(print, sum, startedAt);
      reportAt += REPORT_MS;
    }
  }
  tellRate(print, sum, startedAt);
  print(`nothing found; ${JSON.stringify(counts)}`);
  return 0;
}

function runOne(print: Print, seed: number): number {
  const startedAt = performance.now();
  const result: Result = runSeed(seed);
  tellRate(print, { seeds: 1, steps: result.steps }, startedAt);
  if (result.violation === undefined) {
    print(`nothing found; ${JSON.stringify(result.counts)}`);
    return 0;
  }
  print(JSON.stringify(result.scenario));
  tellViolation(print, seed, result.violation.message);
  return 1;
}

async function runCanary(print: Print, canary: Canary, from: number, to: number): Promise<number> {
  if (!('seed' in canary.by)) {
    print(`"${canary.name}" is found by "${canary.by.name}" of test/${canary.by.test}`);
    return 2;
  }
  const startedAt = performance.now();
  const found = await withMutant(canary, (root) => runSeedsIn(root, from, to));
  tellRate(print, found, startedAt);
  if (found.seed === undefined) {
    print(`"${canary.name}" was not found`);
    return 0;
  }
  tellViolation(print, found.seed, found.message, canary.name);
  return 1;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (text === '' || !Number.isSafeInteger(value) || value < 0) throw new RangeError(`${text} is no whole number`);
  return value;
}

function minutesOf(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new RangeError(`${text} is no number of minutes`);
  return value;
}

/** Returns the exit code: 0 nothing found, 1 found, 2 bad arguments. */
export async function main(args: readonly string[], print: Print = console.log): Promise<number> {
  try {
    const option = { type: 'string' } as const;
    const options = { minutes: option, from: option, seed: option, seeds: option, canary: option };
    const { values } = parseArgs({ args: [...args], options });
    const seed = values.seed === undefined ? undefined : wholeNumber(values.seed);
    if (values.canary !== undefined) {
      const canary = CANARIES.find(({ name }) => name === values.canary);
      if (canary === undefined) throw new RangeError(`There is no canary "${values.canary}"`);
      const seeds = wholeNumber(values.seeds ?? String(SEEDS_OF_CI));
      return await runCanary(print, canary, seed ?? 1, seed === undefined ? seeds + 1 : seed + 1);
    }
    if (seed !== undefined) return runOne(print, seed);
    const from = values.from === undefined ? Math.floor(Date.now() / 1000) : wholeNumber(values.from);
    return runLong(print, from, minutesOf(values.minutes ?? '1'));
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof TypeError)) throw error;
    print(`${error.message}\n${USAGE}`);
    return 2;
  }
}
