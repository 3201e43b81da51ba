/** Program of the engine's process: takes the operations from the keeper, checks them once more, hands them to the engine. */
import * as v from 'valibot';
import { requestIds } from '../engine/context.js';
import { Engine } from '../engine/engine.js';
import type { EventInput } from '../engine/events.js';
import type { EngineStart } from '../engine/keeper.js';
import { KeeperLink } from '../engine/keeper-link.js';
import { lockProgramText, protectEngine } from '../engine/protection.js';
import { engineReport, REPORT_ARGUMENT, requireKeeper } from '../engine/protocol.js';
import { parentChannel } from '../engine/rpc.js';
import type { Keeper } from '../engine/services.js';
import { assert, messageOf } from '../sys/errors.js';
import { parseParams, unknownOperation } from './params.js';
import { type Paths, pathsFrom } from './paths.js';
import type { OperationName, OperationParams, OperationResults } from './schema.js';

type EngineOperation = Exclude<OperationName, 'daemonStatus' | 'daemonRestart' | 'doctor'>;
type Dispatch = {
  [N in EngineOperation]: (engine: Engine, params: OperationParams<N>) => Promise<OperationResults[N]>;
};

const dispatch: Dispatch = {
  attach: (engine, params) => engine.attach(params),
  detach: (engine, params) => engine.detach(params.volume),
  list: (engine) => engine.list(),
  info: (engine, params) => engine.info(params.minor),
  setupSnapshot: (engine, params) => engine.setupSnapshot(params),
  setupTogether: (engine, params) => engine.setupTogether(params),
  reloadSnapshot: (engine, params) => engine.reload(params, 'snapshot'),
  reloadIncremental: (engine, params) => engine.reload(params, 'incremental'),
  destroy: (engine, params) => engine.destroy(params.minor),
  transitionToIncremental: (engine, params) => engine.transitionToIncremental(params.minor),
  transitionToSnapshot: (engine, params) => engine.transitionToSnapshot(params),
  transitionTogether: (engine, params) => engine.transitionTogether(params),
  reconfigure: (engine, params) => engine.reconfigure(params.minor, params.cacheBytes),
  expandCowFile: (engine, params) => engine.expandCowFile(params.minor, params.bytes),
  reconfigureAutoExpand: (engine, params) =>
    engine.reconfigureAutoExpand(params.minor, params.stepBytes, params.reservedBytes ?? 0),
  getFreeMinor: (engine) => engine.getFreeMinor(),
  changes: (engine, params) => engine.changes(params.minor, params.fromBlock),
  daemonStop: (engine, params) => engine.stop(params.force === true),
};

/** The first requests after a start are served first. */
const LOCK_DELAY_MS = 1_000;

const Request = v.object({ requestId: v.number(), operation: v.string(), params: v.unknown() });
const OutcomeRequest = v.object({ requestId: v.number() });

async function execute<N extends EngineOperation>(
  engine: Engine,
  name: N,
  params: unknown,
): Promise<OperationResults[N]> {
  return dispatch[name](engine, parseParams(name, params));
}

function isEngineOperation(name: string): name is EngineOperation {
  return Object.hasOwn(dispatch, name);
}

function lockText(keeper: Keeper): void {
  const report = (event: EventInput): void => void keeper.call('event', event).catch(() => undefined);
  lockProgramText(report).catch((error: unknown) =>
    report({ event: 'memory.unlocked', level: 'warning', message: messageOf(error) }),
  );
}

/** Serves the keeper that started this process until it goes. */
function serve(): void {
  // Before there is any worker: threads inherit it.
  protectEngine();
  const paths: Paths = pathsFrom(process.env);
  let engine: Engine | undefined;
  const link: KeeperLink = new KeeperLink(parentChannel(), async (call, params): Promise<unknown> => {
    if (call === 'start') {
      const start = params as EngineStart;
      requireKeeper(start.protocol);
      const keeper = link.connect(start.keeperPid);
      engine = new Engine(keeper, paths);
      await engine.start(start.volumes);
      setTimeout(() => lockText(keeper), LOCK_DELAY_MS);
      return engineReport();
    }
    assert(engine !== undefined, 'the engine was started first');
    const running = engine;
    if (call === 'ping') return null;
    if (call === 'outcome') return running.outcomeOf(v.parse(OutcomeRequest, params).requestId);
    const { requestId, operation, params: operationParams } = v.parse(Request, params);
    if (!isEngineOperation(operation)) throw unknownOperation(operation);
    return requestIds.run(requestId, () => execute(running, operation, operationParams));
  });

  // The keeper's end is ours: without it nobody answers for the descriptors.
  // At once: exit() would wait for the workers, and they for requests.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  process.on('SIGTERM', () => undefined);
  process.on('SIGINT', () => undefined);
}

if (process.argv.includes(REPORT_ARGUMENT)) process.stdout.write(`${JSON.stringify(engineReport())}\n`);
else serve();
