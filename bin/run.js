// Read only by a Node that is new enough: see check-node.js.
'use strict';

const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');

module.exports = async function run(name) {
  const program = join(__dirname, '..', 'dist', 'src', 'cli', `${name}.js`);
  if (!existsSync(program)) {
    console.error('Cowbird is not built yet: run `npm run setup` first');
    process.exitCode = 1;
    return;
  }
  const { main } = await import(pathToFileURL(program).href);
  process.exitCode = await main(process.argv.slice(2));
};
