/**
 * The text of a volume's udev rules.
 *
 * A loop device is nothing that an fstab line could name: its number changes. And the volume, its origin and its snapshots
 * hold the same file system with the same UUID, so it has to be said whose the links by contents are.
 */
import { CowbirdError } from '../../sys/errors.js';

/** Before 60-persistent-storage.rules, which makes the links by contents and can be told to leave a device out. */
export function rulesFileName(volume: string): string {
  return `59-cowbird-${volume}.rules`;
}

/** The rules of one volume. `fuseDir`: where its daemon keeps the files behind the loop devices. */
export function volumeRules(volume: string, fuseDir: string, firstLine: string): string {
  // Values of rules are patterns, in which these characters stand for themselves only.
  if (!/^[\w./-]+$/.test(fuseDir)) {
    throw new CowbirdError(
      'EINVAL',
      `${fuseDir} cannot stand in a udev rule: give a run directory of A-Z a-z 0-9 . _ -`,
    );
  }
  const backing = (id: string): string => `{loop/backing_file}=="${fuseDir}/${id}"`;
  return `${[
    firstLine,
    'ACTION=="remove", GOTO="cowbird_end"',
    'SUBSYSTEM!="block", GOTO="cowbird_end"',
    'KERNEL!="loop*", GOTO="cowbird_end"',
    '',
    '# The name that fstab uses. The priority: links by UUID or label go to the volume, not to its origin.',
    `ENV{DEVTYPE}=="disk", ATTR${backing(`volume-${volume}`)}, SYMLINK+="cowbird/${volume}", TAG+="systemd", OPTIONS+="link_priority=50"`,
    `ENV{DEVTYPE}=="partition", ATTRS${backing(`volume-${volume}`)}, SYMLINK+="cowbird/${volume}-part%n", TAG+="systemd", OPTIONS+="link_priority=50"`,
    '',
    '# Snapshots have the same contents as well, and are never meant: no links by contents, no scan for LVM, md or desktops.',
    `ATTRS${backing('snapshot-*')}, ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{UDISKS_IGNORE}="1", OPTIONS+="link_priority=-100"`,
    '',
    'LABEL="cowbird_end"',
  ].join('\n')}\n`;
}
