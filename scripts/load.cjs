'use strict';

const { join } = require('node:path');
const { pathToFileURL } = require('node:url');

module.exports = async function load(name) {
  const { main } = await import(pathToFileURL(join(__dirname, `${name}.mjs`)).href);
  process.exitCode = await main(process.argv.slice(3));
};
