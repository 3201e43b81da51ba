/** The actions that have to do with the next boot: attach and detach with `--boot`, and the daemon's unit. */
import { realpathSync } from 'node:fs';
import { basename } from 'node:path';
import type { AttachedVolume, AttachOptions } from '../../index.js';
import { VOLUME_NAME } from '../../sys/checks.js';
import { CowbirdError } from '../../sys/errors.js';
import { attachAtBoot, bootHost, forgetAtBoot, isAttachedAtBoot } from '../boot/boot.js';
import { daemonUnit } from '../boot/unit.js';
import { type Action, answer, type Call, operand } from './call.js';

const PRINTED = '# Printed by `cowbird daemon unit`: yours, `cowbird attach --boot` uses it as it is.';

/** Attaches, or finds the volume of that name attached from that origin: by the daemon itself, at its start. */
export async function attachIfNeeded(call: Call, origin: string, options: AttachOptions): Promise<AttachedVolume> {
  try {
    return await call.library.attach(origin, options, call.client);
  } catch (error) {
    if (!(error instanceof CowbirdError && ['EEXIST', 'EBUSY'].includes(error.code))) throw error;
    const name = options.name ?? basename(origin);
    const there = (await call.library.listVolumes(call.client)).find((volume) => volume.name === name);
    if (there === undefined) throw error;
    if (there.origin === realpathSync(origin)) return there;
    throw new CowbirdError('EEXIST', `${name} is attached already, from ${there.origin} and not from ${origin}`);
  }
}

/** `cowbird attach --boot`: the node alone on stdout, everything else on stderr. */
export async function attachBoot(call: Call, origin: string, options: AttachOptions): Promise<undefined> {
  const name = options.name ?? basename(origin);
  if (!VOLUME_NAME.test(name)) {
    throw new CowbirdError(
      'EINVAL',
      `"${name}" is no volume name ([A-Za-z0-9._-], 1 to 64 characters): give one with --name`,
    );
  }
  const words = [
    ...(options.workers === undefined ? [] : ['--workers', String(options.workers)]),
    ...(options.readOnly === true ? ['--read-only'] : []),
    ...(options.raw === true ? ['--raw'] : []),
  ];
  const host = bootHost(call.client.env);
  const report = await attachAtBoot(
    host,
    { name, origin, options: words },
    {
      attach: (lasting) => attachIfNeeded(call, lasting, { ...options, name }),
      pid: async () => (await call.library.daemonStatus(call.client))?.keeperPid,
      stop: () => call.library.stopDaemon({}, call.client),
    },
  );
  const { volume, files, fstab, notes } = report;
  for (const warning of volume.warnings ?? []) call.io.err(`cowbird: warning: ${warning}\n`);
  if (!call.json) {
    for (const file of files) call.io.err(`wrote ${file}\n`);
    for (const note of notes) call.io.err(`${note}\n`);
    call.io.err(`the line for fstab:\n${fstab}\n`);
  }
  return answer(call, { ...volume, boot: { files, fstab, notes } }, volume.device);
}

async function detachBoot(call: Call, reference: string): Promise<undefined> {
  const host = bootHost(call.client.env);
  const runs = (await call.library.daemonStatus(call.client)) !== undefined;
  const volume = (runs ? await call.library.listVolumes(call.client) : []).find(({ name, device, link, origin }) =>
    [name, device, link, origin].includes(reference),
  );
  const name = volume?.name ?? basename(reference);
  if (volume === undefined && !isAttachedAtBoot(host, name)) {
    throw new CowbirdError(
      'ENOENT',
      `No volume ${reference} is attached, now or at boot: \`cowbird list\` shows what is`,
    );
  }
  if (volume !== undefined) await call.library.detach(volume.name, call.client);
  const notes = await forgetAtBoot(host, name, runs);
  if (!call.json) for (const note of notes) call.io.err(`${note}\n`);
  return answer(call, { notes }, '');
}

/** `cowbird detach`, with `--boot` or without. */
export const detach: Action = async (call) => {
  const reference = operand(call, 0);
  if (call.flag('boot')) return detachBoot(call, reference);
  await call.library.detach(reference, call.client);
  const name = basename(reference);
  if (!call.json && isAttachedAtBoot(bootHost(call.client.env), name)) {
    call.io.err(`${name} is attached again at the next boot: \`cowbird detach --boot ${name}\` ends that\n`);
  }
  return answer(call, {}, '');
};

/** `cowbird daemon unit` */
export const printUnit: Action = async (call) => {
  const unit = daemonUnit(bootHost(call.client.env).installation, PRINTED);
  return answer(call, { unit }, unit.trimEnd());
};

const LOOK_AGAIN_MS = 250;

/** Does it again while a volume is in use, for so many seconds at most. */
export async function whileBusy<T>(seconds: number, action: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    try {
      return await action();
    } catch (error) {
      const isBusy = error instanceof CowbirdError && error.code === 'EBUSY';
      if (!isBusy || Date.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}
