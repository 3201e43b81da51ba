/**
 * Hooks: commands of the administrator's, before the file systems are frozen and after they are thawed.
 *
 * The daemon runs them, through a helper: as root, in `/`, by `sh -c`, with the daemon's environment and what is named in
 * {@link environmentOf}, each with a time limit. `post-thaw` runs whatever became of `pre-freeze` and of the freeze, so that
 * what `pre-freeze` did is always undone: it is announced to the keeper with the operation, and an engine that resumes runs
 * it. Then it may run twice, or without a `pre-freeze` that got to its end.
 */
import { CowbirdError, messageOf } from '../sys/errors.js';
import { type EngineContext, withHelper } from './context.js';
import { failPoint } from './fail-points.js';
import type { HookCall } from './records.js';
import type { Volume } from './volume.js';

export interface HookParams {
  preFreeze?: string | undefined;
  postThaw?: string | undefined;
  hookTimeoutSeconds?: number | undefined;
}

type HookName = 'pre-freeze' | 'post-thaw';

export const HOOK_TIMEOUT_SECONDS = 30;
/** For starting the helper and ending the hook. */
const HELPER_MARGIN_MS = 10_000;

/** The hooks among an operation's parameters. */
export function hooksIn({ preFreeze, postThaw, hookTimeoutSeconds }: HookParams): HookParams {
  return { preFreeze, postThaw, hookTimeoutSeconds };
}

/** What is to be run for an operation on these volumes; undefined where no such hook was given. */
export function hookCall(
  command: string | undefined,
  params: HookParams,
  targets: ReadonlyArray<{ volume: Volume; minor: number }>,
): HookCall | undefined {
  if (command === undefined) return undefined;
  return {
    command,
    timeoutSeconds: params.hookTimeoutSeconds ?? HOOK_TIMEOUT_SECONDS,
    minors: targets.map(({ minor }) => minor),
    volumes: targets.map(({ volume }) => volume.record.name),
  };
}

function environmentOf(name: HookName, { minors, volumes }: HookCall): Record<string, string> {
  return { COWBIRD_HOOK: name, COWBIRD_MINORS: minors.join(' '), COWBIRD_VOLUMES: volumes.join(' ') };
}

/** @throws {CowbirdError} ECANCELED with the end of what it printed, when it did not end with exit code 0 in time. */
async function runHook(context: EngineContext, name: HookName, call: HookCall): Promise<void> {
  const { command, timeoutSeconds } = call;
  const { ok, end, output, durationMs } = await withHelper(context, (helper) =>
    helper.call(
      'runHook',
      { command, timeoutMs: timeoutSeconds * 1000, environment: environmentOf(name, call) },
      timeoutSeconds * 1000 + HELPER_MARGIN_MS,
    ),
  );
  const message = `The ${name} hook \`${command}\` ${end}`;
  context.emit({
    event: 'hook.ended',
    level: ok ? 'info' : 'warning',
    message: `${message} after ${durationMs} ms`,
    hook: name,
    ok,
    durationMs,
    output,
  });
  if (!ok) throw new CowbirdError('ECANCELED', output === '' ? message : `${message}: ${output}`);
}

/**
 * Runs an action between the hooks. `problem`: what was wrong with `post-thaw` although the action succeeded. An action that
 * fails, and a `pre-freeze` that does, is an error as it is; `post-thaw` has run by then, too.
 */
export async function betweenHooks<T>(
  context: EngineContext,
  hooks: { preFreeze: HookCall | undefined; postThaw: HookCall | undefined },
  action: () => Promise<T>,
): Promise<{ result: T; problem: string | undefined }> {
  let problem: string | undefined;
  const after = async (): Promise<void> => {
    if (hooks.postThaw === undefined) return;
    failPoint('before-post-thaw');
    // What is wrong with it is in the event as well, for whom the action's error is told instead.
    await runHook(context, 'post-thaw', hooks.postThaw).catch((error: unknown) => {
      problem = messageOf(error);
    });
  };
  let result: T;
  try {
    if (hooks.preFreeze !== undefined) await runHook(context, 'pre-freeze', hooks.preFreeze);
    failPoint('hook-ran');
    result = await action();
  } finally {
    await after();
  }
  return { result, problem };
}

/** Runs the `post-thaw` hook that a dead engine did not come to. */
export async function runLeftHook(context: EngineContext, volumes: readonly Volume[]): Promise<void> {
  for (const { record } of volumes) {
    const call = record.pending?.postThaw;
    if (call === undefined) continue;
    await runHook(context, 'post-thaw', call).catch(() => undefined);
    delete record.pending?.postThaw;
  }
}
