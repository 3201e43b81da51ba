/**
 * `npm run bench`: what Cowbird costs, as ratios to its peers in the same run.
 *
 * Each part writes its raw data when it is done; tables and plots are made anew from all raw data that there is, so that one
 * part can be run again on its own.
 */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { measureBackup } from './backup.js';
import { measureFreeAware } from './free-aware.js';
import { Lab } from './lab.js';
import { measureLive } from './live.js';
import { describeMachine } from './machine.js';
import { measureMemory } from './memory.js';
import { type Options, type Part, parseOptions, type Scale, USAGE, UsageError } from './options.js';
import { Interrupted, Refused } from './processes.js';
import { measureProfile } from './profile.js';
import { writeReport } from './report.js';
import { type Machine, writeResult } from './results.js';
import { measureSnapshotReads } from './snapshot-reads.js';
import { measureTimes } from './times.js';
import { measureTracking } from './tracking.js';
import { measureUpdateImg } from './update-img.js';
import { measureVolumes } from './volumes.js';

/** This file runs from `dist/bench`. */
const RESULTS = join(fileURLToPath(new URL('.', import.meta.url)), '..', '..', 'bench', 'results');
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

function say(text: string): void {
  process.stderr.write(`bench: ${text}\n`);
}

interface Run {
  lab: Lab;
  scale: Scale;
  machine: Machine;
  out: string;
}

async function measure({ lab, scale, machine, out }: Run, part: Part): Promise<void> {
  const startedAt = Date.now();
  const head = () => ({
    machine,
    scale: scale.name,
    takenAt: new Date(startedAt).toISOString(),
    seconds: Math.round((Date.now() - startedAt) / 1_000),
  });
  switch (part) {
    case 'volumes':
      for (const cache of scale.caches) {
        const measured = await measureVolumes(lab, scale, cache, say);
        writeResult(out, `volumes-${cache}`, { ...head(), ...measured });
      }
      break;
    case 'update-img': {
      const measured = await measureUpdateImg(lab, scale, say);
      writeResult(out, 'update-img', { ...head(), ...measured });
      break;
    }
    case 'snapshot-reads': {
      const measured = await measureSnapshotReads(lab, scale, say);
      writeResult(out, 'snapshot-reads', { ...head(), ...measured });
      break;
    }
    case 'memory': {
      const cases = await measureMemory(lab, scale, say);
      writeResult(out, 'memory', { ...head(), cases });
      break;
    }
    case 'times': {
      const cases = await measureTimes(lab, scale, say);
      writeResult(out, 'times', { ...head(), cases });
      break;
    }
    case 'backup': {
      const measured = await measureBackup(lab, scale, say);
      writeResult(out, 'backup', { ...head(), ...measured });
      break;
    }
    case 'tracking': {
      const measured = await measureTracking(lab, scale, say);
      writeResult(out, 'tracking', { ...head(), ...measured });
      break;
    }
    case 'live': {
      const measured = await measureLive(lab, scale, say);
      writeResult(out, 'live', { ...head(), ...measured });
      break;
    }
    case 'free-aware': {
      const measured = await measureFreeAware(lab, scale, say);
      writeResult(out, 'free-aware', { ...head(), ...measured });
      break;
    }
    case 'profile': {
      const workloads = await measureProfile(lab, scale, say);
      writeResult(out, 'profile', { ...head(), workloads });
      break;
    }
  }
}

/** Runs what was asked for; the folder is cleared whatever happens. */
async function bench(options: Options, signal: AbortSignal): Promise<void> {
  const out = options.out ?? (options.scale.name === 'full' ? RESULTS : join(RESULTS, options.scale.name));
  const lab = await Lab.open(options.dir, signal);
  try {
    const machine = await describeMachine(lab);
    for (const part of options.parts) {
      say(`part ${part}`);
      await measure({ lab, scale: options.scale, machine, out }, part);
      await lab.clear();
    }
  } finally {
    await lab.close();
  }
  for (const path of writeReport(out)) say(`written: ${path}`);
}

/** Resolves to the exit code. */
export async function main(args: string[]): Promise<number> {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (!controller.signal.aborted) say('interrupted; clearing up');
    controller.abort();
  };
  for (const signal of SIGNALS) process.on(signal, onSignal);
  try {
    const options = parseOptions(args);
    if (options === 'help') {
      process.stdout.write(USAGE);
      return 0;
    }
    if (process.getuid?.() !== 0) throw new Refused('the bench mounts file systems: run it as root');
    const startedAt = Date.now();
    await bench(options, controller.signal);
    say(`done in ${Math.round((Date.now() - startedAt) / 1_000)} s; nothing is left behind`);
    return 0;
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`bench: ${error.message}\n${USAGE}`);
      return 2;
    }
    if (error instanceof Interrupted) return 130;
    if (error instanceof Refused) {
      say(error.message);
      return 1;
    }
    say(`failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    return 1;
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = await main(process.argv.slice(2));
