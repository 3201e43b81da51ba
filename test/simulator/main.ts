/** `node main.js FROM TO`: runs seeds FROM to TO - 1 up to the first that finds something, and tells it as JSON. */
import { addCounts, emptyCounts } from './counts.js';
import { runSeed } from './run.js';

const [from = 0, to = 0] = process.argv.slice(2).map(Number);
const counts = emptyCounts();
let steps = 0;
let seed = from;
let message: string | undefined;
for (; seed < to && message === undefined; seed++) {
  const result = runSeed(seed);
  steps += result.steps;
  addCounts(counts, result.counts);
  message = result.violation?.message;
}
const found = message === undefined ? {} : { seed: seed - 1 };
process.stdout.write(JSON.stringify({ ...found, message: message ?? '', seeds: seed - from, steps, counts }));
