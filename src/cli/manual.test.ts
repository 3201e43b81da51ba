import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { main as cowbird } from './cowbird.js';
import { main as dbdctl } from './dbdctl.js';
import { main as elioctl } from './elioctl.js';
import { generatedFiles, MANUAL_DIR, projectRoot } from './generate-man.js';
import { COWBIRD } from './spec/cowbird.js';
import { fakeIo } from './testing.js';
import { main as updateImg } from './update-img.js';

const OPTION = /(?<![\w/-])--?[A-Za-z][A-Za-z-]*/g;
const optionsIn = (text: string): string[] => [...new Set(text.match(OPTION) ?? [])].sort();

/** A man page as a reader sees it. */
function plain(page: string): string {
  return page.replaceAll(/\\f[BIR]/g, ' ').replaceAll('\\-', '-');
}

async function helpOf(
  tool: (argv: string[], io: ReturnType<typeof fakeIo>) => Promise<number>,
  argv: string[],
): Promise<string> {
  const io = fakeIo();
  assert.equal(await tool(argv, io), 0);
  return io.stdout;
}

describe('the manual', () => {
  it('is what the generator makes: run `npm run build && node dist/src/cli/generate-man.js` and commit', () => {
    const root = projectRoot();
    const files = generatedFiles();
    for (const [path, text] of files) {
      assert.ok(existsSync(join(root, path)), `${path} is missing`);
      assert.equal(readFileSync(join(root, path), 'utf8'), text, path);
    }
    for (const name of readdirSync(join(root, MANUAL_DIR)))
      assert.ok(files.has(`${MANUAL_DIR}/${name}`), `${name} has no source`);
  });

  it('names every option that --help names, and the reverse', async () => {
    const tools = { cowbird, dbdctl, elioctl, 'update-img': updateImg };
    for (const [name, tool] of Object.entries(tools)) {
      let help = await helpOf(tool, ['--help']);
      if (name === 'cowbird') {
        for (const command of COWBIRD.commands) help += await helpOf(tool, [...command.name.split(' '), '--help']);
      }
      const page = generatedFiles().get(`man/${name}.8`) ?? '';
      assert.deepEqual(optionsIn(plain(page)), optionsIn(help), name);
    }
  });

  it('has a page for each command of cowbird, with the options and exit codes of its --help', async () => {
    for (const command of COWBIRD.commands) {
      const help = await helpOf(cowbird, [...command.name.split(' '), '--help']);
      const page = generatedFiles().get(`${MANUAL_DIR}/${command.name.replaceAll(' ', '-')}.md`) ?? '';
      assert.deepEqual(optionsIn(page), optionsIn(help), command.name);
      for (const { status } of COWBIRD.exits) {
        assert.match(help, new RegExp(`^  ${status} +\\S`, 'm'), `${command.name} --help says exit code ${status}`);
        assert.match(page, new RegExp(`^\\| \`${status}\` \\|`, 'm'));
      }
    }
  });
});
