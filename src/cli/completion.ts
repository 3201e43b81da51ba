/**
 * Completions for bash and zsh, made from the same data as the parsers and the help: tables of what may follow what, and for
 * each shell one function that walks them. It looks up volumes and minors under /dev, and never asks a daemon, since a
 * question would start one.
 *
 * The tables' keys are a program with its command, `cowbird daemon start`, and where it matters an option behind it: one with
 * a value, or the switch of a command's other form.
 */
import { COWBIRD } from './spec/cowbird.js';
import { DBDCTL, ELIOCTL } from './spec/drivers.js';
import { optionsOf } from './spec/help.js';
import type { OperandSpec, OptionSpec, ProgramSpec } from './spec/types.js';
import { UPDATE_IMG } from './spec/update-img.js';

export const SHELLS = ['bash', 'zsh'] as const;
type Shell = (typeof SHELLS)[number];

export function isShell(name: string): name is Shell {
  return SHELLS.some((shell) => shell === name);
}

/** What is completed: files; volumes by name or path; minors in use, or files too; commands of the program; shells; nothing. */
type Kind = 'file' | 'volume' | 'minor' | 'minor-or-file' | 'command' | 'shell' | 'none';

/** By the names that operands and values have in the help: a new name is given its place here. */
const KINDS = new Map<string, Kind>([
  ['CACHE', 'none'],
  ['CMD', 'file'],
  ['COMMAND', 'command'],
  ['COWFILE', 'file'],
  ['COWFILE:MINOR', 'file'],
  ['DEVICE', 'volume'],
  ['ENGINE', 'none'],
  ['DEVICE:COWFILE:MINOR', 'volume'],
  ['DIR', 'file'],
  ['DIR|DEVICE', 'file'],
  ['DIRECTORY', 'file'],
  ['DISK', 'file'],
  ['FALLOCATE', 'none'],
  ['IMAGE', 'file'],
  ['MINOR', 'minor'],
  ['N', 'none'],
  ['NAME', 'none'],
  ['ORIGIN', 'file'],
  ['RESERVED', 'none'],
  ['SECONDS', 'none'],
  ['SHELL', 'shell'],
  ['REPO', 'file'],
  ['REPO[@N]', 'file'],
  ['REPO@N', 'file'],
  ['REPO|MINOR', 'minor-or-file'],
  ['SIZE', 'none'],
  ['SNAPSHOT', 'file'],
  ['SOURCE', 'file'],
  ['SOURCE:REPO', 'file'],
  ['STEP', 'none'],
  ['TARGET', 'file'],
  ['VOLUME', 'volume'],
  ['WHAT', 'minor-or-file'],
]);

function kindOf(name: string): Kind {
  const kind = KINDS.get(name);
  if (kind === undefined) throw new Error(`${name} has no kind in completion.ts`);
  return kind;
}

interface Tables {
  /** Commands below a program or a group. */
  words: Map<string, string>;
  options: Map<string, string>;
  /** Kind of an option's value. */
  values: Map<string, Kind>;
  /** Kinds of the operands; the last one with a star where any number of them may follow. */
  operands: Map<string, string>;
  /** First sentence about a command or an option. */
  help: Map<string, string>;
}

const PROGRAMS: readonly ProgramSpec[] = [COWBIRD, DBDCTL, ELIOCTL, UPDATE_IMG];

function tablesOf(programs: readonly ProgramSpec[]): Tables {
  const tables: Tables = {
    words: new Map(),
    options: new Map(),
    values: new Map(),
    operands: new Map(),
    help: new Map(),
  };
  for (const program of programs) {
    addNode(tables, program.name, program.options, program.operands);
    for (const command of program.commands) {
      const node = `${program.name} ${command.name}`;
      const parent = node.slice(0, node.lastIndexOf(' '));
      if (parent !== program.name && !tables.words.has(parent)) addWord(tables, parent, `Commands of the ${parent}`);
      addWord(tables, node, command.summary);
      addNode(tables, node, optionsOf(command), command.operands);
      const { otherForm } = command;
      if (otherForm !== undefined)
        tables.operands.set(`${node} ${otherForm.option.long}`, operandKinds(otherForm.operands));
    }
  }
  return tables;
}

function addWord({ words, help }: Tables, node: string, summary: string): void {
  const at = node.lastIndexOf(' ');
  const parent = node.slice(0, at);
  words.set(parent, [words.get(parent), node.slice(at + 1)].filter((part) => part !== undefined).join(' '));
  help.set(node, firstSentence(summary));
}

function addNode(
  { options, values, operands, help }: Tables,
  node: string,
  accepted: readonly OptionSpec[],
  taken: readonly OperandSpec[],
): void {
  const names = accepted.flatMap(({ short, long }) => [short, long].filter((name) => name !== undefined));
  options.set(node, names.join(' '));
  operands.set(node, operandKinds(taken));
  for (const option of accepted) {
    for (const name of [option.short, option.long]) {
      if (name === undefined) continue;
      help.set(`${node} ${name}`, firstSentence(option.help));
      // Where it may be left out, the next word most likely is an operand.
      if (option.value !== undefined && option.optionalValue !== true)
        values.set(`${node} ${name}`, kindOf(option.value));
    }
  }
}

function operandKinds(operands: readonly OperandSpec[]): string {
  return operands.map(({ name, many }) => kindOf(name) + (many === true ? '*' : '')).join(' ');
}

