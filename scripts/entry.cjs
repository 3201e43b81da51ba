// The way into every script: tells a Node that is too old so in one line, then loads the script of that name.
'use strict';

var check = require('../bin/check-node.js').check;

if (check(process.version)) require('./load.cjs')(process.argv[2]);
else process.exitCode = 1;
