/** What the documents say is what the code does. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { EVENTS, eventNames as eventNamesOfDaemon } from '../src/engine/events.js';
import { type EventName, STATE_TABLE, type StateName, stateName, stateNumber } from '../src/engine/states.js';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const words = (name: string): string => name.replace(/([A-Z])/g, ' $1').toLowerCase();

function stateNames(): StateName[] {
  return Object.keys(STATE_TABLE).filter((name): name is StateName => name in STATE_TABLE);
}

function eventNames(): EventName[] {
  return Object.keys(STATE_TABLE.none).filter((name): name is EventName => name in STATE_TABLE.none);
}

describe('the table of states', () => {
  it('is printed in the architecture document as it is in the code', () => {
    const document = readFileSync(join(ROOT, 'docs', 'architecture.md'), 'utf8');
    const printed = document.slice(document.indexOf('<!-- states -->') + 16, document.indexOf('<!-- /states -->'));
    const cell = (state: StateName, event: EventName): string => {
      const row = STATE_TABLE[state][event];
      if ('refuse' in row) return row.refuse;
      return row.to === state ? '·' : words(row.to);
    };
    const lines = [
      `| event | ${stateNames().map(words).join(' | ')} |`,
      `|---|${stateNames()
        .map(() => '---')
        .join('|')}|`,
      ...eventNames().map(
        (event) =>
          `| ${event} | ${stateNames()
            .map((state) => cell(state, event))
            .join(' | ')} |`,
      ),
    ];
    assert.equal(printed, `${lines.join('\n')}\n`);
  });

  it('has one outcome for every state and event, and leads only to states that it has', () => {
    for (const state of stateNames()) {
      assert.deepEqual(Object.keys(STATE_TABLE[state]).sort(), [...eventNames()].sort(), state);
      for (const event of eventNames()) {
        const row = STATE_TABLE[state][event];
        if ('to' in row) assert.ok(stateNames().includes(row.to), `${state} ${event}`);
      }
    }
  });

  it('destroys from every state but none, and never lets an unverified list of changes go on', () => {
    for (const state of stateNames()) {
      assert.deepEqual(STATE_TABLE[state].destroy, state === 'none' ? { refuse: 'ENOENT' } : { to: 'none' });
    }
    for (const state of ['unverifiedSnapshot', 'unverifiedIncremental'] as const) {
      assert.deepEqual(STATE_TABLE[state].transitionToSnapshot, { refuse: 'EINVAL' });
    }
  });

  it('gives the numbers of the peer', () => {
    const numbers = (['incremental', 'snapshot'] as const).flatMap((mode) =>
      [
        { unverified: false, active: false },
        { unverified: false, active: true },
        { unverified: true, active: true },
      ].map((facts) => [stateName({ mode, failed: false, ...facts }), stateNumber({ mode, failed: false, ...facts })]),
    );
    assert.deepEqual(Object.fromEntries(numbers), {
      dormantIncremental: 0,
      dormantSnapshot: 1,
      activeIncremental: 2,
      activeSnapshot: 3,
      unverifiedIncremental: 4,
      unverifiedSnapshot: 5,
    });
  });
});

describe('the list of events', () => {
  const source = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts') && !name.endsWith('engine/events.ts'))
    .map((name) => readFileSync(join(ROOT, 'src', name), 'utf8'))
    .join('\n');

  it('has every event that the sources emit, and none that they do not', () => {
    const emitted = new Set([...source.matchAll(/\bevent: '([^']+)'/g)].map(([, name]) => name));
    assert.deepEqual([...emitted].sort(), eventNamesOfDaemon().sort());
  });

  it('is printed with its fields and levels in docs/events.md', () => {
    const page = readFileSync(join(ROOT, 'docs', 'events.md'), 'utf8');
    for (const name of eventNamesOfDaemon()) {
      const row = page.split('\n').find((line) => line.startsWith(`| \`${name}\` |`));
      assert.ok(row !== undefined, name);
      for (const field of Object.keys(EVENTS[name].fields)) assert.ok(row.includes(`\`${field}\``), `${name} ${field}`);
      for (const level of EVENTS[name].levels) assert.ok(row.includes(level), `${name} ${level}`);
    }
  });
});

describe('the documents', () => {
  const pages = [
    'README.md',
    ...readdirSync(join(ROOT, 'docs'))
      .filter((name) => name.endsWith('.md'))
      .map((name) => `docs/${name}`),
  ];

  it('link only to files that exist', () => {
    for (const page of pages) {
      for (const [, target = ''] of readFileSync(join(ROOT, page), 'utf8').matchAll(/\]\(([^)#]+)[^)]*\)/g)) {
        if (!target.startsWith('http')) assert.ok(existsSync(join(ROOT, dirname(page), target)), `${page} → ${target}`);
      }
    }
  });

  it('quote only tests that exist', () => {
    // `test/file.test.ts` "a part of a title…", "another"; a title may also be named by its number.
    const cited = /`((?:src|test)\/[^`*]+\.test\.ts)`((?:,? (?:"[^"]+"(?: \([^)]*\))?|\d+(?=[ ,|;.)])))*)/g;
    let count = 0;
    for (const page of pages) {
      for (const [, file = '', quotes = ''] of readFileSync(join(ROOT, page), 'utf8').matchAll(cited)) {
        assert.ok(existsSync(join(ROOT, file)), `${page}: ${file}`);
        const source = readFileSync(join(ROOT, file), 'utf8');
        const titles = [...source.matchAll(/\b(?:it|test|describe)\(\s*(['`])((?:(?!\1).)+)\1/g)].map(
          ([, , title]) => title,
        );
        for (const [, words, number] of quotes.matchAll(/"([^"]+)"|\b(\d+)\b/g)) {
          const part = words?.replaceAll('…', '') ?? `${number}: `;
          const isThere = titles.some((title) =>
            words === undefined ? title?.startsWith(part) : title?.includes(part),
          );
          assert.ok(isThere, `${page}: ${file} has no test "${part}"`);
          count++;
        }
      }
    }
    assert.ok(count >= 25, `${count} quotes were found`);
  });

  it('give a reason for every run-time dependency, and for nothing else', () => {
    const manifest: { dependencies: Record<string, string> } = JSON.parse(
      readFileSync(join(ROOT, 'package.json'), 'utf8'),
    );
    const page = readFileSync(join(ROOT, 'docs', 'dependencies.md'), 'utf8');
    const listed = [...page.matchAll(/^\| ([@a-z0-9/-]+) \|/gm)]
      .map(([, name]) => name)
      .filter((name) => name !== 'package' && name !== '---');
    assert.deepEqual(listed.sort(), Object.keys(manifest.dependencies).sort());
  });
});
