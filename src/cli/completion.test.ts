/** The completions, as bash and zsh themselves complete. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { completionScript } from './completion.js';
import { main } from './cowbird.js';
import { COWBIRD } from './spec/cowbird.js';
import { DBDCTL } from './spec/drivers.js';
import { optionsOf } from './spec/help.js';
import { fakeIo } from './testing.js';

const TIMEOUT_MS = 40_000;
/** Behind all that zsh offers for a line. */
const END = '--end--';
const folder = mkdtempSync(join(tmpdir(), 'cowbird-completion-'));
const dev = join(folder, 'dev');

before(() => {
  mkdirSync(join(dev, 'cowbird'), { recursive: true });
  for (const name of ['cowbird/data', 'cowbird/logs', 'cowbird0', 'cowbird17'])
    symlinkSync('/dev/null', join(dev, name));
  for (const name of ['disk.img', 'disk two.img']) writeFileSync(join(folder, name), '');
  for (const shell of ['bash', 'zsh'] as const) writeFileSync(join(folder, shell), completionScript(shell));
});
after(() => rmSync(folder, { recursive: true }));

/** Why a shell's test cannot run here; false where it can. */
function without(shell: string): string | false {
  return spawnSync(shell, ['--version']).status === 0 ? false : `needs ${shell} (\`apt-get install ${shell}\`)`;
}

/** What bash puts in place of the last word. */
function inBash(words: readonly string[]): string[] {
  const script = `
    source ${folder}/bash; _cowbird_dev=${dev}; cd ${folder}
    [[ $(complete -p "$1") == "complete -F _cowbird $1" ]] || exit 9
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _cowbird "$1" "\${COMP_WORDS[COMP_CWORD]}" "\${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\\n' "\${COMPREPLY[@]}"`;
  const output = execFileSync('bash', ['--norc', '-uc', script, 'bash', ...words], { timeout: TIMEOUT_MS });
  return output
    .toString()
    .split('\n')
    .filter((line) => line !== '');
}

/** What zsh offers for lines at whose ends Tab is pressed: in an interactive shell, on a terminal of its own. */
function inZsh(lines: readonly string[]): string[][] {
  const captured = join(folder, 'captured');
  const setup = `
    autoload -U compinit && compinit -u -D; source ${folder}/zsh; _cowbird_dev=${dev}; cd ${folder}
    compadd() {
      local -a hits; builtin compadd -A hits "$@"; print -rl -- $hits >> ${captured}
      builtin compadd "$@"
    }
    functions -c _cowbird _completed
    _cowbird() { _completed "$@"; local status_=$?; print -r -- ${END} >> ${captured}; return $status_; }
    print -r -- rea''dy`;
  writeFileSync(join(folder, 'setup'), setup);
  const script = `
    zmodload zsh/zpty; zpty shell zsh -f -i; zpty -w shell 'source ${folder}/setup'; zpty -r shell seen '*ready*'
    n=0
    for line in "$@"; do
      : > ${captured}
      zpty -w -n shell $'\\C-u'"$line"$'\\t'
      repeat 400; do sleep 0.02; [[ "$(< ${captured})" == *${END}* ]] && break; done
      cp ${captured} ${captured}.$((n++))
    done
    zpty -d shell`;
  execFileSync('zsh', ['-f', '-c', script, 'zsh', ...lines], { timeout: TIMEOUT_MS, stdio: 'ignore' });
  return lines.map((_, i) => {
    // What would stand on the line is quoted.
    const words = readFileSync(`${captured}.${i}`, 'utf8').replaceAll('\\', '').split('\n');
    return [...new Set(words.filter((word) => word !== '' && word !== END))];
  });
}

/** Each line with what may stand at its end. */
function offers(): ReadonlyArray<readonly [line: string, offered: string[]]> {
  const first = [...new Set(COWBIRD.commands.map(({ name }) => name.split(' ')[0] ?? ''))];
  const daemon = COWBIRD.commands.flatMap(({ name }) => (name.startsWith('daemon ') ? [name.slice(7)] : []));
  const setup = COWBIRD.commands.find(({ name }) => name === 'setup-snapshot');
  assert.ok(setup !== undefined);
  const long = optionsOf(setup).flatMap((option) => (option.long === undefined ? [] : [option.long]));
  return [
    ['cowbird ', first],
    ['cowbird tra', ['track', 'tracking', 'transition-to-incremental', 'transition-to-snapshot']],
    ['cowbird daemon ', daemon],
    ['cowbird setup-snapshot --', long],
    ['cowbird detach ', ['data', 'logs', 'disk.img', 'disk two.img']],
    ['cowbird destroy ', ['0', '17']],
    ['cowbird transition-to-snapshot --size 5 x ', ['0', '17']],
    ['cowbird attach di', ['disk.img', 'disk two.img']],
    ['cowbird help dae', ['daemon']],
    ['cowbird umount ', ['disk.img', 'disk two.img']],
    ['cowbird changes ', ['0', '17', 'disk.img']],
    ['cowbird mount ', ['0', '17', 'disk.img']],
    ['cowbird backup --wait ', ['disk.img', 'disk two.img']],
    ['cowbird completion ', ['bash', 'zsh']],
    ['dbdctl ', DBDCTL.commands.map(({ name }) => name)],
    ['update-img disk.img --', ['--scan', '--version', '--help']],
    ['update-img disk.img di', ['disk.img', 'disk two.img']],
  ];
}

describe('the completions', () => {
  it('are offered by bash: commands, options, volumes, minors, files', { skip: without('bash') }, () => {
    for (const [line, offered] of offers()) {
      const found = inBash(line.split(' '));
      // A plain word may be a file of the folder as well.
      for (const word of offered)
        assert.ok(found.includes(word), `${line}| offers ${word}, not only ${found.join(' ')}`);
      if (!offered.some((word) => word.startsWith('disk'))) assert.deepEqual(found.sort(), [...offered].sort(), line);
    }
  });

  it('are offered by zsh: commands, options, volumes, minors, files', { skip: without('zsh') }, () => {
    const lines = offers();
    inZsh(lines.map(([line]) => line)).forEach((found, i) => {
      const [line = '', offered = []] = lines[i] ?? [];
      for (const word of offered)
        assert.ok(found.includes(word), `${line}| offers ${word}, not only ${found.join(' ')}`);
    });
  });

  it('are printed for the shells that there are, and refused for others', async () => {
    const io = fakeIo();
    assert.equal(await main(['completion', 'bash'], io), 0);
    assert.equal(io.stdout, completionScript('bash'));
    assert.equal(await main(['completion', 'fish'], io), 3);
    assert.match(io.stderr, /fish.*bash and zsh/);
  });
});
