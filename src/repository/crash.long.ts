/** The long run (`npm run test:long`): at every effect many power cuts, each of which leaves another part of what was not durable. */
process.env['COWBIRD_CUT_TRIES'] ??= '10';
await import('./crash.test.js');
await import('./used-map.test.js');
