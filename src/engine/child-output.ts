/**
 * What the daemon's other processes write to their standard output and error: nothing, but for the last words of one that
 * goes wrong. The keeper reads it and reports it, so that nothing that they write can hold them up.
 */
import type { ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { EventInput } from './events.js';

const OUTPUT_OF = { engine: { event: 'engine.output' }, helper: { event: 'helper.output' } } as const;
const LINE_CHARACTERS_MAX = 2_000;

export function reportOutput(child: ChildProcess, who: 'engine' | 'helper', report: (event: EventInput) => void): void {
  for (const input of [child.stdout, child.stderr]) {
    // A process that could not be started for want of descriptors has none, whatever its type says.
    if (input == null) continue;
    // A pipe's end is all that there is to know of an error.
    input.on('error', () => undefined);
    createInterface({ input }).on('line', (line) =>
      report({ ...OUTPUT_OF[who], level: 'warning', message: `${who}: ${line.slice(0, LINE_CHARACTERS_MAX)}` }),
    );
  }
}
