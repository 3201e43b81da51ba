/** Who holds an flock(2) on a file, from /proc. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';

export interface LockHolder {
  pid: number;
  command: string;
  /** Local date and time. */
  started: string;
}

/** Clock ticks a second in /proc/PID/stat: 100 on every Linux that we run on (USER_HZ). */
const TICKS_PER_SECOND = 100;

/** The holders of flock locks on the file with this inode number. `locks` is the text of /proc/locks. */
export function lockHolders(inode: string, locks: string): LockHolder[] {
  const holders: LockHolder[] = [];
  for (const line of locks.split('\n')) {
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:131090 0 EOF; waiting ones have -> behind the number.
    const [, kind, , , pid, place] = line.trim().split(/\s+/);
    if (kind !== 'FLOCK' || place?.split(':')[2] !== inode || Number(pid) <= 0) continue;
    if (!holders.some((holder) => holder.pid === Number(pid))) holders.push(describeProcess(Number(pid)));
  }
  return holders;
}

function describeProcess(pid: number): LockHolder {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
    // `node` says little: the script and its command do.
    const [, script, verb = ''] = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    const command = name === 'node' && script !== undefined ? `${basename(script)} ${verb}`.trim() : name;
    // Fields from the third on; the start time is the 22nd.
    const ticks = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]);
    const bootSeconds = Number(/^btime (\d+)$/m.exec(readFileSync('/proc/stat', 'utf8'))?.[1]);
    const started = new Date((bootSeconds + ticks / TICKS_PER_SECOND) * 1000);
    return { pid, command, started: started.toLocaleString('sv-SE') };
  } catch (error) {
    if (error instanceof Error && 'code' in error) return { pid, command: 'ended', started: 'unknown' };
    throw error;
  }
}
