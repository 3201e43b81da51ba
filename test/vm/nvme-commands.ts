/** Commands that are handed to an NVMe disk as they are (linux/nvme_ioctl.h): what they change, the block layer does not know. */
import { closeSync, constants, openSync } from 'node:fs';
import * as libc from '../../src/sys/libc.js';
import { BLOCK } from '../tracking-lab.js';

const NVME_IOCTL_SUBMIT_IO = 0x4030_4e42;
const NVME_IOCTL_IO_CMD = 0xc048_4e43;
const OPCODE = { write: 1, read: 2, writeZeroes: 8 } as const;
/** The disk's blocks in one of ours, counted from 0 as the commands do. */
const LAST_SECTOR = BLOCK / 512 - 1;

/** Reads or writes one block: a command with data. */
export function passBlock(disk: string, kind: 'read' | 'write', block: number): void {
  const data = libc.mapPages(BLOCK);
  const command = new DataView(new ArrayBuffer(48));
  command.setUint8(0, OPCODE[kind]);
  command.setUint16(4, LAST_SECTOR, true);
  command.setBigUint64(16, BigInt(data.address), true);
  command.setBigUint64(24, BigInt((block * BLOCK) / 512), true);
  try {
    submit(disk, NVME_IOCTL_SUBMIT_IO, command);
  } finally {
    libc.unmap(data);
  }
}

/** Has the disk make zeros of one block: a command that changes it, and carries no data. */
export function passZeroes(disk: string, block: number): void {
  const command = new DataView(new ArrayBuffer(72));
  command.setUint8(0, OPCODE.writeZeroes);
  command.setUint32(4, 1, true);
  command.setBigUint64(40, BigInt((block * BLOCK) / 512), true);
  command.setUint32(48, LAST_SECTOR, true);
  submit(disk, NVME_IOCTL_IO_CMD, command);
}

function submit(disk: string, request: number, command: DataView): void {
  const fd = openSync(disk, constants.O_RDWR);
  try {
    const status = libc.ioctl(fd, request, new Uint8Array(command.buffer), `a command of ${disk}`);
    if (status !== 0) throw new Error(`${disk} has refused a command: status 0x${status.toString(16)}`);
  } finally {
    closeSync(fd);
  }
}
