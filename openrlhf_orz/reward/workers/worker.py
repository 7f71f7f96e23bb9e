"""The grading workers of a pool, run as a program by :mod:`openrlhf_orz.reward.workers.slot`.

The *keeper* imports Math-Verify once. For each socket that a slot sends, it forks a *server*, which
parses and compares under kernel limits. When a server dies, the keeper says so on the socket and
forks the next one, in about 10 ms instead of the 0.8 s of an import. The keeper is single-threaded
and holds nothing but the modules, so forking it is sound. Servers outlive a keeper that dies; a
*standby*, a copy of the keeper, then takes its place without another import. All processes end when
their owner closes their sockets or is gone; a busy server ends after its answer, which the CPU limit
bounds.

    python worker.py FD OWNER_PID MEMORY_MIB CPU_SECONDS RECYCLE
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys

if __name__ == "__main__":  # run by path: import the package from its root, not from this folder
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(_here))] + [p for p in sys.path if p != _here]

from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.workers import gym, wire

TIMER_REPEAT = 0.25  # seconds of CPU; an alarm that some except clause swallowed comes again
KERNEL_GRACE = 1.0  # seconds of CPU past the budget before the kernel kills a C call
IDLE_CHECK = 5.0  # seconds between looks at whether the owner still lives
MAX_SLOTS = 1024
_BUSY = struct.Struct("<I")


class OutOfTime(BaseException):
    """The CPU budget ran out; a BaseException so that no ``except Exception`` keeps it."""


class Budget:
    """Bounds one answer's CPU time: an alarm at the budget, and a kernel kill if that does not help."""

    def __init__(self, cpu_seconds: float):
        self.cpu_seconds = cpu_seconds
        self.running = self.spent = False
        signal.signal(signal.SIGPROF, self._alarm)

    def _alarm(self, signum, frame) -> None:
        if self.running:
            self.spent = True
            raise OutOfTime

    def __enter__(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        kill_at = used.ru_utime + used.ru_stime + self.cpu_seconds + KERNEL_GRACE
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(kill_at + 1), hard))  # whole seconds, rounded up
        self.spent, self.running = False, True
        signal.setitimer(signal.ITIMER_PROF, self.cpu_seconds, TIMER_REPEAT)

    def __exit__(self, *exc) -> None:
        self.running = False
        signal.setitimer(signal.ITIMER_PROF, 0)


def serve(channel: socket.socket, busy: mmap.mmap, place: int, owner: int, cpu_seconds: float, recycle: int) -> None:
    """Answer requests until the channel closes, the owner is gone, or ``recycle`` answers are given.

    Writes the number of the current request into ``busy`` at ``place``, for the keeper to report.
    """
    from openrlhf_orz.reward.judge import judge

    budget = Budget(cpu_seconds)
    tasks = {
        wire.JUDGE: judge.judge_answer,
        wire.JUDGE_PLAIN: judge.judge_plain,
        wire.CHECK_REFERENCE: lambda gold, _: judge.check_reference(gold),
        wire.CHECK_REFERENCE_PLAIN: lambda gold, _: judge.check_reference(gold, plain=True),
        wire.REASONING_GYM: gym.score_entry,
    }
    channel.send(wire.REPLY.pack(os.getpid(), wire.READY, 0))
    for _ in range(recycle):
        while not select.select([channel], [], [], IDLE_CHECK)[0]:
            os.kill(owner, 0)  # raises, and so ends this process, when the owner is gone
        message = channel.recv(2 * wire.MAX_MESSAGE_BYTES)
        if not message:
            os._exit(0)
        number, task, gold, answer = wire.decode_request(message)
        _BUSY.pack_into(busy, place, number)
        verdict, rule, replace = Verdict.CRASHED, "", True
        if task == wire.REASONING_GYM:
            try:
                gym.warm(gold)
            except ImportError as error:
                channel.send(wire.REPLY.pack(number, wire.CANNOT_START, 0) + repr(error).encode()[:1000])
                continue
        try:
            with budget:
                verdict, rule = tasks[task](gold, answer)
                replace = False
        except OutOfTime:
            verdict = Verdict.TIMEOUT
        except MemoryError:
            verdict = Verdict.CRASHED
        except Exception:
            verdict, replace = Verdict.UNPARSABLE, False
        if budget.spent:
            verdict, rule, replace = Verdict.TIMEOUT, "", True
        channel.send(wire.REPLY.pack(number, verdict, rule_number(rule)))
        if replace:  # an interrupted computation may have left caches half-written
            os._exit(0)
    os._exit(0)


