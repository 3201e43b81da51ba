/** Stand-ins for the tests of the command lines: streams that are kept, and a library whose operations a test gives. */
import type { AbortCause, Io, Library } from './io.js';

export interface FakeIo extends Io {
  stdout: string;
  stderr: string;
  abort(cause: AbortCause): void;
}

/** Every operation that is not given fails the test that calls it. */
export function fakeIo(operations: Partial<Library> = {}): FakeIo {
  const controller = new AbortController();
  const missing = (name: string) => (): never => {
    throw new Error(`${name} was called`);
  };
  const library: Library = {
    attach: missing('attach'),
    backup: missing('backup'),
    changes: missing('changes'),
    daemonStatus: missing('daemonStatus'),
    destroy: missing('destroy'),
    detach: missing('detach'),
    device: missing('device'),
    doctor: missing('doctor'),
    events: missing('events'),
    expandCowFile: missing('expandCowFile'),
    getFreeMinor: missing('getFreeMinor'),
    info: missing('info'),
    backupTogether: missing('backupTogether'),
    listTracking: missing('listTracking'),
    listVersions: missing('listVersions'),
    listVolumes: missing('listVolumes'),
    mount: missing('mount'),
    prune: missing('prune'),
    reconfigure: missing('reconfigure'),
    reconfigureAutoExpand: missing('reconfigureAutoExpand'),
    reloadIncremental: missing('reloadIncremental'),
    reloadSnapshot: missing('reloadSnapshot'),
    restartDaemon: missing('restartDaemon'),
    restore: missing('restore'),
    setupSnapshot: missing('setupSnapshot'),
    setupTogether: missing('setupTogether'),
    startDaemon: missing('startDaemon'),
    stopDaemon: missing('stopDaemon'),
    track: missing('track'),
    transitionTogether: missing('transitionTogether'),
    transitionToIncremental: missing('transitionToIncremental'),
    transitionToSnapshot: missing('transitionToSnapshot'),
    umount: missing('umount'),
    untrack: missing('untrack'),
    verify: missing('verify'),
    versionChanges: missing('versionChanges'),
    ...operations,
  };
  const io: FakeIo = {
    stdout: '',
    stderr: '',
    out: (text) => {
      io.stdout += text;
    },
    err: (text) => {
      io.stderr += text;
    },
    signal: controller.signal,
    terminal: undefined,
    ask: undefined,
    library: async () => library,
    abort: (cause) => controller.abort(cause),
  };
  return io;
}
