/** The options for commands around the freeze. */
import type { HookOptions } from '../../index.js';
import { CowbirdError } from '../../sys/errors.js';
import { parseDecimal } from '../quantities.js';
import type { Call } from './call.js';

const HOOK_SECONDS_MAX = 3600;

export function hookOptions(call: Call): HookOptions {
  const preFreeze = hookOption(call, 'pre-freeze');
  const postThaw = hookOption(call, 'post-thaw');
  const text = call.value('hook-timeout');
  const hookTimeoutSeconds = text === undefined ? undefined : parseDecimal(text);
  const isBad = hookTimeoutSeconds === undefined || hookTimeoutSeconds < 1 || hookTimeoutSeconds > HOOK_SECONDS_MAX;
  if (text !== undefined && isBad)
    throw new CowbirdError(
      'EINVAL',
      `Hook timeout \`${text}\` is not a number of seconds from 1 to ${HOOK_SECONDS_MAX}`,
    );
  return {
    ...(preFreeze === undefined ? {} : { preFreeze }),
    ...(postThaw === undefined ? {} : { postThaw }),
    ...(hookTimeoutSeconds === undefined ? {} : { hookTimeoutSeconds }),
  };
}

function hookOption(call: Call, option: 'pre-freeze' | 'post-thaw'): string | undefined {
  const command = call.value(option);
  if (command === '') throw new CowbirdError('EINVAL', `The command of --${option} is empty: leave the option out`);
  return command;
}
