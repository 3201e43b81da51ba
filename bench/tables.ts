/** Tables in Markdown, and figures in them. */
import type { Spread } from './statistics.js';

export type Row = readonly string[];

export function table(head: Row, rows: readonly Row[]): string {
  const line = (cells: Row): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(line)].join('\n');
}

export const round = (value: number, digits: number): string => (Number.isFinite(value) ? value.toFixed(digits) : '–');

export function spreadText(spread: Spread | undefined, digits = 2): string {
  if (spread === undefined) return '–';
  const { min, quartile1, quartile3, max } = spread;
  return `${round(min, digits)} / ${round(quartile1, digits)} – ${round(quartile3, digits)} / ${round(max, digits)}`;
}
