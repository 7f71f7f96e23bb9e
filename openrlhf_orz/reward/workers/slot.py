"""The caller's side of the workers: slots, each with a killable worker, and the keeper that forks them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.workers import wire

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
START_SECONDS = 120.0  # wall; importing Math-Verify takes 0.8 s on an idle core
START_FAILURES = 3
RECYCLE = 1000  # answers after which a worker is replaced by a fresh fork
OWN_DEATHS = 2  # the second death by its own fault makes an answer `crashed`
OUTSIDE_DEATHS = 100  # a kill from outside says nothing about the answer, so it is tried again
WALL_TRIES = 2  # a worker may have been frozen or starved rather than stuck


class Keeper:
    """Starts the process that forks a pool's workers (worker.py) at first use, and again when it dies.

    Args:
        memory_mib: address-space limit of a worker, MiB.
        cpu_seconds: CPU time an answer may take.
    """

    def __init__(self, memory_mib: int, cpu_seconds: float):
        self._limits = (memory_mib, cpu_seconds)
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None  # our child, to wait for; a standby is not one
        self._control: socket.socket | None = None
        self.pid: int | None = None  # of the keeper that forks now

    def new_channel(self) -> socket.socket:
        """A socket to a new worker, which will send READY.

        Raises:
            RuntimeError: the worker cannot start at all (Math-Verify is missing, say).
        """
        with self._lock:
            while True:
                control = self._control or self._start()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    try:
                        socket.send_fds(control, [b"+"], [theirs.fileno()])
                        return ours
                    except OSError:
                        ours.close()
                        self._promote(control)

    def _promote(self, dead: socket.socket) -> None:
        """Let the last standby that the dead keeper reported take over, if there is one."""
        self._control, self.pid = _last_standby(dead)
        dead.close()
        if self._process and self._process.poll() is not None:
            self._process = None

    def _start(self) -> socket.socket:
        """Start the keeper's program; returns its control socket.

        Tries again for ``START_SECONDS`` if it is killed from outside; only its own failures count.
        """
        failures, reason, code = 0, "", None
        begin = time.monotonic()
        while failures < START_FAILURES and time.monotonic() - begin < START_SECONDS:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                arguments = [theirs.fileno(), os.getpid(), *self._limits, RECYCLE]
                process = subprocess.Popen(
                    [sys.executable, _WORKER, *map(str, arguments)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            ours.settimeout(START_SECONDS)
            try:
                reply = ours.recv(2048)
                if reply and wire.REPLY.unpack_from(reply)[1] == wire.READY:
                    self._process, self._control, self.pid = process, ours, process.pid
                    return ours
                reason = reply[wire.REPLY.size :].decode(errors="replace")
                code = process.wait(START_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = repr(error)
            process.kill()
            process.wait()
            ours.close()
            failures += code not in (-signal.SIGKILL, -signal.SIGTERM)
        reason = reason or f"it ended at once with status {code}"
        raise RuntimeError(f"the grading workers cannot start ({sys.executable} {_WORKER}): {reason}")

    def close(self) -> None:
        """Kill the keeper and its standby, not its workers. The next :meth:`new_channel` starts it again."""
        with self._lock:
            control, pid, self._control, self.pid = self._control, self.pid, None, None
            if control:
                standby, standby_pid = _last_standby(control)
                for end, process in ((standby, standby_pid), (control, pid)):
                    if end:
                        _kill(process)
                        end.close()
            if self._process:
                self._process.wait()
                self._process = None


def _last_standby(control: socket.socket) -> tuple[socket.socket | None, int | None]:
    """The last living standby that a keeper has reported, with its process id."""
    last: tuple[socket.socket | None, int | None] = (None, None)
    control.setblocking(False)
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(control, 2048, 1)
        except OSError:
            break
        if not message:
            break
        number, outcome, _ = wire.REPLY.unpack_from(message)
        if outcome == wire.STANDBY and fds:
            if last[0]:
                last[0].close()
            last = (socket.socket(fileno=fds[0]), number)
    control.setblocking(True)
    return last


def _kill(pid: int | None) -> None:
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Slot:
    """One worker at a time and its replacements. Not thread-safe: a pool hands it to one thread.

    Args:
        keeper: where workers come from.
        wall_seconds: wall time after which the worker is killed, counted from hand-over.
    """

    def __init__(self, keeper: Keeper, wall_seconds: float):
        self._keeper = keeper
        self._wall_seconds = wall_seconds
        self._channel: socket.socket | None = None
        self._worker = 0  # its process id, 0 for none
        self._number = 0  # of the question
        self._slow: tuple[float, Callable[[], None]] | None = None  # when to call what, once

    def ask(
        self,
        task: int,
        gold: str,
        answer: str,
        slow_after: float = 0.3,
        on_slow: Callable[[], None] = lambda: None,
    ) -> tuple[Verdict, int]:
        """Have the worker do ``task``; returns the verdict and the number of the rule that decided.

        Args:
            slow_after: wall seconds after which ``on_slow`` is called, once.

        Raises:
            RuntimeError: the worker cannot start at all (Math-Verify is missing, say).
        """
        self._number = (self._number + 1) % (1 << 32)
        message = wire.encode_request(self._number, task, gold, answer)
        own_deaths = outside_deaths = wall_tries = 0
        self._slow = None
        while True:
            channel = self._channel or self._connect()
            if channel is None:
                continue
            if own_deaths + outside_deaths + wall_tries == 0:
                self._slow = time.monotonic() + slow_after, on_slow
            try:
                channel.send(message)
                outcome, rule = self._outcome(channel)
            except TimeoutError:
                self.kill()
                wall_tries += 1
            except OSError:  # the worker died, and the keeper is not there to say how
                self._drop()
                outside_deaths += 1
            else:
                if outcome < wire.READY:
                    return Verdict(outcome), rule
                own_deaths += outcome == wire.DIED_BUSY
                outside_deaths += outcome == wire.KILLED_BUSY
            if wall_tries == WALL_TRIES:
                return Verdict.TIMEOUT, 0
            if own_deaths == OWN_DEATHS or outside_deaths == OUTSIDE_DEATHS:
                return Verdict.CRASHED, 0

    def _outcome(self, channel: socket.socket) -> tuple[int, int]:
        """Wait for what becomes of the question: a verdict and its rule, or the worker's death.

        READY stands for the death of a worker before it took the question up: it must be sent again.
        A second answer to one number is ignored.

        Raises:
            TimeoutError: nothing came within the wall limit.
            OSError: the socket is broken.
        """
        deadline = time.monotonic() + self._wall_seconds
        while True:
            reply = self._receive(channel, deadline)
            number, outcome, rule = wire.REPLY.unpack_from(reply)
            if outcome == wire.READY:
                self._worker = number
            elif outcome == wire.CANNOT_START:
                raise RuntimeError(reply[wire.REPLY.size :].decode(errors="replace"))
            elif outcome in (wire.DIED_BUSY, wire.KILLED_BUSY):
                return (outcome if number == self._number else wire.READY), 0
            elif outcome < wire.READY and number == self._number:
                return outcome, rule

    def _receive(self, channel: socket.socket, deadline: float) -> bytes:
        """The next message; calls ``on_slow`` on the way when its time has come."""
        while True:
            until = min(deadline, self._slow[0]) if self._slow else deadline
            try:
                channel.settimeout(max(0.001, until - time.monotonic()))
                reply = channel.recv(2048)
            except TimeoutError:
                if self._slow:
                    on_slow, self._slow = self._slow[1], None
                    on_slow()
                if time.monotonic() < deadline:
                    continue
                raise
            if not reply:
                raise ConnectionResetError
            return reply

    @property
    def pid(self) -> int | None:
        """The worker's process id, None before the first use."""
        return self._worker or None

    def _connect(self) -> socket.socket | None:
        """The socket to a new worker; None if it died, or its keeper did, before it was ready."""
        channel = self._channel = self._keeper.new_channel()
        channel.settimeout(self._wall_seconds)
        try:
            while reply := channel.recv(2048):
                number, outcome, _ = wire.REPLY.unpack_from(reply)
                if outcome == wire.READY:
                    self._worker = number
                    return channel
        except TimeoutError:  # the keeper is frozen
            self._keeper.close()
        except OSError:
            pass
        self._drop()
        return None

    def _drop(self) -> None:
        channel, self._channel, self._worker = self._channel, None, 0
        if channel:
            channel.close()

    def kill(self) -> None:
        """Kill the worker, if there is one. The next ``ask`` gets another."""
        _kill(self._worker)
        self._drop()
