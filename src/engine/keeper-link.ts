/** The engine's side of its channel to the keeper. */
import type { HelperCall, HelperCalls } from './helper-calls.js';
import { ENGINE_PROTOCOL } from './protocol.js';
import { type Channel, type Handler, Rpc } from './rpc.js';
import { HELPER_TIMEOUT_MS, type HelperSession, type Keeper, type KeeperCall, type KeeperCalls } from './services.js';

export class KeeperLink {
  readonly #rpc: Rpc;

  constructor(channel: Channel, handler: Handler) {
    this.#rpc = new Rpc(channel, handler);
  }

  /** The keeper's services, typed. Both ends are built from `KeeperCalls`; results are what it says. */
  connect(pid: number): Keeper {
    const call = <N extends KeeperCall>(name: N, params: KeeperCalls[N]['params']): Promise<KeeperCalls[N]['result']> =>
      this.#rpc.call(name, params) as Promise<KeeperCalls[N]['result']>;
    return {
      pid,
      call,
      helper: async () => this.#helper(await call('startHelper', { protocol: ENGINE_PROTOCOL }), call),
    };
  }

  #helper({ helper }: { helper: number }, call: Keeper['call']): HelperSession {
    return {
      call: async <N extends HelperCall>(name: N, params: HelperCalls[N]['params'], timeoutMs = HELPER_TIMEOUT_MS) =>
        call('callHelper', { helper, call: name, params, timeoutMs }) as Promise<HelperCalls[N]['result']>,
      end: async () => {
        await call('endHelper', { helper });
      },
    };
  }
}
