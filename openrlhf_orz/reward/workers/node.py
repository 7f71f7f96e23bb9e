"""One pool per node: a separate process, which all engines reach through a local socket.

The first client starts the process; it ends a few seconds after its last client, also when clients
are killed. The address is in Linux's abstract socket namespace, so no file is left behind. Both
ends check that the other runs as the same user.

    python node.py ADDRESS GRACE_SECONDS WORKERS MEMORY_MIB CPU_SECONDS WALL_SECONDS
"""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time

if __name__ == "__main__":  # run by path: import the package from its root, not from this folder
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(_here))] + [p for p in sys.path if p != _here]

from openrlhf_orz import __version__
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.pool import Pool

SCOPE_VARIABLE = "ORZ_GRADER_SCOPE"  # set it differently to keep two runs of a user apart
GRACE_SECONDS = 10.0  # the pool outlives its last client by this
CONNECT_SECONDS = 60.0
TRIES = 5  # connections that may break on one question
_CREDENTIALS = struct.Struct("iII")


def _same_user(channel: socket.socket) -> bool:
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(raw)[1] == os.getuid()


class _Foreign(Exception):
    """Another user's process listens at the address of the pool."""


class NodePool:
    """A client of the node's pool, with the interface of :class:`~openrlhf_orz.reward.workers.pool.Pool`.

    Clients with the same settings, user, code version and ``ORZ_GRADER_SCOPE`` share one pool.
    """

    def __init__(self, workers: int | None, memory_mib: int, cpu_seconds: float, wall_seconds: float):
        self.workers = workers or len(os.sched_getaffinity(0))
        self._settings = (self.workers, memory_mib, cpu_seconds, wall_seconds)
        scope = os.environ.get(SCOPE_VARIABLE, "")
        name = repr((os.getuid(), scope, sys.executable, __version__, os.path.abspath(__file__), self._settings))
        self._address = "\0openrlhf-orz-grader-" + hashlib.sha256(name.encode()).hexdigest()[:24]
        self._idle: queue.LifoQueue[socket.socket] = queue.LifoQueue()
        self._started: subprocess.Popen | None = None
        self._own: Pool | None = None  # where somebody else holds the address
        self._lock = threading.Lock()

    def ask(self, task: int, gold: str, answer: str) -> tuple[Verdict, int]:
        """As :meth:`Pool.ask`; starts the pool again if it dies. RuntimeError when it cannot start."""
        message = wire.encode_request(0, task, gold, answer)
        for _ in range(TRIES):
            try:
                channel = self._idle.get_nowait()
            except queue.Empty:
                try:
                    channel = self._connect()
                except _Foreign:
                    return self._own_pool().ask(task, gold, answer)
            try:
                channel.send(message)
                reply = channel.recv(2048)
            except OSError:
                reply = b""
            if not reply:
                channel.close()
                continue
            self._idle.put(channel)
            _, outcome, rule = wire.REPLY.unpack_from(reply)
            if outcome == wire.CANNOT_START:
                raise RuntimeError(reply[wire.REPLY.size :].decode(errors="replace"))
            return Verdict(outcome), rule
        return Verdict.CRASHED, 0

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                channel.connect(self._address)
            except OSError as error:
                channel.close()
                if time.monotonic() > deadline:
                    raise RuntimeError("the node's grading pool cannot be started") from error
                with self._lock:
                    if self._started is None or self._started.poll() is not None:
                        self._started = self._start()
                time.sleep(0.05)
                continue
            if not _same_user(channel):
                channel.close()
                raise _Foreign
            return channel

    def _own_pool(self) -> Pool:
        with self._lock:
            if self._own is None:
                print(
                    f"the address of this machine's grading pool is another user's: process {os.getpid()} grades by "
                    f"itself ({SCOPE_VARIABLE}=TEXT gives another address)",
                    file=sys.stderr,
                    flush=True,
                )
                self._own = Pool(*self._settings)
            return self._own

    def _start(self) -> subprocess.Popen:
        arguments = map(str, (self._address[1:], GRACE_SECONDS, *self._settings))
        return subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Close the connections; the pool goes on for the other clients."""
        if self._own:
            self._own.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


class _Server:
    """Serves a pool to clients, a thread for each connection, until the last client has been gone for a while."""

    def __init__(self, pool: Pool, grace_seconds: float):
        self.pool = pool
        self.grace_seconds = grace_seconds
        self.clients = 0
        self.last = time.monotonic()
        self.lock = threading.Lock()

    def serve(self, channel: socket.socket) -> None:
        try:
            while message := channel.recv(2 * wire.MAX_MESSAGE_BYTES):
                number, task, gold, answer = wire.decode_request(message)
                try:
                    verdict, rule = self.pool.ask(task, gold, answer)
                    reply = wire.REPLY.pack(number, verdict, rule)
                except RuntimeError as error:
                    reply = wire.REPLY.pack(number, wire.CANNOT_START, 0) + str(error).encode()[:1000]
                channel.send(reply)
        except OSError:
            pass
        finally:
            channel.close()
            with self.lock:
                self.clients -= 1
                self.last = time.monotonic()

    def run(self, address: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind("\0" + address)
            except OSError:
                return  # another client's server was first
            listener.listen(1024)
            listener.settimeout(min(1.0, self.grace_seconds))
            while True:
                try:
                    channel, _ = listener.accept()
                except TimeoutError:
                    with self.lock:
                        if not self.clients and time.monotonic() - self.last > self.grace_seconds:
                            return
                    continue
                if not _same_user(channel):
                    channel.close()
                    continue
                channel.setblocking(True)
                with self.lock:
                    self.clients += 1
                threading.Thread(target=self.serve, args=(channel,), daemon=True).start()


def main() -> None:
    address, grace_seconds, workers, memory_mib, cpu_seconds, wall_seconds = sys.argv[1:]
    pool = Pool(int(workers), int(memory_mib), float(cpu_seconds), float(wall_seconds))
    try:
        _Server(pool, float(grace_seconds)).run(address)
    finally:
        pool.close()


if __name__ == "__main__":
    main()
