/** What `doctor` and refusals say of a machine that cannot track. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type DeviceView, whyNotContinued, whyUntrackable } from './device-view.js';
import { examineTracking, type Machine } from './support.js';

const GOOD: Machine = {
  kernel: '6.1.0-28-amd64',
  hasBtf: true,
  isRealtime: false,
  fileSystems: 'nodev\tsysfs\nnodev\tbpf\n\text4\n',
  capabilities: 0x1ff_ffff_ffffn,
  lockdown: '[none] integrity confidentiality',
  libbpf: undefined,
  tracepoint: undefined,
};

describe('the examination of a machine for tracking', () => {
  it('finds nothing amiss on Debian’s own kernels', () => {
    for (const { name, status } of examineTracking(GOOD)) assert.equal(status, 'ok', name);
  });

  const lacks: Array<[string, Partial<Machine>, RegExp]> = [
    ['live: kernel', { kernel: '5.15.0-91-generic' }, /5\.15\.0-91-generic has no bpf_loop.*Linux 5\.17/],
    ['live: kernel', { isRealtime: true }, /real-time.*without PREEMPT_RT/],
    ['live: BTF', { hasBtf: false }, /btf\/vmlinux.*CONFIG_DEBUG_INFO_BTF/],
    ['live: libbpf', { libbpf: 'libbpf.so.1 cannot be loaded' }, /cannot be loaded.*libbpf1/],
    ['live: tracepoint', { tracepoint: 'no block_rq_complete' }, /no block_rq_complete.*CONFIG_TRACEPOINTS/],
    ['live: bpffs', { fileSystems: 'nodev\tsysfs\n' }, /no bpf file system.*CONFIG_BPF_SYSCALL/],
    ['live: capability', { capabilities: 0n }, /without CAP_SYS_ADMIN.*container/],
    ['live: capability', { lockdown: 'none integrity [confidentiality]' }, /locked down.*boot with/],
  ];
  for (const [name, machine, text] of lacks) {
    it(`says what to do without: ${Object.keys(machine).join()}`, () => {
      const bad = examineTracking({ ...GOOD, ...machine }).filter(({ status }) => status !== 'ok');
      assert.deepEqual(
        bad.map((check) => check.name),
        [name],
      );
      assert.match(`${bad[0]?.detail} ${bad[0]?.fix}`, text);
    });
  }
});

describe('a disk whose writes cannot all be seen', () => {
  const disk = (diskName: string, kind: DeviceView['kind'] = 'bio'): DeviceView => ({
    node: `/dev/${diskName}`,
    disk: '/sys/block/loop0',
    diskName,
    major: 1,
    minor: 2,
    kind,
    key: '1_2_3',
    diskIdentity: `${diskName} 1:2 #3`,
    diskBytes: 1_048_576,
    identity: `${diskName} 1:2 #3`,
    startSector: 0,
    sizeBytes: 1_048_576,
  });

  it('is refused where its driver hands bios on', () => {
    for (const name of ['md0', 'nvme0n1', 'bcache0']) assert.match(whyUntrackable(disk(name)) ?? '', /other names/);
    assert.equal(whyUntrackable(disk('nvme0n1', 'request')), undefined);
  });

  it('is refused where it was written page by page', () => {
    assert.match(whyUntrackable(disk('zram0'), '6.1.0-28-amd64') ?? '', /before Linux 6\.3, and this is 6\.1/);
    assert.equal(whyUntrackable(disk('zram0'), '6.3.0'), undefined);
    assert.equal(whyUntrackable(disk('dm-0'), '6.1.0-28-amd64'), undefined);
  });

  it('is not known from one version to the next where it can have other contents without a write', () => {
    assert.match(whyNotContinued(disk('dm-0')) ?? '', /lvconvert --merge/);
    assert.match(whyNotContinued(disk('ram0')) ?? '', /flushbufs/);
    for (const name of ['nbd0', 'rbd1', 'zd16', 'somethingelse'])
      assert.match(whyNotContinued(disk(name)) ?? '', /other contents from elsewhere/);
    for (const name of ['zram0', 'sda', 'sdaa', 'nvme0n1', 'vda', 'xvda', 'mmcblk0', 'pmem0'])
      assert.equal(whyNotContinued(disk(name)), undefined);
    assert.equal(whyNotContinued(disk('loop3'), '6.5.0-1-amd64'), undefined);
    assert.match(whyNotContinued(disk('loop3'), '6.1.0-28-amd64') ?? '', /before Linux 6\.5, and this is 6\.1/);
  });

  it('is refused without a medium', () => {
    assert.match(whyUntrackable({ ...disk('loop0', 'request'), sizeBytes: 0 }) ?? '', /no medium/);
  });
});
