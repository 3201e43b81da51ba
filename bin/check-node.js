// Plain old JavaScript on purpose: a Node that is too old must be able to read it, to be told so.
'use strict';

var NEEDED = [20, 19];

function isTooOld(version) {
  var parts = version.replace(/^v/, '').split('.');
  var major = Number(parts[0]);
  var minor = Number(parts[1]);
  return major < NEEDED[0] || (major === NEEDED[0] && minor < NEEDED[1]);
}

function check(version) {
  if (!isTooOld(version)) return true;
  console.error('Cowbird needs Node ' + NEEDED.join('.') + ' or newer; this is ' + version);
  return false;
}

module.exports = { check: check, isTooOld: isTooOld };
