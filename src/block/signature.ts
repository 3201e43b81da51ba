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
    magic: Buffer.of(0xfc, 0x4e, 0x2b, 0xa9),
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

/** Whether anything that the head has a mark of can be used without a trace in it, whatever else it has. */
export function leavesNoTrace(head: Buffer): boolean {
  return KNOWN.some((one) => one.leavesNoTrace === true && isIn(head, one));
}
