/**
 * What a disk or image holds, by the magic numbers in its first blocks: the name that people know it by, and its uuid where
 * it has one. For two questions: is this the source that the repository is of, and would a restore overwrite something?
 */

/** So much of a disk is looked at. */
export const HEAD_BYTES = 131_072;

export interface Signature {
  /** `ext4`, `xfs`, `partition table` … */
  name: string;
  /** Hexadecimal; undefined where it has none. */
  id: string | undefined;
}

interface Known {
  name: string;
  offset: number;
  magic: Buffer;
  id?: { offset: number; lengthBytes: number };
}

const latin = (text: string): Buffer => Buffer.from(text, 'latin1');

/** File systems before partition tables: a boot sector has the mark of both. */
const KNOWN: readonly Known[] = [
  { name: 'ext2, ext3 or ext4', offset: 1080, magic: Buffer.of(0x53, 0xef), id: { offset: 1128, lengthBytes: 16 } },
  { name: 'xfs', offset: 0, magic: latin('XFSB'), id: { offset: 32, lengthBytes: 16 } },
  { name: 'btrfs', offset: 65_600, magic: latin('_BHRfS_M'), id: { offset: 65_568, lengthBytes: 16 } },
  { name: 'f2fs', offset: 1024, magic: Buffer.of(0x10, 0x20, 0xf5, 0xf2), id: { offset: 1132, lengthBytes: 16 } },
  { name: 'LUKS', offset: 0, magic: latin('LUKS\xba\xbe'), id: { offset: 168, lengthBytes: 36 } },
  { name: 'LVM', offset: 512, magic: latin('LABELONE'), id: { offset: 544, lengthBytes: 32 } },
  { name: 'LVM', offset: 0, magic: latin('LABELONE'), id: { offset: 32, lengthBytes: 32 } },
  {
    name: 'a RAID member',
    offset: 4096,
    magic: Buffer.of(0xfc, 0x4e, 0x2b, 0xa9),
    id: { offset: 4112, lengthBytes: 16 },
  },
  { name: 'swap', offset: 4086, magic: latin('SWAPSPACE2'), id: { offset: 1036, lengthBytes: 16 } },
  { name: 'NTFS', offset: 3, magic: latin('NTFS    '), id: { offset: 72, lengthBytes: 8 } },
  { name: 'exFAT', offset: 3, magic: latin('EXFAT   '), id: { offset: 100, lengthBytes: 4 } },
  { name: 'FAT', offset: 82, magic: latin('FAT32   '), id: { offset: 67, lengthBytes: 4 } },
  { name: 'FAT', offset: 54, magic: latin('FAT1'), id: { offset: 39, lengthBytes: 4 } },
  { name: 'ISO 9660', offset: 32_769, magic: latin('CD001') },
  { name: 'squashfs', offset: 0, magic: latin('hsqs') },
  { name: 'a qcow2 image', offset: 0, magic: latin('QFI\xfb') },
  { name: 'a partition table', offset: 512, magic: latin('EFI PART'), id: { offset: 568, lengthBytes: 16 } },
  { name: 'a partition table', offset: 4096, magic: latin('EFI PART'), id: { offset: 4152, lengthBytes: 16 } },
  { name: 'a partition table', offset: 510, magic: Buffer.of(0x55, 0xaa), id: { offset: 440, lengthBytes: 4 } },
];

/** What the head of a disk tells; undefined where nothing in it is known. */
export function signatureOf(head: Buffer): Signature | undefined {
  for (const { name, offset, magic, id } of KNOWN) {
    if (!head.subarray(offset, offset + magic.byteLength).equals(magic)) continue;
    const bytes = id === undefined ? Buffer.alloc(0) : head.subarray(id.offset, id.offset + id.lengthBytes);
    return { name, id: bytes.some((byte) => byte !== 0) ? bytes.toString('hex') : undefined };
  }
  return undefined;
}
