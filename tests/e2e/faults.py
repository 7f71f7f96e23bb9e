"""Runs that are disturbed, and what they leave behind."""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from runs import ENV

from openrlhf_orz.runtime.processes import shared_memory as mapped


def wait_for(condition, timeout: float) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """Files in shared memory that these processes have mapped or open; others on the machine have theirs."""
    found = set()
    for process in processes:
        found |= mapped(process.pid)
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:  # it ended meanwhile
            continue
        found |= {link for link in links if link.startswith("/dev/shm/")}
    return {name for name in found if os.path.exists(name)}


def listening(process: psutil.Process) -> list[tuple]:
    """(address, port, command) of each socket on which the process listens."""
    try:
        # an UDP socket without a peer takes from everybody
        return [(*c.laddr, " ".join(process.cmdline())[:200]) for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN or (c.type == socket.SOCK_DGRAM and not c.raddr)]  # fmt: skip
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def of_run(mark: str, session: int) -> set[psutil.Process]:
    """The processes of a session, and all with ``mark`` (NAME=VALUE) in their environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark.encode() in environment or os.getsid(process.pid) == session:
                found.add(process)
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


class Run:
    """The training command in a process group of its own; what it prints goes to a file.

    ``env``: variables beside ENV; None takes one out.
    """

    def __init__(self, run_dir: Path, *flags, **env):
        self.run_dir = Path(run_dir)
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = self.run_dir.with_name(f"{self.run_dir.name}-{time.monotonic_ns()}.log")
        self.mark = f"ORZ_TEST_RUN={run_dir}"
        env = {key: value for key, value in (ENV | env).items() if value is not None}
        env |= dict([self.mark.split("=", 1)])
        command = [sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray", "--ckpt.output_dir", run_dir, *flags]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def output(self) -> str:
        return self.log.read_text() + "".join(
            f"\n== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.run_dir.glob("logs/*.err")
        )

    def wait(self, timeout: float) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"not over after {timeout} s:\n{self.output()}") from None

    def steps(self) -> int:
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def folders(self) -> list[str]:
        """The private folders of the run: those whose locks its driver holds."""
        found = [os.readlink(link) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        return [os.path.dirname(path) for path in found if path.endswith("/.lock") and "/orz-" in path]

    def started(self) -> bool:
        return (self.run_dir / ".training").exists()

    def wait_for_step(self, step: int, timeout: float = 300) -> None:
        """Until the trainer of this process is at work and ``step`` is in metrics.jsonl."""
        reached = wait_for(
            lambda: (self.started() and self.steps() >= step) or self.process.poll() is not None, timeout
        )
        assert reached and self.process.poll() is None, self.output()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, text: str) -> list[psutil.Process]:
        """Processes of the run with ``text`` in their command line."""
        found = []
        for process in self.family():
            try:
                if text in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                pass
        return found

    def kill_engine(self) -> None:
        """SIGKILL to an engine's actor, and so to its vLLM."""
        self.named("OrzRolloutActor")[0].kill()

    def kill_tree(self) -> None:
        """SIGKILL to the command and everything below it, at once."""
        family = self.family() if self.process.poll() is None else []
        for process in [self.process, *family]:
            try:
                process.send_signal(signal.SIGKILL)
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        self.process.wait()
        psutil.wait_procs(family, timeout=20)


def no_traces(family: list[psutil.Process], memory: set[str], folders: list[str]) -> None:
    """Of a run that has ended: no process, no shared memory, no temporary file."""
    assert wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), 30), [
        p for p in family if p.is_running()]  # fmt: skip
    assert folders and not any(map(os.path.exists, folders))
    assert wait_for(lambda: not any(map(os.path.exists, memory)), 30), memory


# ---- another user of the machine

SPEAK_TO_RAY = """
import os, sys
os.environ |= dict(word.split("=") for word in sys.argv[2:])
from ray._raylet import GcsClient
try:
    print("read", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"fun", timeout=10))
except Exception as error:
    print(type(error).__name__, error)
"""
ENTER = """
import os, sys
def plant(path):
    open(path + "/engine-1.json", "w")
for path in sys.argv[1:]:
    for act in (os.listdir, os.rmdir, plant):
        try:
            act(path)
        except PermissionError:
            continue
        print("entered", path)
"""


NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


def can_be_nobody() -> bool:
    """Whether this user may start Python as another one."""
    try:
        return subprocess.run([sys.executable, "-c", ""], cwd="/", **NOBODY).returncode == 0
    except PermissionError:
        return False


def as_nobody(script: str, *words: str) -> subprocess.Popen:
    """A script that runs as another user where that can be, else as this user without its secrets."""
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "RAY_gcs_rpc_server_connect_timeout_s": "10"}
    user = NOBODY if can_be_nobody() else {}
    command = [sys.executable, "-c", script, *words]
    return subprocess.Popen(command, cwd="/", env=env, stdout=subprocess.PIPE, text=True, **user)


def speak_to_ray(run: Run) -> subprocess.Popen:
    """Begin to speak to a run's Ray without its token; `unanswered` says whether it was refused.

    A client that is refused tries for longer than a step takes, so it begins while the run loads its models.
    """
    assert wait_for(lambda: run.named("gcs_server") or run.process.poll() is not None, 120)
    (gcs,) = run.named("gcs_server")
    port = next(word.split("=")[1] for word in gcs.cmdline() if word.startswith("--gcs_server_port="))
    env = gcs.environ()
    assert env["RAY_AUTH_MODE"] == "token" and len(env["RAY_AUTH_TOKEN"]) == 64
    return as_nobody(SPEAK_TO_RAY, f"127.0.0.1:{port}")


def unanswered(client: subprocess.Popen) -> bool:
    """Whether a client that has tried to speak to a run's Ray has read nothing."""
    try:
        answer = client.communicate(timeout=1)[0]
    except subprocess.TimeoutExpired:  # a client that is refused may try again and again
        client.kill()
        answer = client.communicate()[0]
    return not answer.startswith("read")


def attack(run: Run) -> None:
    """Do what another local user can do to a run's files: plant and read them."""
    folders = run.folders()
    assert {os.path.dirname(folder) for folder in folders} == {"/dev/shm", "/tmp"}
    assert {os.stat(folder).st_mode & 0o777 for folder in folders} == {0o700}
    if can_be_nobody():
        assert as_nobody(ENTER, *folders).communicate(timeout=40)[0] == ""
    everything = {path for process in run.family() for path in open_files(process)}
    outside = {path for path in everything if path.startswith(("/dev/shm/", "/tmp/"))}
    mine = (*folders, str(run.run_dir), "/dev/shm/psm_", "/tmp/torchinductor_")
    assert not [path for path in outside if not path.startswith(mine)], outside
    segments = [path for path in outside if path.startswith("/dev/shm/psm_")]
    assert not [path for path in segments if os.stat(path).st_mode & 0o077]


def open_files(process: psutil.Process) -> set[str]:
    """Files and sockets with a name that a process has open."""
    try:
        files = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        sockets = {c.laddr for c in process.net_connections("unix") if isinstance(c.laddr, str)}
    except (OSError, psutil.Error):
        return set()
    return {path for path in files | sockets if path.startswith("/") and os.path.exists(path)}
