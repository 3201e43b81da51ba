/** Medians and their spread. */
export interface Spread {
  min: number;
  quartile1: number;
  median: number;
  quartile3: number;
  max: number;
  count: number;
}

/** The value below which a share of the sorted values lies, between neighbours in proportion. */
function quantile(sorted: readonly number[], share: number): number {
  const position = (sorted.length - 1) * share;
  const below = sorted[Math.floor(position)] ?? Number.NaN;
  const above = sorted[Math.ceil(position)] ?? Number.NaN;
  return below + (above - below) * (position - Math.floor(position));
}

/** Undefined where there is nothing to describe. */
export function spreadOf(values: readonly number[]): Spread | undefined {
  const sorted = values.filter((value) => Number.isFinite(value)).sort((a, b) => a - b);
  if (sorted.length === 0) return undefined;
  return {
    min: quantile(sorted, 0),
    quartile1: quantile(sorted, 0.25),
    median: quantile(sorted, 0.5),
    quartile3: quantile(sorted, 0.75),
    max: quantile(sorted, 1),
    count: sorted.length,
  };
}

/** The value below which a share of the values lies. */
export function quantileOf(values: readonly number[], share: number): number {
  return quantile(
    [...values].sort((a, b) => a - b),
    share,
  );
}

/** NaN where there is no value: it shows as missing. */
export function median(values: readonly number[]): number {
  return spreadOf(values)?.median ?? Number.NaN;
}
