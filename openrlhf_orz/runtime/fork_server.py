"""Ray workers that start with everything imported, on a CPU.

The imports of a run (torch, DeepSpeed, vLLM, transformers) take each of its processes 14 to 19 s of a core. Where the
cores are few, one process, the server, imports them once, and a worker is a fork of it. Ray starts what its runtime
environment names as ``py_executable``. That is this file run as a script, the client: it hands its arguments,
environment and standard streams to the server and ends; the fork runs Ray's own ``default_worker.py`` with them. A
client that finds no server becomes an ordinary Python, which takes longer and does the same.

An engine's worker starts vLLM's own process by multiprocessing, as a new Python that imports all of it again. Where
its environment has ``SPARE``, the fork forks once more before it runs anything: that one waits to be this process.
"""

# ruff: noqa: E402  the client imports little: it shall start in hundredths of a second
import json
import os
import signal
import socket
import struct
import sys

CHUNK, MOST = 65536, 16  # bytes of a message at a time; files that come with one
SPARE = "ORZ_SPARE_PROCESS"
# All but Ray, which reads its environment when it is imported: that is another one in each worker.
MODULES = (
    "deepspeed",
    "peft",
    "datasets",
    "torchdata.stateful_dataloader",
    "transformers.trainer",
    "vllm.engine.arg_utils",
    "vllm.v1.worker.cpu_worker",
)


def send(to: socket.socket, message: dict, files: list[int]) -> None:
    """Send a message and open files to another process."""
    data = json.dumps(message).encode()
    socket.send_fds(to, [struct.pack("!I", len(data))], files)
    to.sendall(data)


# ---- the client


