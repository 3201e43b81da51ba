// Read only by a Node that is new enough: see check-node.js.
'use strict';

const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');

module.exports = async function run(name) {
  const program = join(__dirname, '..', 'dist', 'src', 'cli', `${name}.js`);
  if (!existsSync(program)) return notReady('Cowbird is not built yet');
  let main;
  try {
    ({ main } = await import(pathToFileURL(program).href));
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    return notReady(error.message.split('\n')[0]);
  }
  process.exitCode = await main(process.argv.slice(2));
};

function notReady(why) {
  console.error(`${why}: run \`npm run setup\` first`);
  process.exitCode = 1;
}
