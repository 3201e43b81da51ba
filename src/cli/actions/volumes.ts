/** The actions of the commands for volumes and for the daemon. */
import { CowbirdError } from '../../sys/errors.js';
import { VERSION } from '../../version.js';
import { parseDecimal } from '../quantities.js';
import { EXIT } from '../spec/cowbird.js';
import { daemonText, doctorText, eventText, volumesText } from '../tables.js';
import { attachBoot, attachIfNeeded, detach, printUnit, whileBusy } from './boot.js';
import { type Action, answer, type Call, operand } from './call.js';

const WORKERS_MAX = 64;
const WAIT_SECONDS_MAX = 86_400;
const NAME = /^[A-Za-z0-9._-]{1,64}$/;

function nameOption(call: Call): string | undefined {
  const name = call.value('name');
  if (name !== undefined && !NAME.test(name)) {
    throw new CowbirdError(
      'EINVAL',
      `Name \`${name}\` cannot be a link in /dev/cowbird: use 1 to 64 of A-Z a-z 0-9 . _ -`,
    );
  }
  return name;
}

function workersOption(call: Call): number | undefined {
  const text = call.value('workers');
  if (text === undefined) return undefined;
  const workers = parseDecimal(text);
  if (workers === undefined || workers < 1 || workers > WORKERS_MAX) {
    throw new CowbirdError('EINVAL', `Workers \`${text}\` is not a number from 1 to ${WORKERS_MAX}`);
  }
  return workers;
}

const attach: Action = async (call) => {
  const name = nameOption(call);
  const workers = workersOption(call);
  const origin = operand(call, 0);
  if (origin === '') throw new CowbirdError('ENOENT', 'The origin is an empty string: name a disk, partition or image');
  const options = {
    ...(name === undefined ? {} : { name }),
    ...(workers === undefined ? {} : { workers }),
    ...(call.flag('read-only') ? { readOnly: true } : {}),
    ...(call.flag('raw') ? { raw: true } : {}),
  };
  if (call.flag('boot')) return attachBoot(call, origin, options);
  const volume = await (call.flag('if-needed')
    ? attachIfNeeded(call, origin, options)
    : call.library.attach(origin, options, call.client));
  for (const warning of volume.warnings ?? []) call.io.err(`cowbird: warning: ${warning}\n`);
  return answer(call, volume, volume.device);
};

const doctor: Action = async (call) => {
  const report = await call.library.doctor(call.client);
  answer(call, report, doctorText(report));
  return report.checks.some(({ status }) => status === 'missing') ? EXIT.failed : EXIT.done;
};

const events: Action = async (call) => {
  // A command that needs the daemon starts it; this one has no call of its own that would.
  await call.library.startDaemon(call.client);
  for await (const event of call.library.events(call.client)) answer(call, event, eventText(event));
  return undefined;
};

function waitOption(call: Call): number {
  const text = call.value('wait');
  if (text === undefined) return 0;
  const seconds = parseDecimal(text);
  if (seconds === undefined || seconds > WAIT_SECONDS_MAX) {
    throw new CowbirdError('EINVAL', `Wait \`${text}\` is not a number of seconds from 0 to ${WAIT_SECONDS_MAX}`);
  }
  return seconds;
}

const daemonStop: Action = async (call) => {
  const waitSeconds = waitOption(call);
  try {
    await whileBusy(waitSeconds, () => call.library.stopDaemon({ force: call.flag('force') }, call.client));
  } catch (error) {
    if (!(error instanceof CowbirdError && error.code === 'ENOTCONN')) throw error;
    return answer(call, { stopped: false }, 'No daemon runs');
  }
  return answer(call, { stopped: true }, '');
};

const daemonStatus: Action = async (call) => {
  const status = await call.library.daemonStatus(call.client);
  if (status === undefined) {
    const none = { running: false, version: VERSION, keeperPid: null, enginePid: null, uptimeSeconds: null };
    answer(call, none, 'No daemon runs');
    return EXIT.failed;
  }
  return answer(call, status, daemonText(status, VERSION));
};

const completion: Action = async (call) => {
  const shell = operand(call, 0);
  const { completionScript, isShell, SHELLS } = await import('../completion.js');
  if (!isShell(shell))
    throw new CowbirdError(
      'EINVAL',
      `There are no completions for the shell \`${shell}\`, only for ${SHELLS.join(' and ')}`,
    );
  const script = completionScript(shell);
  return answer(call, { shell, script }, script.trimEnd());
};

export const volumeActions: Readonly<Record<string, Action>> = {
  attach,
  detach,
  list: async (call) => {
    const volumes = await call.library.listVolumes(call.client);
    return answer(call, { volumes }, call.json ? '' : await volumesText(volumes));
  },
  completion,
  doctor,
  events,
  'daemon start': async (call) => {
    const status = await call.library.startDaemon(call.client);
    return answer(call, status, daemonText(status, VERSION));
  },
  'daemon stop': daemonStop,
  'daemon restart': async (call) => {
    const status = await call.library.restartDaemon(call.client);
    return answer(call, status, daemonText(status, VERSION));
  },
  'daemon status': daemonStatus,
  'daemon unit': printUnit,
};
