/** What several whole-system tests need beside the laboratory: holders of devices, traces, kills. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import * as cowbird from '../src/index.js';
import { LAB_PREFIX, type Lab, run, succeeds, until } from './lab.js';

/** A program that runs until it is stopped or the test ends; `openPath` is its standard input. */
export function program(lab: Lab, command: string, args: string[], openPath?: string): () => Promise<void> {
  const input = openPath === undefined ? undefined : openSync(openPath, 'r');
  const child = spawn(command, args, { stdio: [input ?? 'ignore', 'ignore', 'ignore'], detached: true });
  if (input !== undefined) closeSync(input);
  const ended = new Promise<void>((resolve) => {
    child.once('exit', () => resolve());
    child.once('error', () => resolve());
  });
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null && child.pid !== undefined)
      process.kill(-child.pid, 'SIGKILL');
    await Promise.race([ended, pause(5_000, undefined, { ref: false })]);
  };
  lab.onEnd(stop);
  return stop;
}

/** What goes away when it is unmounted here only; `$0` is what stays. The prefix is that of all laboratories. */
const HOLD_ONE = `for at in $(cut -d' ' -f5 /proc/self/mountinfo | grep -F "$1" | grep -vxF "$0"); do umount -l "$at"; done
echo ready; exec sleep 60`;

/**
 * Another mount namespace that has this mount too, and none of other tests: those unmount theirs meanwhile. Gives the pid of its
 * process, and what ends it.
 */
export async function otherNamespace(lab: Lab, at: string): Promise<{ pid: number; end: () => Promise<void> }> {
  const args = ['-m', '--propagation', 'private', 'sh', '-c', HOLD_ONE, at, LAB_PREFIX];
  const child = spawn('unshare', args, { stdio: ['ignore', 'pipe', 'ignore'] });
  const ended = once(child, 'exit');
  const end = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  lab.onEnd(end);
  const said = await Promise.race([once(child.stdout, 'data'), ended]);
  assert.match(String(said[0]), /^ready/, 'there is another mount namespace');
  return { pid: child.pid ?? 0, end };
}

/** Gives a disk a table with one partition, from 1 MiB on, 254 MiB; returns its node. */
export async function partitioned(lab: Lab, node: string): Promise<string> {
  const table = 'label: gpt\\nstart=2048,size=520192\\n';
  await run('sh', '-c', `printf '${table}' | sfdisk -q --no-reread --no-tell-kernel ${node}`);
  // Where the kernel reads such tables it is there already.
  await succeeds('partx', '-d', node);
  await run('addpart', node, '1', '2048', '520192');
  lab.onEnd(() => succeeds('delpart', node, '1'));
  return `${node}p1`;
}

/** Everything an operation on this lab could leave: volumes, minors, links, loop devices, mounts, files. */
export async function traces(lab: Lab): Promise<string[]> {
  const volumes = await cowbird.listVolumes(lab.client);
  const { devices } = await cowbird.info(undefined, lab.client);
  const links = devices.flatMap(({ minor }) =>
    ['cowbird', 'datto', 'elastio-snap'].map((family) => `/dev/${family}${minor}`).filter(existsSync),
  );
  const named = existsSync('/dev/cowbird') ? readdirSync('/dev/cowbird') : [];
  const loops = (await run('losetup', '-l', '-n', '-O', 'NAME,BACK-FILE')).split('\n');
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n');
  const folders = [lab.folder, lab.path('mnt'), lab.path('run/fuse')].filter(existsSync);
  return [
    ...volumes.map(({ name, minor, mode }) => `volume ${name} ${minor} ${mode}`),
    ...devices.map(({ minor, state, error }) => `minor ${minor} ${state} ${error}`),
    ...links.map((link) => `${link} -> ${readlinkSync(link)}`),
    ...named.filter((name) => name.endsWith(`-${lab.tag}`)),
    ...[...loops, ...mounts].filter((line) => line.includes(lab.folder)).map((line) => line.replace(/\s+/g, ' ')),
    ...folders.flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`)),
  ].sort();
}

/** Ends the daemon of a lab as a power failure would: keeper and engine at once, no word to either. */
export async function crash(lab: Pick<Lab, 'client'>): Promise<void> {
  const status = await cowbird.daemonStatus(lab.client);
  if (status === undefined) throw new Error('the daemon runs');
  const pids = [status.keeperPid, ...(status.enginePid === null ? [] : [status.enginePid])];
  for (const pid of pids) process.kill(pid, 'SIGKILL');
  await until('the daemon’s processes are gone', () => pids.every((pid) => !existsSync(`/proc/${pid}`)));
}
