/** What the first blocks of a disk tell of it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { HEAD_BYTES, isRaidSuperblock, leavesNoTrace, raidSuperblockOffsets, signatureOf } from './signature.js';

function headWith(...marks: ReadonlyArray<readonly [at: number, text: string]>): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  for (const [at, text] of marks) head.write(text, at, 'latin1');
  return head;
}

const BOOT_MARK = [510, '\x55\xaa'] as const;
const EXT_MARK = [1080, '\x53\xef'] as const;

describe('what a disk holds', () => {
  it('is told by magic numbers, with the uuid', () => {
    const head = headWith(BOOT_MARK);
    assert.equal(signatureOf(Buffer.alloc(HEAD_BYTES)), undefined);
    assert.deepEqual(signatureOf(head), { name: 'a partition table', kind: undefined, id: undefined });
    head.writeUInt32LE(0x12345678, 440);
    assert.deepEqual(signatureOf(head), { name: 'a partition table', kind: undefined, id: '78563412' });
    head.write('\x53\xef', 1080, 'latin1');
    head.fill(0xab, 1128, 1144);
    assert.deepEqual(signatureOf(head), { name: 'ext2, ext3 or ext4', kind: 'ext', id: 'ab'.repeat(16) });
  });

  it('is told of a disk that is shorter than what is looked at', () => {
    assert.equal(signatureOf(Buffer.from('XFSB'))?.kind, 'xfs');
    assert.equal(signatureOf(Buffer.alloc(0)), undefined);
  });

  it('is XFS where its inode tables happen to have the mark of another', () => {
    assert.equal(signatureOf(headWith([0, 'XFSB'], EXT_MARK))?.kind, 'xfs');
  });

  it('is the file system and not its boot sector', () => {
    for (const [name, mark] of [
      ['BitLocker', [3, '-FVE-FS-']],
      ['NTFS', [3, 'NTFS    ']],
      ['exFAT', [3, 'EXFAT   ']],
      ['FAT', [54, 'FAT16   ']],
    ] as const)
      assert.equal(signatureOf(headWith(BOOT_MARK, mark))?.name, name);
  });

  it('is an LVM volume in whichever of four sectors its label is, with the uuid behind it', () => {
    for (const at of [0, 512, 1024, 1536])
      assert.deepEqual(signatureOf(headWith([at, 'LABELONE'], [at + 32, 'u'.repeat(32)])), {
        name: 'LVM',
        kind: undefined,
        id: '75'.repeat(32),
      });
  });

  it('is swap whatever the size of its pages', () => {
    for (const page of [4096, 16_384, 65_536])
      assert.equal(signatureOf(headWith([page - 10, 'SWAPSPACE2']))?.name, 'swap');
  });

  it('is told of file systems that nothing here reads, so that nobody writes over them unasked', () => {
    for (const [name, at, magic] of [
      ['JFS', 32_768, 'JFS1'],
      ['reiserfs', 65_588, 'ReIsEr2Fs'],
      ['bcache', 4120, '\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81'],
      ['ZFS', 16_408, 'version'],
      ['GFS2', 65_536, '\x01\x16\x19\x70'],
      ['OCFS2', 4096, 'OCFSV2'],
      ['NILFS2', 1030, '44'],
      ['APFS', 32, 'NXSB'],
      ['HFS+', 1024, 'H+'],
      ['UFS', 66_908, '\x19\x01\x54\x19'],
      ['UDF', 32_769, 'NSR03'],
      ['a RAID member', 0, '\xfc\x4e\x2b\xa9'],
    ] as const) {
      const head = headWith([at, magic]);
      assert.equal(signatureOf(head)?.name, name);
      assert.equal(leavesNoTrace(head), !['UDF', 'a RAID member'].includes(name), name);
    }
  });

  it('is a member of a RAID whose superblock is at its end', () => {
    const sizeBytes = 100 * 1_048_576 + 3 * 512;
    assert.deepEqual(raidSuperblockOffsets(sizeBytes), [100 * 1_048_576 - 65_536, 100 * 1_048_576 - 8192]);
    assert.deepEqual(raidSuperblockOffsets(4096), []);
    assert.ok(isRaidSuperblock(Buffer.from('fc4e2ba900', 'hex')));
    assert.ok(!isRaidSuperblock(Buffer.alloc(4096)));
  });

  it('can be used without a trace where anything of it can, whatever else is there', () => {
    assert.ok(leavesNoTrace(headWith(EXT_MARK, [0, 'LUKS\xba\xbe'])));
    assert.ok(leavesNoTrace(headWith(BOOT_MARK, [82, 'FAT32   '])));
    for (const head of [headWith(EXT_MARK), headWith([0, 'XFSB']), headWith([65_600, '_BHRfS_M']), headWith(BOOT_MARK)])
      assert.ok(!leavesNoTrace(head));
  });
});
