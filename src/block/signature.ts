/**
 * What a disk or image holds, by the magic numbers in its first blocks: the name that people know it by, its uuid where it has one,
 * and whether it can be used without a trace there. One table for three questions: is this the source that a repository is of, would a
 * restore overwrite something, and can a fingerprint prove that nobody used an origin (src/cow/fingerprint.ts)?
 */

/** So much of a disk is looked at. */
export const HEAD_BYTES = 131_072;

/** A file system that a volume's snapshot freezes. */
export type FreezableKind = 'ext' | 'xfs' | 'btrfs';

export interface Signature {
  /** `ext4`, `xfs`, `partition table` … */
  name: string;
  /** Hexadecimal; undefined where it has none. */
  id: string | undefined;
  /** Undefined for everything else. */
  kind: FreezableKind | undefined;
}

interface Known {
  name: string;
  kind?: FreezableKind;
  offset: number;
  magic: Buffer;
  id?: { offset: number; lengthBytes: number };
  /** Keeps what lies on it out of sight, or its own changes elsewhere; or takes its mark of use back at the end. */
  leavesNoTrace?: true;
}

const latin = (text: string): Buffer => Buffer.from(text, 'latin1');

const RAID_MAGIC = Buffer.of(0xfc, 0x4e, 0x2b, 0xa9);

/**
 * File systems before partition tables: a boot sector has the mark of both. XFS first: it has no boot sector, and what others look for
 * lies in its inode tables.
 */
const KNOWN: readonly Known[] = [
  { name: 'xfs', kind: 'xfs', offset: 0, magic: latin('XFSB'), id: { offset: 32, lengthBytes: 16 } },
  {
    name: 'ext2, ext3 or ext4',
    kind: 'ext',
    offset: 1080,
    magic: Buffer.of(0x53, 0xef),
    id: { offset: 1128, lengthBytes: 16 },
  },
  { name: 'btrfs', kind: 'btrfs', offset: 65_600, magic: latin('_BHRfS_M'), id: { offset: 65_568, lengthBytes: 16 } },
  {
    name: 'f2fs',
    offset: 1024,
    magic: Buffer.of(0x10, 0x20, 0xf5, 0xf2),
    id: { offset: 1132, lengthBytes: 16 },
    leavesNoTrace: true,
  },
  { name: 'LUKS', offset: 0, magic: latin('LUKS\xba\xbe'), id: { offset: 168, lengthBytes: 36 }, leavesNoTrace: true },
  // A label is in one of four sectors.
  ...[512, 0, 1024, 1536].map(
    (offset): Known => ({
      name: 'LVM',
      offset,
      magic: latin('LABELONE'),
      id: { offset: offset + 32, lengthBytes: 32 },
      leavesNoTrace: true,
    }),
  ),
  {
    name: 'a RAID member',
    offset: 4096,
    magic: RAID_MAGIC,
    id: { offset: 4112, lengthBytes: 16 },
  },
  // At the end of its first page, and pages have several sizes.
  ...[4096, 8192, 16_384, 32_768, 65_536].map(
    (page): Known => ({
      name: 'swap',
      offset: page - 10,
      magic: latin('SWAPSPACE2'),
      id: { offset: 1036, lengthBytes: 16 },
      leavesNoTrace: true,
    }),
  ),
  { name: 'BitLocker', offset: 3, magic: latin('-FVE-FS-'), leavesNoTrace: true },
  { name: 'NTFS', offset: 3, magic: latin('NTFS    '), id: { offset: 72, lengthBytes: 8 }, leavesNoTrace: true },
  { name: 'exFAT', offset: 3, magic: latin('EXFAT   '), id: { offset: 100, lengthBytes: 4 }, leavesNoTrace: true },
  { name: 'FAT', offset: 82, magic: latin('FAT32   '), id: { offset: 67, lengthBytes: 4 }, leavesNoTrace: true },
  { name: 'FAT', offset: 54, magic: latin('FAT1'), id: { offset: 39, lengthBytes: 4 }, leavesNoTrace: true },
  { name: 'ISO 9660', offset: 32_769, magic: latin('CD001') },
  { name: 'squashfs', offset: 0, magic: latin('hsqs') },
  { name: 'a qcow2 image', offset: 0, magic: latin('QFI\xfb') },
  // A uuid of its own kind says what it is, behind a checksum.
  ...(
    [
      ['bcache', 'c68573f64e1a45ca8265f57f48ba6d81'],
      ['bcachefs', 'c68573f666ce90a9d96a60cf803df7ef'],
    ] as const
  ).map(([name, magic]): Known => ({ name, offset: 4120, magic: Buffer.from(magic, 'hex'), leavesNoTrace: true })),
  // Its label is a list of names and values; this is the first name.
  { name: 'ZFS', offset: 16_408, magic: latin('version'), leavesNoTrace: true },
  { name: 'JFS', offset: 32_768, magic: latin('JFS1'), leavesNoTrace: true },
  ...[8192, 65_536].flatMap((at) =>
    ['ReIsErFs', 'ReIsEr2Fs', 'ReIsEr3Fs'].map(
      (magic): Known => ({ name: 'reiserfs', offset: at + 52, magic: latin(magic), leavesNoTrace: true }),
    ),
  ),
  { name: 'reiser4', offset: 65_536, magic: latin('ReIsEr4'), leavesNoTrace: true },
  { name: 'GFS2', offset: 65_536, magic: Buffer.of(0x01, 0x16, 0x19, 0x70), leavesNoTrace: true },
  // In the second block, and blocks have several sizes.
  ...[1024, 2048, 4096, 8192].map(
    (offset): Known => ({ name: 'OCFS2', offset, magic: latin('OCFSV2'), leavesNoTrace: true }),
  ),
  { name: 'NILFS2', offset: 1030, magic: Buffer.of(0x34, 0x34), leavesNoTrace: true },
  { name: 'EROFS', offset: 1024, magic: Buffer.of(0xe2, 0xe1, 0xf5, 0xe0) },
  { name: 'APFS', offset: 32, magic: latin('NXSB'), leavesNoTrace: true },
  ...['H+', 'HX'].map((magic): Known => ({ name: 'HFS+', offset: 1024, magic: latin(magic), leavesNoTrace: true })),
  { name: 'UFS', offset: 66_908, magic: Buffer.of(0x19, 0x01, 0x54, 0x19), leavesNoTrace: true },
  { name: 'UFS', offset: 9564, magic: Buffer.of(0x54, 0x19, 0x01, 0x00), leavesNoTrace: true },
  ...['BEA01', 'NSR02', 'NSR03'].map((magic): Known => ({ name: 'UDF', offset: 32_769, magic: latin(magic) })),
  { name: 'a RAID member', offset: 0, magic: RAID_MAGIC, id: { offset: 16, lengthBytes: 16 } },
  { name: 'a partition table', offset: 512, magic: latin('EFI PART'), id: { offset: 568, lengthBytes: 16 } },
  { name: 'a partition table', offset: 4096, magic: latin('EFI PART'), id: { offset: 4152, lengthBytes: 16 } },
  { name: 'a partition table', offset: 510, magic: Buffer.of(0x55, 0xaa), id: { offset: 440, lengthBytes: 4 } },
];

