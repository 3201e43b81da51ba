/** An SVG of medians and their spread: a panel for each workload, a line for each subject, ratio to the plain loop device. */
import { DATTOBD, ratiosOf } from './bars.js';
import type { VolumesResult } from './results.js';
import { type Spread, spreadOf } from './statistics.js';

const WIDTH = 1060;
const LABEL = 420;
const RIGHT = 70;
const ROW = 20;
const PANEL_HEAD = 44;
const PANEL_GAP = 26;
const TOP = 70;
const TICK = 0.25;

const escapeText = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

function colorOf(subject: string): string {
  if (subject.startsWith('cowbird')) return '#1f6fb4';
  return subject.startsWith('qemu') ? '#c45a11' : '#555555';
}

interface Line {
  title: string;
  color: string;
  spread: Spread;
  dattobd: number | undefined;
}

function linesOf(result: VolumesResult, workload: string): Line[] {
  return result.subjects
    .filter(({ name }) => name !== 'loop')
    .flatMap(({ name, title }) => {
      const spread = spreadOf(ratiosOf(result, workload, name, 'loop'));
      return spread === undefined ? [] : [{ title, color: colorOf(name), spread, dattobd: DATTOBD[name]?.[workload] }];
    });
}

/** The plot as the text of an SVG file. */
export function plotVolumes(result: VolumesResult): string {
  const panels = result.workloads
    .map(({ name, title }) => ({ title, lines: linesOf(result, name) }))
    .filter(({ lines }) => lines.length > 0);
  const parts: string[] = [];
  let y = TOP;
  for (const { title, lines } of panels) {
    parts.push(...panel(title, lines, y));
    y += PANEL_HEAD + lines.length * ROW + PANEL_GAP;
  }
  const cache = result.cache === 'direct' ? 'origins with O_DIRECT' : 'origins through the page cache';
  const legend =
    'dot: median; thick: quartiles; thin: smallest to largest; hollow diamond: the real dattobd, to a plain device';
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y}" viewBox="0 0 ${WIDTH} ${y}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>`,
    `<text x="16" y="26" font-size="17" font-weight="bold">Throughput as a ratio to the plain loop device, ${cache}</text>`,
    `<text x="16" y="46" fill="#555555">${result.rounds} interleaved ${result.rounds === 1 ? 'round' : 'rounds'}; ${legend}</text>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

function panel(title: string, lines: readonly Line[], top: number): string[] {
  const largest = Math.max(1, ...lines.flatMap(({ spread, dattobd }) => [spread.max, dattobd ?? 0]));
  const end = Math.ceil((largest + 0.01) / TICK) * TICK;
  const x = (value: number): number => Math.round((LABEL + (value / end) * (WIDTH - LABEL - RIGHT)) * 10) / 10;
  const bottom = top + PANEL_HEAD + lines.length * ROW;
  const parts = [`<text x="16" y="${top + 14}" font-weight="bold">${escapeText(title)}</text>`];
  // Few enough ticks to read, however far the ratios go.
  const step = TICK * Math.max(1, Math.ceil(end / TICK / 8));
  for (let tick = 0; tick <= end + 1e-9; tick += step) {
    const stroke = tick === 1 ? '#777777' : '#dddddd';
    parts.push(
      `<line x1="${x(tick)}" y1="${top + 34}" x2="${x(tick)}" y2="${bottom}" stroke="${stroke}"/>`,
      `<text x="${x(tick)}" y="${top + 28}" text-anchor="middle" fill="#555555">${tick.toFixed(2)}</text>`,
    );
  }
  lines.forEach((line, i) => {
    parts.push(...row(line, top + PANEL_HEAD + i * ROW, x));
  });
  return parts;
}

function row({ title, color, spread, dattobd }: Line, y: number, x: (value: number) => number): string[] {
  const { min, quartile1, median, quartile3, max } = spread;
  const diamond = (at: number): string =>
    `<path d="M${at} ${y - 5} L${at + 5} ${y} L${at} ${y + 5} L${at - 5} ${y} Z" fill="none" stroke="#2a7d2a" stroke-width="1.5"/>`;
  return [
    `<text x="${LABEL - 10}" y="${y + 4}" text-anchor="end">${escapeText(title)}</text>`,
    `<line x1="${x(min)}" y1="${y}" x2="${x(max)}" y2="${y}" stroke="${color}"/>`,
    `<line x1="${x(quartile1)}" y1="${y}" x2="${x(quartile3)}" y2="${y}" stroke="${color}" stroke-width="5" stroke-opacity="0.45"/>`,
    `<circle cx="${x(median)}" cy="${y}" r="4" fill="${color}"/>`,
    ...(dattobd === undefined ? [] : [diamond(x(dattobd))]),
    `<text x="${WIDTH - RIGHT + 12}" y="${y + 4}" fill="${color}">${median.toFixed(2)}</text>`,
  ];
}
