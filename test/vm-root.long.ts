/** The root disk of a running machine is backed up under load, by a Cowbird that lies on it; what comes out of it boots. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, succeeds } from './lab.js';
import { CACHE, CHECKOUT, whyNoGuest } from './vm/command.js';
import { type GuestResult, runGuest } from './vm/guest.js';
import { DEFAULT_KERNEL, guestKernel } from './vm/kernel.js';
import { COWBIRD, makeRootDisk, SUMS } from './vm/root-disk.js';

const ROOT_MIB = 640;
const REPOSITORY_MIB = 2_048;
const TIMEOUT_MS = 240_000;

const PREPARE = `export PATH=/bin HOME=/root
/bin/busybox --install -s /bin
hostname guest
`;

/** Two backups while files are made, rewritten and removed on the root itself. */
const BACK_UP = `${PREPARE}set -e
mount -t ext4 /dev/vdb /repo
(i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/load/f$((i%7)) bs=64k count=$((i%9+1)) conv=fsync 2>/dev/null; rm -f /load/f$(((i+3)%7)); echo $i >>/load/journal; sleep 0.1; done) &
writer=$!
sleep 1
NODE=${process.execPath}
"$NODE" ${COWBIRD} backup /dev/vda /repo/root --json
dd if=/dev/urandom of=/etc/between bs=4k count=100 conv=fsync 2>/dev/null
"$NODE" ${COWBIRD} backup /dev/vda /repo/root --json
kill $writer
"$NODE" ${COWBIRD} verify /repo/root
umount /repo
`;

/** A guest that has its root from the backup. */
const BOOTED = `${PREPARE}cd / && sha256sum -c -s ${SUMS} && echo sums-right
test "$(stat -c %s /etc/between)" = 409600 && echo between-there
test -s /load/journal && tail -n 1 /load/journal
${process.execPath} ${COWBIRD} --version
`;

interface Summary {
  version: number;
  engine: string;
  bytesRead: number;
  freezeMs: number;
}

function summariesOf({ output }: GuestResult): Summary[] {
  return output.filter((line) => line.includes('"type":"summary"')).map((line): Summary => JSON.parse(line));
}

test('the root disk of a busy guest is backed up live, and a new guest boots from the image', {
  skip: await whyNoGuest(),
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cowbird-vm-root-'));
  const at = join(folder, 'mnt');
  t.after(async () => {
    await succeeds('umount', at);
    rmSync(folder, { recursive: true, force: true });
  });
  mkdirSync(CACHE, { recursive: true });
  const kernel = await guestKernel(DEFAULT_KERNEL, CACHE);
  const root = join(folder, 'root.img');
  const store = join(folder, 'repository.img');
  const image = join(folder, 'booted.img');
  await makeRootDisk(root, ROOT_MIB, CHECKOUT, folder);
  await run('truncate', '-s', `${REPOSITORY_MIB}M`, store);
  await run('mkfs.ext4', '-q', '-F', store);

  const backedUp = await runGuest({
    kernel,
    root: 'disk',
    script: BACK_UP,
    disks: [root, store],
    timeoutMs: TIMEOUT_MS,
  });
  const said = `${backedUp.output.join('\n')}\n${backedUp.console}`;
  assert.equal(backedUp.exitCode, 0, said);
  const [first, second] = summariesOf(backedUp);
  assert.ok(first !== undefined && second !== undefined, said);
  assert.deepEqual([first.version, first.engine, second.version, second.engine], [1, 'live', 2, 'live']);
  assert.ok(second.bytesRead < first.bytesRead / 3, said);
  t.diagnostic(
    `frozen for ${first.freezeMs} and ${second.freezeMs} ms; read ${first.bytesRead}, then ${second.bytesRead} bytes`,
  );

  mkdirSync(at);
  await run('mount', '-o', 'loop,ro,noload', store, at);
  await run('cp', '--sparse=always', join(at, 'root', 'image'), image);
  await run('umount', at);
  const booted = await runGuest({ kernel, root: 'disk', script: BOOTED, disks: [image], timeoutMs: TIMEOUT_MS });
  assert.equal(booted.exitCode, 0, `${booted.output.join('\n')}\n${booted.console}`);
  assert.deepEqual(booted.output.slice(0, 2), ['sums-right', 'between-there'], booted.output.join('\n'));
  await run('e2fsck', '-fn', image);
});
