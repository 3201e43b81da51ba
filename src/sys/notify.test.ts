import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { notify } from './notify.js';
import { NotifySocket } from './testing.js';

/** What arrives at a datagram socket of this name during `send`. */
function received(path: string, send: () => void): string {
  const socket = new NotifySocket(path);
  try {
    send();
    return socket.receive();
  } finally {
    socket.close();
  }
}

describe('notify', () => {
  it('sends to the socket in the file system that the service manager names', () => {
    const folder = mkdtempSync(join(tmpdir(), 'cowbird-notify-'));
    try {
      const path = join(folder, 'notify');
      assert.equal(
        received(path, () => assert.equal(notify('READY=1', { NOTIFY_SOCKET: path }), true)),
        'READY=1',
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('sends to an abstract socket', () => {
    const path = `@cowbird-notify-${process.pid}`;
    assert.equal(
      received(path, () => notify('READY=1\nSTATUS=well', { NOTIFY_SOCKET: path })),
      'READY=1\nSTATUS=well',
    );
  });

  it('does nothing without a service manager, and says when the one that is named is not there', () => {
    assert.equal(notify('READY=1', {}), false);
    assert.throws(() => notify('READY=1', { NOTIFY_SOCKET: '/nonexistent/notify' }), { code: 'ENOENT' });
    assert.throws(() => notify('READY=1', { NOTIFY_SOCKET: `/${'x'.repeat(120)}` }), { code: 'ENAMETOOLONG' });
  });
});
