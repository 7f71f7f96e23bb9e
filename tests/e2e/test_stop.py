"""A run that is stopped or fails ends with a message, and leaves no process and no shared memory behind."""

import glob
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import ENV, train, write_sums
from tiny_models import write_model

pytestmark = pytest.mark.e2e


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """Files in shared memory that these processes have mapped or open; others on the machine have theirs."""
    found = set()
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/maps").read_text()
            found |= {word for word in text.split() if word.startswith("/dev/shm/")}
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            found |= {link for link in links if link.startswith("/dev/shm/")}
        except OSError:  # it ended meanwhile
            continue
    return found


def wait_for(condition, timeout: float) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.5)
    return False


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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_by_a_signal(tmp_path, signum):
    model, data, run = write_model(tmp_path / "model"), write_sums(tmp_path / "rows.jsonl", 100), tmp_path / "run"
    command = [
        sys.executable, "-m", "openrlhf_orz.cli.train_ppo_ray", "--actor.model_name_or_path", model,
        "--data.prompt_dataset", data, "--ckpt.output_dir", run, "--orz.device", "cpu", "--data.max_len", "1024",
        "--rollout.max_new_tokens", "16", "--rollout.batch_size", "2", "--rollout.n_samples_per_prompt", "4",
        "--orz.critic_updates", "2", "--train.num_episodes", "1000",
    ]  # fmt: skip
    mark = f"ORZ_TEST_RUN={tmp_path}"
    env = ENV | dict([mark.split("=", 1)])
    process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        metrics = run / "metrics.jsonl"
        assert wait_for(lambda: metrics.exists() or process.poll() is not None, 300) and metrics.exists()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 5
        everyone = {*family, *of_run(mark, process.pid)}  # also whoever has left the family
        sockets = [line for member in everyone for line in listening(member)]
        assert sockets, "the sockets of Ray, at least, are seen"
        assert not [line for line in sockets if not is_loopback(line[0])], "nothing may listen beyond loopback"
        assert not [line for line in sockets if "tensorboard" in line[2]]
        memory = shared_memory(family)
        assert memory
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signum, output
    assert wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in family), 30), [
        child for child in family if child.is_running()]  # fmt: skip
    own = f"/dev/shm/orz-{process.pid}-*"
    assert wait_for(lambda: not any(map(os.path.exists, memory)) and not glob.glob(own), 30), memory


def test_a_model_that_cannot_be_loaded(tmp_path):
    model = write_model(tmp_path / "model")
    data = (model / "model.safetensors").read_bytes()
    # what the check of headers before Ray does not see: a tensor's size is not that of its numbers
    (model / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"F16"', 1))
    run = tmp_path / "run"
    result = train(run, model, write_sums(tmp_path / "rows.jsonl", 4), timeout=300)
    assert result.returncode == 1, result.stderr
    assert f"error: training failed; all logs: {run / 'logs'}" in result.stderr
    assert "safetensor" in result.stderr.lower() or "header" in result.stderr.lower()
