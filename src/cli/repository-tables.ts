/** Answers about repositories, as people read them. */
import type { Damage, VersionRecord } from '../index.js';
import { formatSize } from './quantities.js';
import { columns } from './tables.js';

const BLOCK_BYTES = 4096;

/** `cowbird versions` */
export async function versionsText(versions: readonly VersionRecord[]): Promise<string> {
  const rows = versions.map((version) => [
    String(version.number),
    new Date(version.time).toLocaleString('sv-SE'),
    formatSize(version.sizeBytes),
    version.engine,
    version.delta === null ? 'image' : formatSize(version.delta.blocks * BLOCK_BYTES),
    version.skipped.length === 0
      ? '-'
      : formatSize(version.skipped.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)),
  ]);
  return columns([['VERSION', 'TIME', 'SIZE', 'ENGINE', 'KEPT', 'UNREADABLE'], ...rows]);
}

/** One damaged place, as a line. */
export function damageText({ file, fileOffset, offset, lengthBytes, versions, what }: Damage): string {
  const whose = versions.length === 0 ? '' : `version${versions.length === 1 ? '' : 's'} ${versions.join(', ')}: `;
  if (offset === null) return `${whose}${what}`;
  return `${whose}${lengthBytes} bytes at ${offset} (${file} at ${fileOffset}): ${what}`;
}
