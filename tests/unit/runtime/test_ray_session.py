"""Which Ray a run joins, and what it asks for. No Ray is started here."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import ray_session
from openrlhf_orz.runtime.ray_session import placement_gpus, rank_env, running_ray, wait_for_gpus
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import RunFacts, changed


def arguments(*flags):
    return parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--orz.device", "cpu", *flags])[0]


@pytest.mark.parametrize(
    "changes, gpus",
    [
        ({}, 4),
        ({"async_enable": True}, 4 + 6),  # colocate_all does not hold there
        ({"colocate_all": False}, 4 + 6 + 3),
        ({"colocate_all": False, "kl": 0.1}, 4 + 6 + 3 + 2),
        ({"colocate_all": False, "kl": 0.1, "colocate_actor_ref": True}, 4 + 6 + 3),
        ({"colocate_all": False, "critic": None}, 4 + 6),
    ],
)
def test_gpus_of_a_placement(changes, gpus):
    args = changed(
        arguments(),
        {
            "actor.num_nodes": 2,
            "actor.num_gpus_per_node": 2,
            "critic.num_gpus_per_node": 3,
            "ref.num_gpus_per_node": 2,
            "vllm.num_engines": 3,
            "vllm.tensor_parallel_size": 2,
            "train.colocate_all": changes.get("colocate_all", True),
            "train.async_enable": changes.get("async_enable", False),
            "train.colocate_actor_ref": changes.get("colocate_actor_ref", False),
            "algo.kl.init_coef": changes.get("kl", 0),
            "critic.model_name_or_path": changes.get("critic", "m"),
        },
    )
    assert placement_gpus(args) == gpus


def note_of(tmp_path, monkeypatch, text):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir(exist_ok=True)
    note = tmp_path / "ray" / "ray_current_cluster"
    note.write_text(text)
    return note


def test_a_ray_that_answers_is_joined(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert running_ray() is None
    note = note_of(tmp_path, monkeypatch, "no address")
    assert running_ray() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        note.write_text(address + "\n")
        assert running_ray() == address
    assert running_ray() is None, "it has ended and left its note"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert running_ray() == "head:6379"


@pytest.mark.parametrize("whose", ["note", "folder"])
def test_somebody_elses_note_is_not_followed(tmp_path, monkeypatch, whose):
    with socket.create_server(("127.0.0.1", 0)) as server:
        note = note_of(tmp_path, monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")
        assert running_ray()
        theirs, lstat, uid = {"note": note, "folder": note.parent}[whose], os.lstat, os.getuid()
        if uid == 0:
            os.chown(theirs, 65534, 65534)
        else:
            changed = SimpleNamespace(st_uid=uid + 1)
            monkeypatch.setattr(os, "lstat", lambda path: changed if path == theirs else lstat(path))
        assert running_ray() is None


def test_somebody_elses_port_is_not_joined(tmp_path, monkeypatch):
    """One's own Ray has ended, and another user's process has its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        note_of(tmp_path, monkeypatch, f"127.0.0.1:{port}")
        assert ray_session.listeners(port) == {os.getuid()}
        with monkeypatch.context() as patch:
            patch.setattr(ray_session, "listeners", lambda port: {os.getuid() + 1})
            assert running_ray() is None
    assert ray_session.listeners(port) == set()


