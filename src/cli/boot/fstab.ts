/** The line of fstab by which a volume is mounted at boot. */
import { realpathSync } from 'node:fs';
import { attachUnitName } from './unit.js';

const FOLDERS: Readonly<Record<string, string>> = {
  UUID: 'by-uuid',
  LABEL: 'by-label',
  PARTUUID: 'by-partuuid',
  PARTLABEL: 'by-partlabel',
};

/** What stands in fstab for a volume, or should. */
export interface FstabAdvice {
  line: string;
  /** The line that mounts the origin. */
  replaces: string | undefined;
  /** Whether fstab has a line for the volume already: `line` is that one. */
  isThere: boolean;
  /** Where fstab mounts the volume or its origin. */
  mountPoints: string[];
}

/**
 * The line for a volume: the one that is there, else made from that of its origin where `fstab` has one, else one to be
 * completed.
 *
 * `x-systemd.requires` pulls in and orders the mount after the unit that attaches the volume, also where the mount is
 * started by hand, and also at shutdown, when systemd knows the mount by its loop device and no longer by its line.
 */
export function fstabAdvice(fstab: string, volume: string, origin: string, diskFolder = '/dev/disk'): FstabAdvice {
  const entries = entriesOf(fstab);
  const [there] = linesOfVolume(fstab, volume);
  // Not swap, which mounts nothing, and should not need a process in order to free memory.
  const ofOrigin = entries.find(
    (entry) => entry.mountPoint.startsWith('/') && namesOrigin(entry.source, origin, diskFolder),
  );
  const mountPoints = entries
    .filter(({ text }) => text === there || text === ofOrigin?.text)
    .map((entry) => entry.mountPoint);
  const { mountPoint, type, options, dump, pass } = ofOrigin ?? NEW_ENTRY;
  const requires = `x-systemd.requires=${attachUnitName(volume)}`;
  const line = there ?? `/dev/cowbird/${volume} ${mountPoint} ${type} ${options},${requires} ${dump} ${pass}`;
  return { line, replaces: ofOrigin?.text, isThere: there !== undefined, mountPoints };
}

interface Entry {
  text: string;
  source: string;
  mountPoint: string;
  type: string;
  options: string;
  dump: string;
  pass: string;
}

const NEW_ENTRY = { mountPoint: '/MOUNT/POINT', type: 'auto', options: 'defaults', dump: '0', pass: '2' };

/** The lines of fstab, without comments and what is no line. */
function entriesOf(fstab: string): Entry[] {
  const entries: Entry[] = [];
  for (const line of fstab.split('\n')) {
    const text = line.trim();
    const [source = '', mountPoint = '', type, options, dump = '0', pass = '0'] = text.split(/\s+/);
    if (source.startsWith('#') || mountPoint === '' || type === undefined || options === undefined) continue;
    entries.push({ text, source, mountPoint, type, options, dump, pass });
  }
  return entries;
}

/** Those of `paths` that `fstab` has on the file system mounted at `mountPoint`, and on none below it. */
export function pathsOn(fstab: string, mountPoint: string, paths: readonly string[]): string[] {
  const points = entriesOf(fstab).map((entry) => unescaped(entry.mountPoint));
  return paths.filter((path) => {
    const above = points.filter((point) => point === '/' || path === point || path.startsWith(`${point}/`));
    const nearest = above.sort((a, b) => b.length - a.length)[0];
    return nearest === unescaped(mountPoint);
  });
}

/** fstab writes a space as `\\040`. */
function unescaped(field: string): string {
  return field.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

function namesOrigin(source: string, origin: string, diskFolder: string): boolean {
  const [tag = '', value = ''] = source.replaceAll('"', '').split('=');
  const folder = FOLDERS[tag];
  const path = folder === undefined ? source : `${diskFolder}/${folder}/${value}`;
  try {
    return path.startsWith('/') && realpathSync(path) === realpathSync(origin);
  } catch {
    // Names nothing that is there.
    return false;
  }
}

/** Lines of fstab that mount a volume, or a partition of it. */
export function linesOfVolume(fstab: string, volume: string): string[] {
  const link = `/dev/cowbird/${volume}`;
  return entriesOf(fstab)
    .filter(
      ({ source }) =>
        source === link || (source.startsWith(`${link}-part`) && /^\d+$/.test(source.slice(link.length + 5))),
    )
    .map(({ text }) => text);
}
