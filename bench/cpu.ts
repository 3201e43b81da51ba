/** What a piece of work costs in CPU time: of the whole machine, and of the processes that serve the device. */
import { readFileSync } from 'node:fs';
import { processStat } from './processes.js';

/** USER_HZ: the same on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

export interface CpuCost {
  /** Of all CPUs, kernel threads and fio and whatever else runs on the machine included; not idle, iowait, steal. */
  systemSeconds: number;
  /** utime + stime of the serving processes. */
  servingSeconds: number;
}

function systemTicks(): number {
  const line = readFileSync('/proc/stat', 'utf8').split('\n')[0] ?? '';
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line.split(/\s+/).slice(1).map(Number);
  return user + nice + system + irq + softirq;
}

function servingTicks(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => {
    const fields = processStat(pid) ?? [];
    return sum + Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
  }, 0);
}

/** Starts a measurement; the function that is returned ends it. */
export function measureCpu(pids: readonly number[]): () => CpuCost {
  const system = systemTicks();
  const serving = servingTicks(pids);
  return () => ({
    systemSeconds: (systemTicks() - system) / TICKS_PER_SECOND,
    servingSeconds: (servingTicks(pids) - serving) / TICKS_PER_SECOND,
  });
}
