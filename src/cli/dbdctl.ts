/** `dbdctl`: dattobd's command. */
import { type DriverTool, runDriverTool } from './driver-tool.js';
import { type Io, processIo } from './io.js';
import { DBDCTL } from './spec/drivers.js';

const TOOL: DriverTool = { spec: DBDCTL, alias: 'datto', onVolumeOnly: true };

/** Runs `dbdctl` with these arguments (without node and script) and resolves to the exit code. */
export async function main(argv: string[], io: Io = processIo()): Promise<number> {
  return runDriverTool(TOOL, argv, io);
}