def test_a_restarted_run_waits_for_a_lost_node(monkeypatch):
    clock, gpus = SimpleNamespace(now=0.0), [1, 1, 2, 4]

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(ray_session, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    ray = SimpleNamespace(cluster_resources=lambda: {"GPU": gpus[int(clock.now)]})
    assert wait_for_gpus(ray, 2, 60) == 2 and clock.now == 2
    clock.now = 0.0
    assert wait_for_gpus(ray, 4, 1) == 1 and clock.now == 1
    assert wait_for_gpus(SimpleNamespace(cluster_resources=dict), 1, 0) == 0


def test_variables_that_are_set_win(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    env = rank_env("cpu")
    assert env["MALLOC_ARENA_MAX"] == "7" and env["MALLOC_MMAP_MAX_"] == "0" and rank_env("cuda") == {}
    args = arguments()
    run = RunFacts(checkpoints="", scratch="/dev/shm/orz-1-")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    for name in ("HF_DATASETS_CACHE", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    env = ray_session.worker_env(args, run)
    assert env["NCCL_DEBUG"] == "INFO" and env["VLLM_HOST_IP"] == "127.0.0.1" and env["GLOO_SOCKET_IFNAME"] == "lo"
    assert (
        env["WANDB_DIR"] == args.orz.run_dir and env["HF_DATASETS_CACHE"] == f"{tempfile.gettempdir()}/orz-1-/datasets"
    )
    assert env["OPENRLHF_TRUST_REMOTE_CODE"] == "0" and env["VLLM_RPC_BASE_PATH"] == "/dev/shm/orz-1-ipc"
    # Ray fills in the PATH of each node; ninja is beside this Python
    assert env["PATH"] == f"{os.path.dirname(sys.executable)}:${{PATH}}"
    assert "GLOO_SOCKET_IFNAME" not in ray_session.worker_env(args, dataclasses.replace(run, own_ray=False))
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert "NCCL_SOCKET_IFNAME" not in env
    assert ray_session.worker_env(changed(args, {"orz.device": "cuda"}), run)["NCCL_SOCKET_IFNAME"] == "lo"
    assert "VLLM_BATCH_INVARIANT" not in env
    alike = changed(args, {"orz.device": "cuda", "orz.batch_invariant": True})
    assert ray_session.worker_env(alike, run)["VLLM_BATCH_INVARIANT"] == "1"
    many = changed(args, {"vllm.num_engines": 10**6})
    assert ray_session.worker_env(many, run)["OMP_NUM_THREADS"] == "1" and os.environ["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize("failures, starts", [(0, True), (2, True), (3, False)])
def test_a_slow_start_is_tried_again_and_leaves_nothing(failures, starts, tmp_path):
    left, calls = [], []

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            left.append(subprocess.Popen(["sleep", "600"], executable="/bin/sleep"))
            started = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)", options["_temp_dir"]]
            left.append(subprocess.Popen(started, stdout=subprocess.PIPE))
            left[-1].stdout.readline()  # before, its command line may still be empty
            raise Exception("The current node timed out during startup. This could happen ...")

    try:
        if starts:
            ray_session.start_ray(SimpleNamespace(init=init), _temp_dir=str(tmp_path))
        else:
            with pytest.raises(ConfigError, match="Ray has not started in three tries"):
                ray_session.start_ray(SimpleNamespace(init=init), _temp_dir=str(tmp_path))
        assert len(calls) == min(failures + 1, 3)
        assert all(process.wait(20) < 0 for process in left[1::2]), "what the failed start had started"
        assert all(process.poll() is None for process in left[::2]), "others of this process"
    finally:
        for process in left:
            process.kill()
            process.wait()
    with pytest.raises(ValueError):
        ray_session.start_ray(SimpleNamespace(init=lambda **_: int("another error")), _temp_dir="x")


def test_a_signal_to_the_whole_group_leaves_ray_alone():
    """As ``timeout`` sends it."""
    children, started = [], "import time; print(flush=True); time.sleep(60)"

    def init(**_):
        children.append(subprocess.Popen([sys.executable, "-c", started], stdout=subprocess.PIPE))
        children[-1].stdout.readline()

    try:
        ray_session.start_ray(SimpleNamespace(init=init), _temp_dir="x")
        init()
        for child in children:
            child.terminate()
        assert children[1].wait(20) == -signal.SIGTERM, "started later"
        assert children[0].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_variable_is_gone_for_a_while(monkeypatch):
    for value in ("", "0,1", None):
        monkeypatch.delenv("HIDDEN", raising=False)
        if value is not None:
            monkeypatch.setenv("HIDDEN", value)
        with pytest.raises(ZeroDivisionError), ray_session.without_variable("HIDDEN"):
            assert "HIDDEN" not in os.environ
            raise ZeroDivisionError
        assert os.environ.get("HIDDEN") == value


def test_workers_are_forks_on_a_cpu_with_ray_of_its_own(tmp_path, monkeypatch):
    args, used = arguments(), []
    gpu = changed(args, {"orz.device": "cuda"})

    @contextlib.contextmanager
    def server(folder, env):
        used.append((folder, env, os.path.isdir(folder)))
        yield "python"

    monkeypatch.setattr(ray_session, "fork_server", server)
    monkeypatch.setattr(ray_session, "running_ray", lambda: None)
    scratch = f"{tmp_path}/scratch/"
    with ray_session.warm_workers(args, scratch) as python:
        assert python == "python" and used == [
            (scratch, ray_session.cpu_env(args) | ray_session.datasets_env(scratch), True)
        ]
    assert not os.path.exists(scratch) and used[0][1]["OMP_NUM_THREADS"] and not ray_session.cpu_env(gpu)
    with ray_session.warm_workers(gpu, scratch) as python:
        assert python is None
    monkeypatch.setattr(ray_session, "running_ray", lambda: "127.0.0.1:6379")
    with ray_session.warm_workers(args, scratch) as python:
        assert python is None and len(used) == 1 and not os.path.exists(scratch)
