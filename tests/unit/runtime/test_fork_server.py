"""Ray's workers as forks of a process that has imported everything; here without Ray, and with one small module."""

import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time

import psutil
import pytest

from openrlhf_orz.runtime.fork_server import FIRST, SPARE, fork_server

SCRIPT = """
import ctypes, json, os, signal, subprocess, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(c, ctypes.c_size_t) for c in "abcdefghij"]})
mapped = libc.mallinfo2().d  # hblks: blocks that have a mapping of their own
libc.malloc(ctypes.c_size_t(2**26))
report = {
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "env": dict(os.environ), "name": __name__,
    "imported": "colorsys" in sys.modules,
    "threads": vars(sys.modules.get("reader", sys)).get("THREADS"), "false": subprocess.run(["false"]).returncode,
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "line": sys.stdin.readline(), "pid": os.getpid(),
    "mapped": libc.mallinfo2().d - mapped, "first": open("/proc/self/environ").read(20),
}
print(json.dumps(report), flush=True)
print("an error", file=sys.stderr)
"""

SPAWNS = """
import json, multiprocessing, os, setproctitle, signal, sys, time
from openrlhf_orz.runtime.fork_server import spawned_in_spare

def child(pipe, word):
    print("to the same place", flush=True)
    seen = {"imported": "colorsys" in sys.modules, "parent": os.getppid(), "word": word, "now": os.environ["NOW"],
            "cwd": os.getcwd(), "argv": sys.argv,  "name": multiprocessing.current_process().name}
    setproctitle.setproctitle("a title")
    seen["title"] = open("/proc/self/cmdline").read(7)
    pipe.send(seen)
    if word == "long":
        time.sleep(600)
    sys.exit(3)

def main():
    context = multiprocessing.get_context("spawn")
    os.environ["NOW"] = "set after the fork"
    os.chdir(sys.argv[1])
    log = os.open("log", os.O_CREAT | os.O_RDWR)
    os.dup2(log, 1)  # as Ray moves a worker's output into its log
    found = []
    with spawned_in_spare():
        for word in sys.argv[2:]:
            ours, its = context.Pipe()
            process = context.Process(target=child, args=(its, word), name="the child")
            process.start()
            found.append(ours.recv() | {"pid": process.pid})
            if word == "long":
                os.write(2, json.dumps(found).encode() + b"\\n")
                os.kill(os.getpid(), signal.SIGKILL)
            process.join()
            found[-1]["status"] = process.exitcode
    os.write(2, json.dumps({"pid": os.getpid(), "found": found}).encode())

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("scripts") / "worker.py"
    path.write_text(SCRIPT)
    return path


def ask(executable, script, cwd, **env):
    command = [*shlex.split(executable), str(script), "--flag", "a b"]
    # the pipe ends when the fork ends, which the client does not wait for
    run = subprocess.run(command, cwd=cwd, env=env, input="hello\n", capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stderr == "an error\n"
    return json.loads(run.stdout)


def the_server() -> psutil.Process:
    """Among the children of pytest, which may have others: multiprocessing's of an earlier test."""
    (found,) = (child for child in psutil.Process().children() if "runtime.fork_server" in " ".join(child.cmdline()))
    return found


