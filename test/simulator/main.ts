/**
 * `node main.js FROM TO [FIRST]`: runs seeds FROM to TO - 1 up to the first that finds something, before them FIRST, and tells it
 * as JSON.
 */
import { addCounts, emptyCounts } from './counts.js';
import { runSeed } from './run.js';

const [from = 0, to = 0, first] = process.argv.slice(2).map(Number);
const counts = emptyCounts();
let steps = 0;
let seeds = 0;
let found: { seed: number; message: string } | undefined;

function* chosen(): Generator<number> {
  if (first !== undefined) yield first;
  for (let seed = from; seed < to; seed++) yield seed;
}

for (const seed of chosen()) {
  const result = runSeed(seed);
  seeds++;
  steps += result.steps;
  addCounts(counts, result.counts);
  if (result.violation === undefined) continue;
  found = { seed, message: result.violation.message };
  break;
}
process.stdout.write(JSON.stringify({ message: '', ...found, seeds, steps, counts }));
