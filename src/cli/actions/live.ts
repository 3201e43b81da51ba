/** The actions of the commands for tracking inside the kernel. */
import type { TrackingInfo } from '../../index.js';
import { CowbirdError } from '../../sys/errors.js';
import { counted, formatSize } from '../quantities.js';
import { columns } from '../tables.js';
import { type Action, answer, type Call, operand } from './call.js';

const BLOCK_BYTES = 4096;
const USER_CHARS_MAX = 256;
const DEFAULT_USER = 'track';

function userOption(call: Call): string | undefined {
  const user = call.value('user');
  if (user !== undefined && (user === '' || user.length > USER_CHARS_MAX))
    throw new CowbirdError(
      'EINVAL',
      `User \`${user.slice(0, 80)}\` is not a name of 1 to ${USER_CHARS_MAX} characters`,
    );
  return user;
}

async function trackingText(tracking: readonly TrackingInfo[]): Promise<string> {
  if (tracking.length === 0) return 'Nothing is tracked in the kernel';
  const rows = tracking.map(({ device, user, since, changedBlocks, sizeBytes, doubt, busy }) => [
    device ?? '-',
    user,
    new Date(since).toLocaleString('sv-SE'),
    `${formatSize(changedBlocks * BLOCK_BYTES)} of ${formatSize(sizeBytes)}`,
    doubt === null ? `trusted${busy ? ', in use' : ''}` : `lost: ${doubt}`,
  ]);
  return columns([['DEVICE', 'USER', 'SINCE', 'CHANGED', 'CONTINUITY'], ...rows]);
}

export const liveActions: Readonly<Record<string, Action>> = {
  track: async (call) => {
    const user = userOption(call) ?? DEFAULT_USER;
    const device = operand(call, 0);
    const { started } = await call.library.track(device, user, call.client);
    return answer(call, { device, user, started }, started ? '' : `${device} is tracked for ${user} already`);
  },
  untrack: async (call) => {
    const device = operand(call, 0);
    const user = userOption(call);
    const { ended } = await call.library.untrack(device, user, call.client);
    return answer(
      call,
      { device, ended },
      ended === 0 ? `${device} was not tracked` : `ended for ${counted(ended, 'user')}`,
    );
  },
  tracking: async (call) => {
    const tracking = await call.library.listTracking(call.client);
    return answer(call, { tracking }, call.json ? '' : await trackingText(tracking));
  },
};
