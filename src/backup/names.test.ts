/** Names of versions, and whether two sources are one. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { SourceIdentity } from '../repository/manifest.js';
import { parseVersionName, parseVersionRange } from './repository-at.js';
import { isSameSource } from './scan-source.js';

describe('the name of a version', () => {
  it('ends with the last @ that has digits behind it', () => {
    assert.deepEqual(parseVersionName('/b/r@12'), { repository: '/b/r', version: 12 });
    assert.deepEqual(parseVersionName('r@1@2'), { repository: 'r@1', version: 2 });
    for (const name of ['/b/r', 'r@', 'r@x', '@3', 'a@3/b', 'r@-1', 'r@1.5'])
      assert.deepEqual(parseVersionName(name), { repository: name, version: undefined });
    assert.deepEqual(parseVersionRange('a@b@2..11'), { repository: 'a@b', from: 2, to: 11 });
    for (const text of ['3', 'r@1', 'r@1..', '@1..2', 'r@1..2x']) assert.equal(parseVersionRange(text), undefined);
  });
});

describe('two sources', () => {
  const one: SourceIdentity = { kind: 'device', path: '/dev/sda1', place: 'serial 2048', content: 'xfs 1234' };

  it('are one when place or contents are the same', () => {
    assert.ok(isSameSource(one, { ...one, path: '/dev/sdb1', content: 'xfs 99' }));
    assert.ok(isSameSource(one, { ...one, place: 'other 2048' }));
    assert.ok(!isSameSource(one, { ...one, place: 'other 2048', content: 'xfs 99' }));
    assert.ok(!isSameSource({ ...one, content: null }, { ...one, place: 'other 2048', content: null }));
  });

  it('are not one where no more than a name is the same and the contents are others by uuid', () => {
    const stick: SourceIdentity = { ...one, place: 'sda1' };
    assert.ok(!isSameSource(stick, { ...stick, content: 'xfs 99' }));
    assert.ok(isSameSource(stick, { ...stick, path: '/dev/sdc1', place: 'sdc1' }));
    for (const content of [null, 'xfs 1234']) assert.ok(isSameSource(stick, { ...stick, content }));
    assert.ok(isSameSource({ ...stick, kind: 'file' }, { ...stick, kind: 'file', content: 'xfs 99' }));
  });
});
