/** What proves that nobody used an origin: the same bytes give the same fingerprint, but of what can be used without a trace. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { bufferOf, MemoryDevice } from '../tracer/testing.js';
import { originFingerprint } from './fingerprint.js';

const DISK_BYTES = 4 * 1_048_576;
const PARTITION_AT = 2 * 1_048_576;
const buffer = bufferOf(131_072);

function disk(): MemoryDevice {
  const device = new MemoryDevice(DISK_BYTES);
  device.bytes.fill(0x5a);
  return device;
}

function fingerprint(device: MemoryDevice, starts?: number[]): string {
  return Buffer.from(originFingerprint(device, buffer, starts)).toString('hex');
}

const OPAQUE = [
  { name: 'LVM', at: 512, magic: 'LABELONE' },
  { name: 'LUKS', at: 0, magic: 'LUKS\xba\xbe' },
  { name: 'F2FS', at: 1024, magic: '\x10\x20\xf5\xf2' },
  { name: 'FAT32', at: 82, magic: 'FAT32   ' },
  { name: 'FAT16', at: 54, magic: 'FAT16   ' },
  { name: 'exFAT', at: 3, magic: 'EXFAT   ' },
  { name: 'NTFS', at: 3, magic: 'NTFS    ' },
  { name: 'BitLocker', at: 3, magic: '-FVE-FS-' },
  { name: 'swap', at: 4086, magic: 'SWAPSPACE2' },
  { name: 'swap of large pages', at: 65_526, magic: 'SWAPSPACE2' },
];

describe('the fingerprint of an origin', () => {
  it('is the same of the same bytes, and another one when a superblock changes, of a partition too', () => {
    const device = disk();
    const starts = [0, PARTITION_AT];
    const before = fingerprint(device, starts);
    assert.equal(fingerprint(device, starts), before);
    device.bytes.writeUInt8(1, PARTITION_AT + 1080);
    assert.notEqual(fingerprint(device, starts), before);
    assert.equal(fingerprint(device), fingerprint(disk()));
  });

  it('leaves out the COW file, which changes when it becomes clean', () => {
    const own = [
      { block: 24, count: 20 },
      { block: (PARTITION_AT + 8192) / 4096, count: 1 },
    ];
    const of = (device: MemoryDevice): string =>
      Buffer.from(originFingerprint(device, buffer, [0, PARTITION_AT], own)).toString('hex');
    const device = disk();
    const before = of(device);
    for (const at of [24 * 4096, 31 * 4096 + 4095, PARTITION_AT + 8192]) device.bytes.writeUInt8(1, at);
    assert.equal(of(device), before);
    for (const at of [24 * 4096 - 1, PARTITION_AT + 8191, PARTITION_AT + 12_288]) {
      const other = disk();
      other.bytes.writeUInt8(1, at);
      assert.notEqual(of(other), before, `${at}`);
    }
  });

  for (const { name, at, magic } of OPAQUE)
    it(`is another one each time where ${name} is, on the disk or a partition: its use leaves no trace there`, () => {
      for (const start of [0, PARTITION_AT]) {
        const device = disk();
        device.bytes.write(magic, start + at, 'latin1');
        assert.notEqual(fingerprint(device, [0, PARTITION_AT]), fingerprint(device, [0, PARTITION_AT]));
      }
    });
});
