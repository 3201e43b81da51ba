/** Thaws one file system when it is told to, whatever becomes of the others (rescue.ts). */
import { parentPort, workerData } from 'node:worker_threads';
import { FreezeWords } from './freeze-words.js';
import { Rescue, type RescueWork, rescueOne } from './rescue.js';

const TRY_EVERY_MS = 5;

const { wordsFd, index, fd, order, over }: RescueWork = workerData;
const words = FreezeWords.map(wordsFd);
parentPort?.postMessage('ready');
for (;;) {
  Atomics.wait(order, 0, Rescue.NOT);
  const why = Atomics.load(order, 0);
  if (why === Rescue.NOT) continue;
  const isOver = rescueOne(words, index, fd, why === Rescue.GONE);
  Atomics.store(over, index, isOver ? 1 : 0);
  Atomics.wait(order, 0, why, isOver ? undefined : TRY_EVERY_MS);
}
