/**
 * One at a time: of set-ups in one checkout, of test runs on one machine. The lock is a listening socket with an abstract name
 * (no file): the kernel takes it away with its holder, so that there is no stale lock, whatever ended the holder. Who waits stays
 * connected: the connection ends with the holder.
 */
import { statSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { pause, ROOT, say } from './children.mjs';

/** Size of sun_path. Some Nodes fill a shorter name up with zeros, some do not; at full length all mean the same name. */
const NAME_BYTES = 108;
const INTERRUPT_POLL_MS = 100;
const RETRY_MS = 50;

const { dev, ino } = statSync(ROOT);
export const SETUP_LOCK = { name: `setup-${dev}-${ino}`, what: 'another set-up runs here' };
/** Loop devices, names under /dev and the machine's time are those of one run. */
export const TEST_LOCK = { name: 'tests', what: 'other tests run on this machine' };

/** The server that is the lock, or nothing when another process has it. */
function tryLock(name, waiters) {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      waiters.add(socket);
      socket.on('error', () => undefined).on('close', () => waiters.delete(socket));
      socket.write(String(process.pid));
    });
    server.once('error', (error) => (error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error)));
    server.listen(name, () => resolve(server));
  });
}

/** Returns when the holder has let go or ended. */
function holderGone(name, onPid, throwIfInterrupted) {
  return new Promise((resolve, reject) => {
    const socket = connect(name);
    const timer = setInterval(() => {
      try {
        throwIfInterrupted();
      } catch (error) {
        reject(error);
        socket.destroy();
      }
    }, INTERRUPT_POLL_MS);
    socket.once('data', (pid) => onPid(String(pid)));
    socket.on('error', () => undefined);
    socket.once('close', () => {
      clearInterval(timer);
      resolve();
    });
  });
}

/** Takes a lock, waiting as long as it takes; returns the function that gives it back. */
export async function takeLock({ name: own, what }, throwIfInterrupted) {
  const name = `\0cowbird-${own}-`.padEnd(NAME_BYTES, '.');
  const waiters = new Set();
  let said = false;
  const sayOnce = (pid) => {
    if (!said) say(`${what} (process ${pid}); waiting for it`);
    said = true;
  };
  for (;;) {
    throwIfInterrupted();
    const server = await tryLock(name, waiters);
    if (server !== undefined) {
      return () => {
        server.close();
        for (const socket of waiters) socket.destroy();
      };
    }
    await holderGone(name, sayOnce, throwIfInterrupted);
    await pause(RETRY_MS);
  }
}
