/** The mappings of this process, as `/proc/self/maps` lists them (proc_pid_maps(5)). */

export interface MappedRange {
  address: number;
  lengthBytes: number;
}

export interface FileRange extends MappedRange {
  path: string;
  /** Of the first byte, in the file. */
  offset: number;
}

const LINE = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)$/;

interface Line extends FileRange {
  permissions: string;
  inode: number;
}

function* linesOf(text: string): Generator<Line, void, undefined> {
  for (const line of text.split('\n')) {
    const [, start, end, permissions, offset, inode, path] = LINE.exec(line) ?? [];
    if (start === undefined || end === undefined || permissions === undefined || offset === undefined) continue;
    const address = Number.parseInt(start, 16);
    yield {
      address,
      lengthBytes: Number.parseInt(end, 16) - address,
      permissions,
      offset: Number.parseInt(offset, 16),
      inode: Number(inode),
      path: path ?? '',
    };
  }
}

/**
 * The program's text and constants: what is mapped from files and never written, each part of a file once.
 *
 * Once is enough, as locking keeps the file's page and not one mapping of it; and it leaves V8's own copies of its built-in
 * functions alone, which it maps again for every thread and gives back when it likes.
 */
export function programText(maps: string): FileRange[] {
  const found: FileRange[] = [];
  const ends = new Map<string, number>();
  for (const { permissions, inode, path, address, lengthBytes, offset } of linesOf(maps)) {
    if (inode === 0 || !path.startsWith('/') || (permissions !== 'r-xp' && permissions !== 'r--p')) continue;
    if (path.startsWith('/memfd:')) continue;
    const known = ends.get(path) ?? 0;
    if (offset + lengthBytes <= known) continue;
    ends.set(path, offset + lengthBytes);
    found.push({ path, address, lengthBytes, offset });
  }
  return found;
}
