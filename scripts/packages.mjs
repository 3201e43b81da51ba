/** Debian packages by the programs that are needed from them, for the demo and for the tests. */

export const PACKAGES = {
  demo: [
    { package: 'e2fsprogs', programs: ['mkfs.ext4', 'e2fsck', 'debugfs'] },
    { package: 'mount', programs: ['mount', 'umount', 'losetup'] },
    { package: 'util-linux', programs: ['fstrim', 'fsfreeze'] },
  ],
  test: [
    { package: 'fio', programs: ['fio'] },
    { package: 'xfsprogs', programs: ['mkfs.xfs', 'xfs_repair', 'xfs_io'] },
    { package: 'btrfs-progs', programs: ['mkfs.btrfs'] },
    { package: 'fdisk', programs: ['sfdisk'] },
    { package: 'zstd', programs: ['zstd'] },
    { package: 'procps', programs: ['ps'] },
  ],
};

/** The packages whose programs are not all on this machine. */
export function missingPackages(purpose, hasProgram) {
  const wanted = purpose === 'test' ? [...PACKAGES.demo, ...PACKAGES.test] : PACKAGES.demo;
  return wanted.filter((entry) => !entry.programs.every(hasProgram)).map((entry) => entry.package);
}
