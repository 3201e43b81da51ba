import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { rulesFileName, volumeRules } from './udev.js';

const RULES = volumeRules('data', '/run/cowbird/fuse', '# first');
const rule = (pattern: RegExp): string => RULES.split('\n').find((line) => pattern.test(line)) ?? '';

describe('the udev rules of a volume', () => {
  it('come before those that make links by contents', () => {
    assert.equal(rulesFileName('data'), '59-cowbird-data.rules');
    assert.ok(rulesFileName('data') < '60-persistent-storage.rules');
  });

  it('name the loop device by what is behind it, as its number changes, and tell systemd', () => {
    assert.equal(
      rule(/"disk"/),
      'ENV{DEVTYPE}=="disk", ATTR{loop/backing_file}=="/run/cowbird/fuse/volume-data", SYMLINK+="cowbird/data", TAG+="systemd", OPTIONS+="link_priority=50"',
    );
    assert.match(
      rule(/"partition"/),
      /ATTRS\{loop\/backing_file\}=="[^"]*volume-data", SYMLINK\+="cowbird\/data-part%n"/,
    );
  });

  it('keep links by contents, LVM, md and desktops away from snapshots', () => {
    const snapshots = rule(/snapshot-\*/);
    for (const part of ['UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"', 'UDISKS_IGNORE}="1"', 'link_priority=-100'])
      assert.ok(snapshots.includes(part), part);
  });

  it('are comments, or lists of tests and assignments', () => {
    for (const line of RULES.trimEnd().split('\n')) {
      if (line === '' || line.startsWith('#')) continue;
      for (const part of line.split(', ')) assert.match(part, /^[A-Z]+(\{[^}]+\})?(==|!=|=|\+=)"[^"]*"$/, line);
    }
  });

  it('are refused for a run directory that would be a pattern in them', () => {
    for (const folder of ['/run/a*', '/run/"', '/run/a b', '/run/$x', '/run/%k', '/run/[a]'])
      assert.throws(() => volumeRules('data', folder, '#'), { code: 'EINVAL' });
  });
});
