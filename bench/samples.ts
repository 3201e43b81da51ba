/** perf's samples, and the groups that the profile puts them into. */
export interface Frame {
  symbol: string;
  object: string;
}

/** The innermost frame first. */
export type Sample = Frame[];

/** Reads the output of `perf script -F comm,tid,ip,sym,dso`: a line for each frame, an empty line between samples. */
export function parseSamples(text: string): Sample[] {
  const samples: Sample[] = [];
  let sample: Sample = [];
  for (const line of text.split('\n')) {
    const frame = /^\s+[0-9a-f]+ (.*) \(([^()]*|\[[^\]]*\][^()]*)\)$/.exec(line);
    if (frame !== null) sample.push({ symbol: frame[1] ?? '', object: frame[2] ?? '' });
    else if (sample.length > 0) {
      samples.push(sample);
      sample = [];
    }
  }
  if (sample.length > 0) samples.push(sample);
  return samples;
}

const isKernel = (frame: Frame): boolean => frame.object.startsWith('[');

/** The first that matches any frame names the sample. A FUSE request and its reply are told from other reads and writes. */
const SYSCALLS: ReadonlyArray<readonly [RegExp, string]> = [
  [/^fuse_dev_(do_)?read/, 'kernel: read of a FUSE request'],
  [/^fuse_dev_(do_)?write/, 'kernel: write of a FUSE reply'],
  [/^(__x64_sys_|ksys_|__se_sys_|__arm64_sys_)?pread64$/, 'kernel: pread of the origin'],
  [/^(__x64_sys_|ksys_|__se_sys_|__arm64_sys_)?pwrite64$/, 'kernel: pwrite of origin or store'],
  [/^(do_sys_poll|__x64_sys_p?poll|__arm64_sys_ppoll|do_poll)/, 'kernel: poll'],
  [/futex/, 'kernel: futex'],
  [/^(__x64_sys_|__arm64_sys_)(fsync|fdatasync|fallocate)/, 'kernel: flush and discard'],
];
/** The edge of a system call: which one, only the C library's function tells. */
const WRAPPERS: ReadonlyArray<readonly [RegExp, string]> = [
  [/pread/, 'kernel: pread of the origin'],
  [/pwrite/, 'kernel: pwrite of origin or store'],
  [/poll/, 'kernel: poll'],
  [/read/, 'kernel: read of a FUSE request'],
  [/write/, 'kernel: write of a FUSE reply'],
];
const COPY = /copy_(to|from)_user|rep_movs|copy_user|^_?copy_|copyin|copyout|^(__pi_)?memcpy|fuse_copy_fill/;
const GARBAGE = /Scaveng|MarkCompact|Sweep|Heap::(Collect|Perform|Garbage)|Evacuat|GCTracer|Marking/;
const GLUE =
  /napi_|FunctionCallback|HandleApiCall|Builtin_HandleApi|v8::(Local|Value|Number|Function|Object|Array)|v8impl/;

function kernelGroup(sample: Sample): string {
  for (const [pattern, name] of SYSCALLS) if (sample.some(({ symbol }) => pattern.test(symbol))) return name;
  const caller = sample.find((frame) => !isKernel(frame));
  if (caller?.object.includes('libc')) {
    for (const [pattern, name] of WRAPPERS) if (pattern.test(caller.symbol)) return name;
  }
  return 'kernel: other';
}

function userGroup({ symbol, object }: Frame): string {
  if (/\/perf-\d+\.map$/.test(object)) return 'JavaScript';
  if (object.includes('koffi')) return 'FFI: koffi';
  if (object.includes('libc')) return 'C library';
  if (symbol.startsWith('Builtins_')) return 'JavaScript: built-ins';
  if (GARBAGE.test(symbol)) return 'garbage collection';
  if (GLUE.test(symbol)) return 'FFI: Node-API';
  return 'Node, other';
}

export interface Groups {
  samples: number;
  shares: Array<{ name: string; share: number; copyShare: number }>;
  topSymbols: Array<{ symbol: string; share: number }>;
}

const TOP_SYMBOLS = 25;

/** Shares of all samples; `copyShare` is the part of a group in which the kernel copied memory. */
export function groupSamples(samples: readonly Sample[]): Groups {
  const groups = new Map<string, { count: number; copies: number }>();
  const symbols = new Map<string, number>();
  for (const sample of samples) {
    const [leaf] = sample;
    if (leaf === undefined) continue;
    const name = isKernel(leaf) ? kernelGroup(sample) : userGroup(leaf);
    const group = groups.get(name) ?? { count: 0, copies: 0 };
    group.count++;
    if (isKernel(leaf) && COPY.test(leaf.symbol)) group.copies++;
    groups.set(name, group);
    // The place in the sources is the same for all versions of a compiled function; its address is of no use to anybody.
    const symbol = leaf.symbol.replace(/ file:\/\/\S*\/(dist\/\S+)/, ' $1').slice(0, 90);
    symbols.set(symbol, (symbols.get(symbol) ?? 0) + 1);
  }
  const all = Math.max(samples.length, 1);
  return {
    samples: samples.length,
    shares: [...groups]
      .map(([name, { count, copies }]) => ({ name, share: count / all, copyShare: copies / all }))
      .sort((a, b) => b.share - a.share),
    topSymbols: [...symbols]
      .map(([symbol, count]) => ({ symbol, share: count / all }))
      .sort((a, b) => b.share - a.share)
      .slice(0, TOP_SYMBOLS),
  };
}
