"""Which Ray a run joins, and what it asks for. No Ray is started here."""

import dataclasses
import os
import socket
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime import ray_session
from openrlhf_orz.runtime.ray_session import placement_gpus, running_ray, trainer_env, wait_for_gpus
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


def test_a_ray_that_answers_is_joined(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert running_ray() is None
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.write_text("no address")
    assert running_ray() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        note.write_text(address + "\n")
        assert running_ray() == address
    assert running_ray() is None, "it has ended and left its note"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert running_ray() == "head:6379"


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
    env = trainer_env("cpu")
    assert env["MALLOC_ARENA_MAX"] == "7" and env["MALLOC_MMAP_MAX_"] == "0" and trainer_env("cuda") == {}
    args = arguments()
    run = RunFacts(checkpoints="", scratch="/dev/shm/orz-1-")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    env = ray_session.worker_env(args, run)
    assert env["NCCL_DEBUG"] == "INFO" and env["VLLM_HOST_IP"] == "127.0.0.1" and env["GLOO_SOCKET_IFNAME"] == "lo"
    assert env["OPENRLHF_TRUST_REMOTE_CODE"] == "0" and env["VLLM_RPC_BASE_PATH"] == "/dev/shm/orz-1-ipc"
    assert "GLOO_SOCKET_IFNAME" not in ray_session.worker_env(args, dataclasses.replace(run, own_ray=False))
    many = changed(args, {"vllm.num_engines": 10**6})
    assert ray_session.worker_env(many, run)["OMP_NUM_THREADS"] == "1" and os.environ["NCCL_DEBUG"] == "INFO"
