/**
 * Which versions to keep: restic's rules, as they are since its version 0.16. `daily: 7` keeps, of the last seven days that have a
 * version, the last version of each; weeks are those of ISO 8601, and all are counted in local time. Where there are fewer days
 * than were asked for, the oldest version is kept too, so that what was kept reaches as far back as it can. A version is kept when
 * any rule keeps it. The newest always is.
 */

export interface RetentionPolicy {
  last?: number;
  daily?: number;
  weekly?: number;
  monthly?: number;
}

interface Dated {
  number: number;
  time: string;
}

/** Numbers of the versions that stay, ascending. `versions` ascend. */
export function keptVersions(versions: readonly Dated[], policy: RetentionPolicy): number[] {
  const newestFirst = [...versions].reverse();
  const kept = new Set<number>(newestFirst.slice(0, Math.max(1, policy.last ?? 0)).map(({ number }) => number));
  const rules: ReadonlyArray<readonly [number | undefined, (date: Date) => string]> = [
    [policy.daily, day],
    [policy.weekly, week],
    [policy.monthly, (date) => day(date).slice(0, 7)],
  ];
  for (const [count, periodOf] of rules) {
    const seen = new Set<string>();
    for (const { number, time } of newestFirst) {
      const period = periodOf(new Date(time));
      if (seen.has(period) || seen.size >= (count ?? 0)) continue;
      seen.add(period);
      kept.add(number);
    }
    const [oldest] = versions;
    if (oldest !== undefined && seen.size < (count ?? 0)) kept.add(oldest.number);
  }
  return [...kept].sort((a, b) => a - b);
}

function day(date: Date): string {
  const two = (value: number): string => String(value).padStart(2, '0');
  return `${String(date.getFullYear()).padStart(4, '0')}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** A week is named by the day of its Thursday: that day's year is the week's. */
function week(date: Date): string {
  const weekday = (date.getDay() + 6) % 7;
  return day(new Date(date.getFullYear(), date.getMonth(), date.getDate() - weekday + 3));
}
