/**
 * eBPF through Debian's libbpf1, found when it is first asked for: machines that track nothing do without.
 *
 * What is pinned in bpffs stays when the process ends; everything else goes with its last descriptor. Pointers are numbers, as in
 * `libc.ts`.
 */
import koffi from 'koffi';
import { CowbirdError, messageOf, SystemError } from './errors.js';
import { close, type Mapping, mapShared } from './libc.js';

const LIBRARY = 'libbpf.so.1';
export const LIBBPF_FIX = 'apt-get install libbpf1 (other distributions: libbpf 1.0 or later)';

function bind() {
  const b = koffi.load(LIBRARY);
  const c = koffi.load('libc.so.6');
  return {
    openFile: b.func('int64_t bpf_object__open_file(const char *path, int64_t options)'),
    load: b.func('int bpf_object__load(int64_t object)'),
    closeObject: b.func('void bpf_object__close(int64_t object)'),
    findProgram: b.func('int64_t bpf_object__find_program_by_name(int64_t object, const char *name)'),
    findMap: b.func('int64_t bpf_object__find_map_by_name(int64_t object, const char *name)'),
    setAutoload: b.func('int bpf_program__set_autoload(int64_t program, bool autoload)'),
    setAutocreate: b.func('int bpf_map__set_autocreate(int64_t map, bool autocreate)'),
    setMaxEntries: b.func('int bpf_map__set_max_entries(int64_t map, uint32_t entries)'),
    setInitialValue: b.func('bpf_map__set_initial_value', 'int', ['int64_t', koffi.pointer('uint8_t'), 'size_t']),
    attach: b.func('int64_t bpf_program__attach(int64_t program)'),
    destroyLink: b.func('int bpf_link__destroy(int64_t link)'),
    pinLink: b.func('int bpf_link__pin(int64_t link, const char *path)'),
    pinMap: b.func('int bpf_map__pin(int64_t map, const char *path)'),
    pinProgram: b.func('int bpf_program__pin(int64_t program, const char *path)'),
    getPinned: b.func('int bpf_obj_get(const char *path)'),
    nextKey: b.func('bpf_map_get_next_key', 'int', ['int', koffi.pointer('uint8_t'), koffi.pointer('uint8_t')]),
    lookUp: b.func('bpf_map_lookup_elem', 'int', ['int', koffi.pointer('uint8_t'), koffi.pointer('uint8_t')]),
    infoByFd: b.func('bpf_obj_get_info_by_fd', 'int', [
      'int',
      koffi.pointer('uint8_t'),
      koffi.inout(koffi.pointer('uint32_t')),
    ]),
    findVmlinuxType: b.func('int libbpf_find_vmlinux_btf_id(const char *name, int attachType)'),
    setPrint: b.func('void *libbpf_set_print(void *print)'),
    vsnprintf: c.func('int vsnprintf(void *buffer, size_t length, void *format, void *arguments)'),
  };
}

type Libbpf = ReturnType<typeof bind>;
let bound: Libbpf | undefined;

/** Where libbpf's own messages go while it is asked for something: it prints them to stderr otherwise. */
const said: string[] = [];
const MESSAGE_BYTES = 65_536;
const LEVEL_DEBUG = 2;

function libbpf(): Libbpf {
  if (bound !== undefined) return bound;
  let library: Libbpf;
  try {
    library = bind();
  } catch (error) {
    throw new CowbirdError('ENOTSUP', `${LIBRARY} cannot be loaded (${messageOf(error)}): ${LIBBPF_FIX}`);
  }
  const buffer = Buffer.alloc(MESSAGE_BYTES);
  // A va_list is passed by its address on x86-64 and arm64 Linux, and handed on as it is.
  const print = koffi.register(
    (level: number, format: unknown, list: unknown) => {
      if (level >= LEVEL_DEBUG) return 0;
      const length: number = library.vsnprintf(buffer, buffer.length, format, list);
      said.push(buffer.toString('utf8', 0, Math.min(length, buffer.length - 1)).trimEnd());
      return 0;
    },
    koffi.pointer(koffi.proto('int libbpf_print(int level, void *format, void *list)')),
  );
  library.setPrint(print);
  bound = library;
  return library;
}