const isIn = (head: Buffer, { offset, magic }: Known): boolean =>
  head.subarray(offset, offset + magic.byteLength).equals(magic);

/** What the head of a disk tells; undefined where nothing in it is known. */
export function signatureOf(head: Buffer): Signature | undefined {
  const known = KNOWN.find((one) => isIn(head, one));
  if (known === undefined) return undefined;
  const { name, kind, id } = known;
  const bytes = id === undefined ? Buffer.alloc(0) : head.subarray(id.offset, id.offset + id.lengthBytes);
  return { name, kind, id: bytes.some((byte) => byte !== 0) ? bytes.toString('hex') : undefined };
}

const SECTOR_BYTES = 512;

/**
 * Where a RAID member of the formats 0.90 and 1.0 has its superblock, at the end of the disk: what stands at its head is the array's
 * (linux/raid/md_p.h, md(4)).
 */
export function raidSuperblockOffsets(sizeBytes: number): number[] {
  const oldest = Math.floor(sizeBytes / 65_536) * 65_536 - 65_536;
  const sectors = Math.floor(sizeBytes / SECTOR_BYTES) - 16;
  const newer = Math.floor(sectors / 8) * 8 * SECTOR_BYTES;
  return [oldest, newer].filter((offset) => offset > 0);
}

/** Whether a RAID superblock begins with these bytes. */
export function isRaidSuperblock(bytes: Buffer): boolean {
  return bytes.subarray(0, RAID_MAGIC.byteLength).equals(RAID_MAGIC);
}

/** Whether anything that the head has a mark of can be used without a trace in it, whatever else it has. */
export function leavesNoTrace(head: Buffer): boolean {
  return KNOWN.some((one) => one.leavesNoTrace === true && isIn(head, one));
}
