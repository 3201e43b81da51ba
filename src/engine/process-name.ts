/** The name under which the processes of the daemon run. */
import type { ForkOptions } from 'node:child_process';

/**
 * systemd's last killing spree at shutdown spares processes of root's whose `argv[0]` begins with `@`: storage that is still
 * mounted needs them. An engine without it would be killed under a keeper that has it.
 */
export function sameName(): ForkOptions & { argv0?: string } {
  return process.argv0.startsWith('@') ? { argv0: process.argv0 } : {};
}