def test_a_fork_is_as_a_python_of_its_own_that_has_the_modules(tmp_path, script, monkeypatch):
    monkeypatch.setenv("OF_THE_SERVER", "1")
    (tmp_path / "reader.py").write_text("import os; THREADS = os.environ['THREADS']")
    env = {"THREADS": "7", "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with fork_server(str(tmp_path), env, ["colorsys", "reader"]) as executable:
        seen = ask(executable, script, tmp_path, LC_CTYPE="C.UTF-8", PATH=os.environ["PATH"])
        again = ask(executable, script, tmp_path, MALLOC_MMAP_MAX_="0", PATH=os.environ["PATH"])
        server = the_server()
        end = time.monotonic() + 20
        while server.children() and time.monotonic() < end:
            time.sleep(0.05)
        assert not server.children(), "forks that have ended are no zombies"
    assert not psutil.pid_exists(server.pid)
    assert seen["argv"] == [str(script), "--flag", "a b"] and seen["path"] == str(script.parent)
    assert (seen["cwd"], seen["name"], seen["line"]) == (str(tmp_path), "__main__", "hello\n")
    assert seen["imported"] and seen["threads"] == "7" and seen["pid"] != again["pid"]
    assert seen["env"] == {FIRST: "1", "LC_CTYPE": "C.UTF-8", "PATH": os.environ["PATH"]}
    assert seen["first"].startswith(f"{FIRST}=1"), "where Ray looks for the process's title"
    assert seen["false"] == 1, "a fork waits for children of its own"
    assert seen["blocked"] == [signal.SIGINT, signal.SIGTERM]
    assert seen["mapped"] == 1 and again["mapped"] == 0, "MALLOC_MMAP_MAX_=0: big blocks come from the heap"


def test_a_client_that_dies_leaves_no_fork(tmp_path, script):
    with fork_server(str(tmp_path), {}, ["colorsys"]) as executable:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "fork"))
        socket.send_fds(client, [struct.pack("!I", 1000)], [0, 1, 2])
        client.sendall(b"{")
        server = the_server()
        end = time.monotonic() + 20
        while not server.children() and time.monotonic() < end:
            time.sleep(0.05)
        assert server.children(), "it waits for the rest"
        client.close()
        while server.children() and time.monotonic() < end:
            time.sleep(0.05)
        assert not server.children()
        assert ask(executable, script, tmp_path, PATH=os.environ["PATH"])["imported"], "others are served"


def test_a_spare_fork_is_what_multiprocessing_spawns(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    root = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    with fork_server(str(tmp_path), root, ["colorsys"]) as executable:
        command = [*shlex.split(executable), str(script), str(tmp_path)]
        run = subprocess.run([*command, "one", "two"], env=root | {SPARE: "1"}, capture_output=True, timeout=120)
        told = json.loads(run.stderr)
        one, two = told["found"]
        assert one["imported"] and not two["imported"], "the second is spawned as ever"
        for seen, word in ((one, "one"), (two, "two")):
            assert (seen["parent"], seen["word"], seen["status"], seen["name"]) == (told["pid"], word, 3, "the child")
            assert seen["title"] == "a title", "as vLLM names its process"
            assert (seen["now"], seen["cwd"]) == ("set after the fork", str(tmp_path))
            assert seen["argv"] == [str(script), str(tmp_path), "one", "two"]
        assert (tmp_path / "log").read_text() == "to the same place\n" * 2
        run = subprocess.run([*command, "long"], env=root | {SPARE: "1"}, capture_output=True, timeout=120)
        (left,) = json.loads(run.stderr)
        end = time.monotonic() + 20
        while psutil.pid_exists(left["pid"]) and time.monotonic() < end:
            time.sleep(0.05)
        assert left["imported"] and not psutil.pid_exists(left["pid"]), "it ends with its parent"
        run = subprocess.run([*command, "one"], env=root, capture_output=True, timeout=120)
        assert not json.loads(run.stderr)["found"][0]["imported"], "nobody has asked for a spare one"
        assert not the_server().children()


def test_without_a_server_the_client_is_an_ordinary_python(tmp_path, script):
    with fork_server(str(tmp_path), {}, ["colorsys"]) as executable:
        server = the_server()
        server.kill()
        server.wait()
        seen = ask(executable, script, tmp_path, PATH=os.environ["PATH"], MALLOC_MMAP_MAX_="0")
    assert seen["argv"] == [str(script), "--flag", "a b"] and not seen["imported"] and seen["mapped"] == 0


def test_a_server_that_has_imported_ray_forks_nothing(tmp_path, script):
    (tmp_path / "ray.py").touch()
    source = (
        "import sys; sys.path.insert(0, sys.argv[1]); from openrlhf_orz.runtime.fork_server import serve;"
        "import os, socket; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1] + '/s'); s.listen();"
        "serve(os.getppid(), s, ['ray'])"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=True, timeout=60)


def test_the_server_ends_with_its_parent(tmp_path):
    source = (
        "import os, psutil, sys; from openrlhf_orz.runtime.fork_server import fork_server\n"
        "with fork_server(sys.argv[1], {}, ['colorsys']):\n"
        "    print(psutil.Process().children()[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", source, str(tmp_path)], timeout=60, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL
    end = time.monotonic() + 20
    while psutil.pid_exists(int(run.stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(run.stdout))