class Promoted(Exception):
    """Raised in a new standby, to unwind to :func:`main`, which goes on with the standby's control socket."""

    def __init__(self, control: socket.socket):
        self.control = control


class ForkServer:
    """The keeper's loop: forks a server for each slot, again when it ends, and a standby for itself."""

    def __init__(self, control: socket.socket, owner: int, cpu_seconds: float, recycle: int):
        self.control, self.owner, self.cpu_seconds, self.recycle = control, owner, cpu_seconds, recycle
        self.busy = mmap.mmap(-1, 4 * MAX_SLOTS)  # the number of the request each slot works on
        self.slots: dict[int, socket.socket] = {}  # index -> channel
        self.children: dict[int, int] = {}  # process -> index
        self.standby = 0
        self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        while True:
            waited: list[socket.socket | int] = [self.control, self.wakeup[0]]
            ready = select.select(waited, [], [], IDLE_CHECK)[0]
            if not ready:
                os.kill(self.owner, 0)  # raises, and so ends everything, when the owner is gone
            if self.wakeup[0] in ready:
                os.read(self.wakeup[0], 4096)
                self.reap()
            if self.control in ready:
                message, fds, _, _ = socket.recv_fds(self.control, 16, 1)
                if not message:
                    return
                index = next(n for n in range(MAX_SLOTS) if n not in self.slots)
                self.slots[index] = socket.socket(fileno=fds[0])
                self.fork(index)
                if not self.standby:
                    self.fork_standby()

    def fork(self, index: int) -> None:
        _BUSY.pack_into(self.busy, 4 * index, 0)
        pid = os.fork()
        if pid:
            self.children[pid] = index
            return
        try:
            channel = self.slots.pop(index)
            self.close_inherited()
            serve(channel, self.busy, 4 * index, self.owner, self.cpu_seconds, self.recycle)
        finally:
            os._exit(3)

    def fork_standby(self) -> None:
        """A copy of this process that takes over when it dies; its control socket goes to the owner."""
        theirs, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.standby = os.fork()
        if not self.standby:
            theirs.close()
            self.close_inherited()
            raise Promoted(own)
        own.close()
        with theirs:
            socket.send_fds(self.control, [wire.REPLY.pack(self.standby, wire.STANDBY, 0)], [theirs.fileno()])

    def close_inherited(self) -> None:
        """In a child: close the keeper's sockets and drop its signal handling."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for channel in (*self.slots.values(), self.control):
            channel.close()
        for fd in self.wakeup:
            os.close(fd)

    def reap(self) -> None:
        """Collect processes that have ended: report on their sockets, and fork again if the owner listens."""
        while self.children or self.standby:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid == self.standby:
                self.fork_standby()
                continue
            index = self.children.pop(pid)
            channel = self.slots[index]
            code = os.waitstatus_to_exitcode(status)
            number = _BUSY.unpack_from(self.busy, 4 * index)[0]
            try:
                if code == -signal.SIGXCPU:
                    channel.send(wire.REPLY.pack(number, Verdict.TIMEOUT, 0))
                elif code:
                    outside = code in (-signal.SIGKILL, -signal.SIGTERM)
                    channel.send(wire.REPLY.pack(number, wire.KILLED_BUSY if outside else wire.DIED_BUSY, 0))
                closed = select.select([channel], [], [], 0)[0] and not channel.recv(1, socket.MSG_PEEK)
            except OSError:
                closed = True
            if closed:
                channel.close()
                del self.slots[index]
            else:
                self.fork(index)


def main() -> None:
    fd, owner, memory_mib, cpu_seconds, recycle = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's business
    memory = int(memory_mib) << 20
    control = socket.socket(fileno=int(fd))
    try:
        import openrlhf_orz.reward.judge.judge  # noqa: F401  every fork shares this import
    except Exception as error:  # the owner raises it: nothing can be graded
        control.send(wire.REPLY.pack(0, wire.CANNOT_START, 0) + repr(error).encode()[:1000])
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    gc.collect()
    gc.freeze()  # shared pages stay shared
    control.send(wire.REPLY.pack(os.getpid(), wire.READY, 0))
    while True:
        try:
            with control:
                ForkServer(control, int(owner), float(cpu_seconds), int(recycle)).run()
            return
        except Promoted as promoted:
            control = promoted.control


if __name__ == "__main__":
    main()
