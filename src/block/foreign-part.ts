/**
 * File systems that have a part on another device, by their superblocks: what their mount options do not show.
 *
 * Sources: ext4, "Data Structures and Algorithms" (s_feature_compat, s_journal_inum); fs/f2fs, include/linux/f2fs_fs.h (devs);
 * fs/jfs/jfs_superblock.h and jfs_filsys.h (s_flag).
 */

const EXT_FEATURES_AT = 1024 + 0x5c;
const EXT_HAS_JOURNAL = 0x4;
const EXT_JOURNAL_INODE_AT = 1024 + 0xe0;
/** The path of the first device: empty where there is one. */
const F2FS_DEVICES_AT = 1024 + 2201;
const JFS_FLAGS_AT = 32_768 + 36;
const JFS_INLINE_LOG = 0x800;

/** Types whose superblock tells, as the kernel names them. */
export const TELLS_PARTS: ReadonlySet<string> = new Set(['ext3', 'ext4', 'f2fs', 'jfs']);

/** What is elsewhere, in words, for the type that the kernel has mounted it as; undefined where all is here. */
export function foreignPart(fsType: string, head: Buffer): string | undefined {
  const has = (at: number, flag: number): boolean => (head.readUInt32LE(at) & flag) !== 0;
  switch (fsType) {
    case 'ext3':
    case 'ext4':
      return has(EXT_FEATURES_AT, EXT_HAS_JOURNAL) && head.readUInt32LE(EXT_JOURNAL_INODE_AT) === 0
        ? 'has its journal on another device'
        : undefined;
    case 'f2fs':
      return head.readUInt8(F2FS_DEVICES_AT) === 0 ? undefined : 'is on more than one device';
    case 'jfs':
      return has(JFS_FLAGS_AT, JFS_INLINE_LOG) ? undefined : 'has its log on another device';
    default:
      return undefined;
  }
}
