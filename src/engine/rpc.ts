/**
 * Calls between two processes over Node's IPC channel: `{call, id, params}` answered by `{id, result}` or `{id, error}`.
 * Errors cross with their code, errno and outcome. When the channel ends, every open call fails with EPIPE.
 */
import * as v from 'valibot';
import { CowbirdError, codeOf, errnoOfError, messageOf } from '../sys/errors.js';
import { whenNeverRan } from './child-end.js';

/** The part of a child process, or of our own process, that carries messages. */
export interface Channel {
  send(message: unknown): void;
  onMessage(listener: (message: unknown) => void): void;
  onEnd(listener: () => void): void;
}

interface WireError {
  code: string;
  message: string;
  outcome: 'refused' | 'failed' | 'partial';
}

type WireMessage =
  | { id: number; call: string; params: unknown }
  | { id: number; result: unknown }
  | { id: number; error: WireError };

const Id = v.object({ id: v.number() });
const Call = v.object({ id: v.number(), call: v.string(), params: v.optional(v.unknown()) });
const Result = v.object({ id: v.number(), result: v.unknown() });
const Failure = v.object({
  id: v.number(),
  error: v.object({
    code: v.string(),
    message: v.string(),
    outcome: v.picklist(['refused', 'failed', 'partial']),
  }),
});

export type Handler = (call: string, params: unknown) => Promise<unknown>;

export class Rpc {
  readonly #channel: Channel;
  readonly #open = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #nextId = 1;
  #ended = false;

  constructor(channel: Channel, handler: Handler) {
    this.#channel = channel;
    channel.onMessage((message) => this.#take(message, handler));
    channel.onEnd(() => this.#end());
  }

  /** Calls the other side; rejects with ETIMEDOUT when no answer came in time. */
  call(name: string, params: unknown, timeoutMs?: number): Promise<unknown> {
    if (this.#ended) return Promise.reject(new ChannelEnded(name));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer =
        timeoutMs === undefined
          ? undefined
          : setTimeout(() => {
              this.#open.delete(id);
              reject(
                new CowbirdError('ETIMEDOUT', `${name} did not end within ${timeoutMs} ms`, { outcome: 'failed' }),
              );
            }, timeoutMs);
      this.#open.set(id, {
        resolve: (value) => {
          clearTimeout(timer);
          resolve(value);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      this.#channel.send({ id, call: name, params } satisfies WireMessage);
    });
  }

  #take(message: unknown, handler: Handler): void {
    if (v.is(Call, message)) {
      const { id } = message;
      handler(message.call, message.params).then(
        (result) => this.#answer({ id, result: result ?? null }),
        (error: unknown) => this.#answer({ id, error: toWire(error) }),
      );
      return;
    }
    // Without an id it concerns nobody. With one that is open somebody waits: what cannot be understood ends that, too.
    if (!v.is(Id, message)) return;
    const waiting = this.#open.get(message.id);
    this.#open.delete(message.id);
    if (v.is(Failure, message)) {
      const { code, message: text, outcome } = message.error;
      waiting?.reject(new CowbirdError(code, text, { outcome }));
    } else if (v.is(Result, message)) {
      waiting?.resolve(message.result);
    } else {
      const text = 'The other process answered with something that is no answer: it may be of another version';
      waiting?.reject(new CowbirdError('EPROTO', text, { outcome: 'failed' }));
    }
  }

  #answer(message: WireMessage): void {
    if (this.#ended) return;
    try {
      this.#channel.send(message);
    } catch (error) {
      // A result that is too long for one text, or none at all: whoever waits is told, and this process goes on.
      this.#channel.send({ id: message.id, error: toWire(error) } satisfies WireMessage);
    }
  }

  #end(): void {
    this.#ended = true;
    for (const waiting of this.#open.values()) waiting.reject(new ChannelEnded('the call'));
    this.#open.clear();
  }
}

/** The other process has gone: unlike an error that it answered with. */
export class ChannelEnded extends CowbirdError {
  constructor(name: string) {
    super('EPIPE', `The other process ended before it answered ${name}`, { outcome: 'failed' });
  }
}

function toWire(error: unknown): WireError {
  if (error instanceof CowbirdError) return { code: error.code, message: error.message, outcome: error.outcome };
  return { code: codeOf(errnoOfError(error)), message: messageOf(error), outcome: 'failed' };
}

/** The channel to the process that started this one. */
export function parentChannel(): Channel {
  if (process.send === undefined) throw new Error('This program is started by the Cowbird daemon');
  return {
    send: (message) => {
      if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
    },
    onMessage: (listener) => {
      process.on('message', listener);
    },
    onEnd: (listener) => {
      process.on('disconnect', listener);
    },
  };
}

/** The channel to a child process. */
export function childChannel(child: import('node:child_process').ChildProcess): Channel {
  return {
    send: (message) => {
      // A child that is being killed may lose its end between the check and the send: its exit is what we act on.
      if (child.connected && typeof message === 'object' && message !== null) child.send(message, () => undefined);
    },
    onMessage: (listener) => {
      child.on('message', listener);
    },
    onEnd: (listener) => {
      child.on('disconnect', listener);
      child.on('exit', listener);
      whenNeverRan(child, listener);
    },
  };
}