function firstSentence(text: string): string {
  return text.replaceAll('`', '').replace(/[.;:](\s.*)?$/, '');
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The script that a shell sources. */
export function completionScript(shell: Shell): string {
  const tables = tablesOf(PROGRAMS);
  const names = PROGRAMS.map(({ name }) => name).join(' ');
  return shell === 'bash' ? bashScript(tables, names) : zshScript(tables, names);
}

function bashScript(tables: Tables, names: string): string {
  const table = (name: string, entries: ReadonlyMap<string, string>): string =>
    `declare -gA _cowbird_${name}=(\n${[...entries].map(([key, value]) => `  [${quoted(key)}]=${quoted(value)}`).join('\n')}\n)`;
  return `# Completions for bash 4 and later. Generated by \`cowbird completion bash\`.
${table('words', tables.words)}
${table('options', tables.options)}
${table('values', tables.values)}
${table('operands', tables.operands)}
${BASH_FUNCTION}
complete -F _cowbird ${names}
`;
}

const BASH_FUNCTION = String.raw`
_cowbird() {
  local node=\${1##*/} cur=\${COMP_WORDS[COMP_CWORD]} dev=\${_cowbird_dev:-/dev}
  local form='' kind='' word='' found='' i position=0
  local -a kinds
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    if [[ -n $kind ]]; then
      kind=''
    elif [[ $word == -* ]]; then
      kind=\${_cowbird_values["$node $word"]-}
      [[ -n \${_cowbird_operands["$node $word"]-} ]] && form=" $word"
    elif [[ -n \${_cowbird_words["$node"]-} ]]; then
      node+=" $word"
    else
      position=$((position + 1))
    fi
  done
  if [[ -z $kind && $cur == -* ]]; then
    found=\${_cowbird_options["$node"]-}
  elif [[ -z $kind && -n \${_cowbird_words["$node"]-} ]]; then
    found=\${_cowbird_words["$node"]}
  elif [[ -z $kind ]]; then
    read -ra kinds <<< "\${_cowbird_operands["$node$form"]-}"
    if ((position < \${#kinds[@]})); then
      kind=\${kinds[position]}
    elif ((\${#kinds[@]} > 0)) && [[ \${kinds[-1]} == *'*' ]]; then
      kind=\${kinds[-1]}
    fi
  fi
  case $kind in
    volume*) for word in "$dev"/cowbird/*; do [[ -e $word || -L $word ]] && found+=" \${word##*/}"; done ;;
    minor*) for word in "$dev"/cowbird[0-9]*; do [[ -e $word || -L $word ]] && found+=" \${word##*/cowbird}"; done ;;
    command*) found=\${_cowbird_words["\${node%% *}"]-} ;;
    shell) found='bash zsh' ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$found" -- "$cur")
  if [[ $kind == *file* || $kind == volume* ]]; then
    compopt -o filenames 2> /dev/null
    mapfile -t -O "\${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
  fi
}
`.replaceAll('\\$', '$');

function zshScript(tables: Tables, names: string): string {
  const table = (name: string, entries: ReadonlyMap<string, string>): string =>
    `typeset -gA _cowbird_${name}\n_cowbird_${name}=(\n${[...entries].map(([key, value]) => `  ${quoted(key)} ${quoted(value)}`).join('\n')}\n)`;
  return `#compdef ${names}
# Completions for zsh. Generated by \`cowbird completion zsh\`.
${table('words', tables.words)}
${table('options', tables.options)}
${table('values', tables.values)}
${table('operands', tables.operands)}
${table('help', tables.help)}
${ZSH_FUNCTION}
# Found in fpath this file is the function's body; sourced it defines it.
if [[ "\${funcstack[1]}" == _cowbird ]]; then _cowbird "$@"; else compdef _cowbird ${names}; fi
`;
}

const ZSH_FUNCTION = String.raw`
_cowbird() {
  local node=\${words[1]:t} cur=\${words[CURRENT]} dev=\${_cowbird_dev:-/dev} form='' kind='' word=''
  local -i i position=0
  local -a kinds found described
  for ((i = 2; i < CURRENT; i++)); do
    word=\${words[i]}
    if [[ -n $kind ]]; then
      kind=''
    elif [[ $word == -* ]]; then
      kind=\${_cowbird_values[$node $word]-}
      [[ -n \${_cowbird_operands[$node $word]-} ]] && form=" $word"
    elif [[ -n \${_cowbird_words[$node]-} ]]; then
      node+=" $word"
    else
      position+=1
    fi
  done
  if [[ -z $kind && ( $cur == -* || -n \${_cowbird_words[$node]-} ) ]]; then
    if [[ $cur == -* ]]; then found=(\${=_cowbird_options[$node]-}); else found=(\${=_cowbird_words[$node]}); fi
    for word in $found; do described+=("$word:\${_cowbird_help[$node $word]-}"); done
    if [[ $cur == -* ]]; then _describe -o option described; else _describe command described; fi
    return
  fi
  if [[ -z $kind ]]; then
    kinds=(\${=_cowbird_operands[$node$form]-})
    if ((position < \${#kinds})); then
      kind=\${kinds[position + 1]}
    elif [[ \${kinds[-1]-} == *'*' ]]; then
      kind=\${kinds[-1]}
    fi
  fi
  case $kind in
    volume*) found=($dev/cowbird/*(N:t)) ;;
    minor*)
      found=($dev/cowbird<->(N:t))
      found=(\${found#cowbird})
      ;;
    command*) found=(\${=_cowbird_words[\${node%% *}]-}) ;;
    shell) found=(bash zsh) ;;
  esac
  ((\${#found})) && compadd -- $found
  [[ $kind == *file* || $kind == volume* ]] && _files
}
`.replaceAll('\\$', '$');