def ask_for_fork(path: str, argv: list[str]) -> bool:
    """Whether the server at ``path`` has forked a process that runs the script ``argv[0]`` in this one's place."""
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            send(server, {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}, [0, 1, 2])
            return server.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__" and sys.argv[1] != "serve":
    if not ask_for_fork(sys.argv[1], sys.argv[2:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
    sys.exit()


# ---- the server

import contextlib
import ctypes
import fcntl
import gc
import importlib
import multiprocessing.util
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.spawn import spawn_main

from openrlhf_orz.runtime.stopping import STOP_SIGNALS, signals_blocked

MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_MAX_": -4, "MALLOC_ARENA_MAX": -8}  # as in glibc's malloc.h
PR_SET_PDEATHSIG = 1
# Ray and vLLM find where a process has its title by the first variable, which must be as at the start.
FIRST = "ORZ_FORK_SERVER"


@contextlib.contextmanager
def fork_server(folder: str, env: Mapping[str, str], modules: Sequence[str] = MODULES) -> Iterator[str]:
    """A server for the body, which imports ``modules``; gives the ``py_executable`` of its workers.

    Its socket lies in ``folder``: whoever may enter that can have it run code. ``env`` is what libraries read when
    they are imported, such as OMP_NUM_THREADS. The signals that stop a run are blocked in the server and its
    forks, as they are in Ray's workers. An import that fails is told by the workers, which import for themselves then.
    """
    path = os.path.join(folder, "fork")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)  # who connects while the server imports waits
    command = [sys.executable, "-m", "openrlhf_orz.runtime.fork_server", "serve", str(os.getpid())]
    command += [str(listener.fileno()), *modules]
    env = {FIRST: "1"} | {name: value for name, value in os.environ.items() if name != FIRST} | dict(env)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with signals_blocked(*STOP_SIGNALS):
        server = subprocess.Popen(command, env=env, pass_fds=[listener.fileno()], **streams)
    listener.close()
    try:
        yield shlex.join([sys.executable, "-I", "-S", __file__, path])
    finally:
        server.kill()
        server.wait()


def receive(source: socket.socket, numbers: Sequence[int] = ()) -> dict:
    """What another process has sent, over a socket that is closed then. Its files get ``numbers``, or those that the
    message has as ``files``. Ends this process if the other one has died.
    """
    head, files, _, _ = socket.recv_fds(source, 4, MOST)
    (length,) = struct.unpack("!I", head or bytes(4))
    data = bytearray()
    while len(data) < length:
        part = source.recv(min(CHUNK, length - len(data)))
        if not part:
            break
        data += part
    if not head or len(data) < length:
        os._exit(1)
    message = json.loads(data)
    if numbers:
        source.sendall(b"1")
    source.close()
    numbers = numbers or message["files"]
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, max(numbers) + 1) for file in files]  # one may have another's number
    for file in files:
        os.close(file)
    for file, number in zip(aside, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    return message


def accept_forks(listener: socket.socket) -> dict:
    """Fork for each client, for ever; in a fork, what its client asked for: ``argv``, ``env``, ``cwd``."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps forks that have ended
    while True:
        client, _ = listener.accept()
        with client:
            if os.fork():
                continue
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return receive(client, (0, 1, 2))


def enter(env: dict[str, str], cwd: str) -> None:
    """Take over an environment, but for FIRST, and a working directory."""
    for name in os.environ.keys() - env.keys() - {FIRST}:
        del os.environ[name]
    os.environ.update((name, value) for name, value in env.items() if name != FIRST)
    os.chdir(cwd)


def keep_spare() -> None:
    """Fork a process that waits; ``spawned_in_spare`` makes it the one that multiprocessing spawns."""
    parent, (ours, its) = os.getpid(), socket.socketpair()
    pid = os.fork()
    if pid:
        its.close()
        spares.append((pid, ours))
        return
    ours.close()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    asked = receive(its)
    enter(asked["env"], asked["cwd"])
    program = asked["argv"].index("-c") + 1  # a call of spawn_main, whose arguments are numbers of files
    sys.argv = ["-c", *asked["argv"][program + 1 :]]
    spawn_main(**{name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", asked["argv"][program])})
    sys.exit()


spares: list[tuple[int, socket.socket]] = []


@contextlib.contextmanager
def spawned_in_spare() -> Iterator[None]:
    """In the body, the first process that multiprocessing spawns is the spare one, if there is one."""
    spawn = multiprocessing.util.spawnv_passfds

    def hand_over(path, args, passfds):
        words = [os.fsdecode(word) for word in args]
        if not spares or "--multiprocessing-fork" not in words:
            return spawn(path, args, passfds)
        pid, socket_ = spares.pop()
        files = [0, 1, 2, *passfds]
        with socket_:
            send(socket_, {"argv": words, "env": dict(os.environ), "cwd": os.getcwd(), "files": files}, files)
        return pid

    multiprocessing.util.spawnv_passfds = hand_over
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = spawn


def become(argv: list[str], env: dict[str, str], cwd: str) -> None:
    """Run the script ``argv[0]`` in this process as a new Python with this environment would."""
    enter(env, cwd)
    libc = ctypes.CDLL(None)
    for name, option in MALLOPT.items():  # glibc has read them when the server started
        if name in env:
            libc.mallopt(option, min(int(env[name]), 2**31 - 1))
    if SPARE in env:
        keep_spare()
    sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
    runpy.run_path(argv[0], run_name="__main__")


def serve(parent: int, listener: socket.socket, modules: Sequence[str]) -> None:
    """Import ``modules`` and fork until ``parent`` ends; in a fork, be what its client asked for."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        return
    gc.disable()
    for name in modules:
        importlib.import_module(name)
    if "ray" in sys.modules:  # a fork would be the worker that the server's environment describes
        return
    gc.collect()
    gc.freeze()  # what is imported stays, and no collection in a fork need look at it
    gc.enable()
    become(**accept_forks(listener))


if __name__ == "__main__":
    from openrlhf_orz.runtime import fork_server as module  # the one that others import, whose spares they find

    module.serve(int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])), sys.argv[4:])