/** Why libbpf cannot be used; undefined where it can. */
export function libbpfProblem(): string | undefined {
  try {
    libbpf();
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

/** libbpf's calls return a negative errno, or no pointer with errno set; what it had to say goes into the message. */
function checked(result: number, call: string, subject: string): void {
  if (result < 0) throw failure(result < -1 ? -result : koffi.errno(), call, subject);
  said.length = 0;
}

function pointer(result: number, call: string, subject: string): number {
  if (result === 0) throw failure(koffi.errno(), call, subject);
  said.length = 0;
  return result;
}

function failure(errno: number, call: string, subject: string): SystemError {
  const text = said.splice(0).join('; ').slice(-2000);
  return new SystemError(call, errno, text === '' ? subject : `${subject} (${text})`);
}

const BPF_TRACE_RAW_TP = 23;

/** Whether the kernel has a tracepoint that typed programs can be attached to (needs BTF). */
export function hasTypedTracepoint(name: string): boolean {
  const id: number = libbpf().findVmlinuxType(name, BPF_TRACE_RAW_TP);
  said.length = 0;
  return id > 0;
}

export interface ObjectSpec {
  /** First bytes of the program's constants. */
  constants: Uint8Array;
  entries: ReadonlyArray<readonly [map: string, count: number]>;
  /** Every program and map of the object that is not wanted. */
  leftOut: { programs: readonly string[]; maps: readonly string[] };
}

/** A program and its maps, loaded from an object file. */
export class BpfObject {
  readonly #library = libbpf();
  readonly #object: number;
  readonly #links: number[] = [];

  constructor(path: string, spec: ObjectSpec) {
    this.#object = pointer(this.#library.openFile(path, 0), 'bpf_object__open_file', path);
    try {
      const constants = this.#map('.rodata');
      checked(
        this.#library.setInitialValue(constants, spec.constants, spec.constants.byteLength),
        'bpf_map__set_initial_value',
        '.rodata',
      );
      for (const [name, count] of spec.entries)
        checked(this.#library.setMaxEntries(this.#map(name), count), 'bpf_map__set_max_entries', name);
      for (const name of spec.leftOut.programs)
        checked(this.#library.setAutoload(this.#program(name), false), 'bpf_program__set_autoload', name);
      for (const name of spec.leftOut.maps)
        checked(this.#library.setAutocreate(this.#map(name), false), 'bpf_map__set_autocreate', name);
      checked(this.#library.load(this.#object), 'bpf_object__load', path);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  pinMap(name: string, path: string): void {
    checked(this.#library.pinMap(this.#map(name), path), 'bpf_map__pin', path);
  }

  pinProgram(name: string, path: string): void {
    checked(this.#library.pinProgram(this.#program(name), path), 'bpf_program__pin', path);
  }

  /** Attaches a program to what its section names, and pins the link: from now on it runs until the pin is removed. */
  attach(name: string, path: string): void {
    const link = pointer(this.#library.attach(this.#program(name)), 'bpf_program__attach', name);
    this.#links.push(link);
    checked(this.#library.pinLink(link, path), 'bpf_link__pin', path);
  }

  close(): void {
    for (const link of this.#links.splice(0)) checked(this.#library.destroyLink(link), 'bpf_link__destroy', '');
    this.#library.closeObject(this.#object);
  }

  #program(name: string): number {
    return pointer(this.#library.findProgram(this.#object, name), 'bpf_object__find_program_by_name', name);
  }

  #map(name: string): number {
    return pointer(this.#library.findMap(this.#object, name), 'bpf_object__find_map_by_name', name);
  }
}

/** A descriptor of something pinned; undefined where there is nothing of that name. */
export function openPinned(path: string): number | undefined {
  const fd: number = libbpf().getPinned(path);
  if (fd >= 0) return fd;
  const errno = koffi.errno();
  said.length = 0;
  if (errno === 2) return undefined;
  throw new SystemError('bpf_obj_get', errno, path);
}

const ENOENT = 2;

/**
 * What a hash map holds. Of one that is changed meanwhile not all may be seen, where that happens faster than it is walked through: all of
 * it is seen when it stands still. Keys and values are of whole 64-bit words.
 */
export function entriesOfHash(
  fd: number,
  { keyWords, valueWords, entriesMax }: { keyWords: number; valueWords: number; entriesMax: number },
): Map<string, BigUint64Array> {
  const found = new Map<string, BigUint64Array>();
  const next = new BigUint64Array(keyWords);
  let key: Uint8Array | null = null;
  // A key that is removed in between has the walk begin again: so it has an end.
  for (let step = 0; step < entriesMax; step++) {
    if (libbpf().nextKey(fd, key, new Uint8Array(next.buffer)) !== 0) {
      const errno = koffi.errno();
      if (errno === ENOENT) return found;
      throw new SystemError('bpf_map_get_next_key', errno, `fd ${fd}`);
    }
    key = new Uint8Array(next.slice().buffer);
    const value = new BigUint64Array(valueWords);
    if (libbpf().lookUp(fd, key, new Uint8Array(value.buffer)) === 0) found.set(next.join(), value);
  }
  return found;
}

function infoOf(fd: number, lengthBytes: number): DataView {
  const info = new Uint8Array(lengthBytes);
  checked(libbpf().infoByFd(fd, info, [lengthBytes]), 'bpf_obj_get_info_by_fd', `fd ${fd}`);
  return new DataView(info.buffer);
}

/** Offsets in struct bpf_prog_info and struct bpf_map_info (linux/bpf.h): fields are only ever added at the end. */
const PROGRAM_INFO_BYTES = 232;
const RECURSION_MISSES = 208;
const MAP_INFO_BYTES = 88;
const VALUE_SIZE = 12;
const MAX_ENTRIES = 16;
const PAGE_BYTES = 4096;

/** How often a program was not run because it was running on that processor already (Linux 5.12). */
export function recursionMisses(programFd: number): number {
  return Number(infoOf(programFd, PROGRAM_INFO_BYTES).getBigUint64(RECURSION_MISSES, true));
}

/** Maps a pinned array that was made mappable, whole. Values begin at multiples of 8 bytes. */
export function mapPinnedArray(path: string): Mapping | undefined {
  const fd = openPinned(path);
  if (fd === undefined) return undefined;
  try {
    const info = infoOf(fd, MAP_INFO_BYTES);
    const strideBytes = Math.ceil(info.getUint32(VALUE_SIZE, true) / 8) * 8;
    const lengthBytes = Math.ceil((strideBytes * info.getUint32(MAX_ENTRIES, true)) / PAGE_BYTES) * PAGE_BYTES;
    return mapShared(fd, 0, lengthBytes);
  } finally {
    close(fd);
  }
}
