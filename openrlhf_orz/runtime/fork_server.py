"""Ray workers that start with everything imported, on a CPU.

The imports of a run (torch, DeepSpeed, vLLM, transformers) take each of its processes 14 to 19 s of a core. Where the
cores are few, one process, the server, imports them once, and a worker is a fork of it. Ray starts what its runtime
environment names as ``py_executable``. That is this file run as a script, the client: it hands its arguments,
environment and standard streams to the server and ends; the fork runs Ray's own ``default_worker.py`` with them. A
client that finds no server becomes an ordinary Python, which takes longer and does the same.
"""

# ruff: noqa: E402  the client imports little: it shall start in hundredths of a second
import json
import os
import signal
import socket
import struct
import sys

CHUNK = 65536  # bytes
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


# ---- the client


def ask_for_fork(path: str, argv: list[str]) -> bool:
    """Whether the server at ``path`` has forked a process that runs the script ``argv[0]`` in this one's place."""
    message = json.dumps({"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            socket.send_fds(server, [struct.pack("!I", len(message))], [0, 1, 2])
            server.sendall(message)
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
import gc
import importlib
import runpy
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from openrlhf_orz.runtime.stopping import STOP_SIGNALS, signals_blocked

MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_MAX_": -4, "MALLOC_ARENA_MAX": -8}  # as in glibc's malloc.h
PR_SET_PDEATHSIG = 1
# Ray finds where a process has its title by the first variable, which must be as at the start.
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
            head, streams, _, _ = socket.recv_fds(client, 4, 3)
            (length,) = struct.unpack("!I", head)
            message = bytearray()
            while len(message) < length:
                part = client.recv(min(CHUNK, length - len(message)))
                if not part:
                    os._exit(1)  # the client has died
                message += part
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            client.sendall(b"1")
            return json.loads(message)


def become(argv: list[str], env: dict[str, str], cwd: str) -> None:
    """Run the script ``argv[0]`` in this process as a new Python with this environment would."""
    for name in os.environ.keys() - env.keys() - {FIRST}:
        del os.environ[name]
    os.environ.update(env)
    os.chdir(cwd)
    libc = ctypes.CDLL(None)
    for name, option in MALLOPT.items():  # glibc has read them when the server started
        if name in env:
            libc.mallopt(option, min(int(env[name]), 2**31 - 1))
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
    serve(int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])), sys.argv[4:])
