/**
 * A helper: a short-lived process that makes the calls which a file system on one of our own volumes must answer.
 *
 * Such a call may wait for the engine, and a thread of the engine that waits for the engine can never be killed; so neither
 * engine nor keeper makes them. A helper may hang. It runs one call at a time, and thaws what it froze when its parent goes
 * away or `thaw` does not come in time, whatever else happens.
 */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { bindLoop, keepLoop, releaseLoop, setMaxRequestKib } from '../sys/blkdev.js';
import { CowbirdError } from '../sys/errors.js';
import { endHook, runHook } from '../sys/hook.js';
import * as libc from '../sys/libc.js';
import { ownMounts } from '../sys/mounts.js';
import { withPrivateMount } from '../sys/private-mount.js';
import { VERSION } from '../version.js';
import type { HelperCall, HelperCalls } from './helper-calls.js';
import { withKeepers } from './helper-descriptors.js';
import { isStore, unlinkStore } from './helper-files.js';
import { mapFree } from './helper-free.js';
import {
  endFreeze,
  freezePrepared,
  frozenCount,
  onFreezeStep,
  onHang,
  prepareFreeze,
  releasePrepared,
  thawAfterDeath,
  thawAll,
} from './helper-freeze.js';
import { findStore } from './helper-place.js';
import {
  closeStore,
  createStore,
  eraseNonces,
  extentsOf,
  growStore,
  hasNotKept,
  keepStore,
  makeImmutable,
  removeNotKept,
  truncateStore,
  writeNonces,
} from './helper-store.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import { parentChannel, Rpc } from './rpc.js';
import { REST_CALL } from './services.js';

const MAX_REQUEST_KIB = 1024;
const MS_NOSUID_NODEV = 6;
const MS_NOATIME = 1024;

/** This process has become what nobody else can use. */
let mustEnd = false;

type Answer<N extends HelperCall> = HelperCalls[N]['result'] | Promise<HelperCalls[N]['result']>;
type Implementation = { [N in HelperCall]: (params: HelperCalls[N]['params']) => Answer<N> };

const calls: Implementation = {
  mountFuse({ target, fuseFd }) {
    mkdirSync(dirname(target), { recursive: true, mode: 0o700 });
    if (!existsSync(target)) writeFileSync(target, '', { mode: 0o600 });
    // Ours does not stay open: when the keeper's is closed, whoever waits for an answer gets an error, this process too.
    withKeepers(fuseFd, (fd) => {
      const options = `fd=${fd},rootmode=100000,user_id=0,group_id=0,max_read=1048576`;
      libc.mount('cowbird', target, 'fuse.cowbird', MS_NOSUID_NODEV, options);
    });
    return null;
  },
  umount({ target, lazy }) {
    libc.umount(target, lazy ? libc.MNT_DETACH : 0);
    // The mount point is a file of ours; another mount on it, which is in use, keeps it.
    if (!ownMounts().some((entry) => entry.mountPoint === target)) rmSync(target, { force: true });
    return null;
  },
  bindLoop({ target, readOnly, partitionScan, logicalSectorBytes }) {
    const fd = libc.open(target, readOnly ? libc.O_RDONLY : libc.O_RDWR);
    try {
      const node = bindLoop(fd, target, { readOnly, partitionScan, logicalSectorBytes });
      try {
        setMaxRequestKib(node, MAX_REQUEST_KIB);
      } catch (error) {
        // Nobody has been told of it, so nobody else would end it.
        releaseLoop(node, target);
        throw error;
      }
      return { node };
    } finally {
      libc.close(fd);
    }
  },
  releaseLoop({ node, target }) {
    releaseLoop(node, target);
    return null;
  },
  keepLoop({ node, target }) {
    keepLoop(node, target);
    return null;
  },
  probeExclusive({ node }) {
    libc.close(libc.open(node, libc.O_RDONLY + libc.O_EXCL));
    return null;
  },
  createStore,
  findStore,
  keepStore,
  isStore,
  extents: extentsOf,
  writeNonces,
  eraseNonces,
  setImmutable: makeImmutable,
  clearImmutableUnmounted({ node, fsType, pathInside, file }) {
    // Nobody sees this mount, and it ends with this process.
    mustEnd = true;
    const options = fsType === 'xfs' ? 'nouuid' : '';
    withPrivateMount({ node, fsType, flags: MS_NOATIME, options }, (at) => {
      makeImmutable({ file: { ...file, path: join(at, pathInside), on: node }, immutable: false });
    });
    return null;
  },
  unlinkStore,
  truncateStore,
  growStore,
  closeStore,
  mapFree,
  runHook,
  prepareFreeze,
  freeze: freezePrepared,
  thaw() {
    const wasFrozen = frozenCount();
    const failures = thawAll();
    if (failures > 0) {
      throw new CowbirdError('EINVAL', `${failures} of ${wasFrozen} file systems had been thawed by somebody else`, {
        outcome: 'failed',
      });
    }
    return null;
  },
  thawAfterDeath,
};

/**
 * Gives up everything that the calls before have left here, so that somebody else can go on with this process.
 *
 * @throws {CowbirdError} EBUSY where something stays that only the end of the process takes away.
 */
function rest(): null {
  if (mustEnd || frozenCount() > 0 || hasNotKept())
    throw new CowbirdError('EBUSY', 'This helper holds something, and has to end');
  releasePrepared();
  return null;
}

function isHelperCall(name: string): name is HelperCall {
  return Object.hasOwn(calls, name);
}

/** The parent is our own engine: names are checked here, parameters by the types at both ends. */
function run<N extends HelperCall>(name: N, params: HelperCalls[N]['params']): Answer<N> {
  return calls[name](params);
}

/** The engine that asks may be older than this program, whose package was replaced on disk since. */
const engineProtocol = Number(process.argv[2] ?? ENGINE_PROTOCOL);

const channel = parentChannel();
/** Calls that undo what an older helper did, and that every version takes. */
const LAST_RESORTS: ReadonlySet<string> = new Set(['thawAfterDeath']);
const keeper = new Rpc(channel, async (name, params) => {
  if (engineProtocol !== ENGINE_PROTOCOL && !LAST_RESORTS.has(name)) {
    const message = `Cowbird ${VERSION} was installed over the running one: \`cowbird daemon restart\` first`;
    throw new CowbirdError('EPROTO', message);
  }
  if (name === REST_CALL) return rest();
  if (!isHelperCall(name)) throw new CowbirdError('ENOSYS', `A helper has no call ${name}`);
  return run(name, params as HelperCalls[typeof name]['params']);
});
onHang(() => {
  keeper.call('engineHangs', {}).catch(() => undefined);
});
onFreezeStep((mountPoint, step) => {
  // An older keeper does not know of it, and thaws everything when this process has died.
  keeper.call('freezeStep', { mountPoint, step }).catch(() => undefined);
});
channel.onEnd(() => {
  endHook();
  endFreeze();
  removeNotKept();
  process.exit(0);
});
