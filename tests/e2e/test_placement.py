"""Two nodes of two logical GPUs each, simulated by Ray on this machine: where the ranks go, and a run across them.

The run takes minutes (16 processes), so it is run by name:  bash tests/run.sh -m slow tests/e2e/test_placement.py
"""

import json
import tempfile
from pathlib import Path

import pytest
from faults import Run
from runs import read_jsonl

from openrlhf_orz.data.arithmetic import generate_additions

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"
NODES = GPUS = 2


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # empty, Ray would refuse GPUs, logical ones too
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else Ray's workers run behind everything else, at nice 15
    # Ray notes a running cluster there, for others to join; short, as names of sockets lie below it
    scratch = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    monkeypatch.setenv("RAY_TMPDIR", scratch.name)

    node = {"num_cpus": 8, "num_gpus": GPUS}
    found = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    for _ in range(NODES - 1):
        found.add_node(**node)
    yield found
    import ray

    ray.shutdown()
    found.shutdown()
    scratch.cleanup()


def test_ranks_of_all_models_lie_on_both_nodes(cluster):
    """OpenRLHF's own groups on its own placement: two models share four GPUs on two nodes, rank by rank."""
    import ray
    from openrlhf.trainer.ray.launcher import RayActorGroup
    from ray.util.placement_group import placement_group

    class Rank:
        def __init__(self, world_size, rank, address, port):
            self.rank = rank

        def get_master_addr_port(self):
            return "127.0.0.1", 1

        def where(self):
            import ray

            return self.rank, ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    ray.init(address=cluster.address, log_to_driver=False)
    bundles = [{"GPU": 1, "CPU": 1}] * (NODES * GPUS)
    group = placement_group(bundles, strategy="PACK")
    ray.get(group.ready(), timeout=60)
    models = [RayActorGroup(NODES, GPUS, Rank, pg=group, num_gpus_per_actor=0.2) for _ in range(2)]
    policy, critic = (ray.get(model.async_run_method("where"), timeout=120) for model in models)
    assert [rank for rank, _, _ in policy] == [0, 1, 2, 3]
    nodes = [node for _, node, _ in policy]
    assert len(set(nodes)) == NODES and all(nodes.count(node) == GPUS for node in nodes)
    assert policy == critic  # the ranks of one number are neighbours on one GPU
    assert len({(node, *gpus) for _, node, gpus in policy}) == NODES * GPUS


def places(address: str) -> dict[str, list[str]]:
    """Node of each actor of the first job on the cluster, by class; also of those that have ended."""
    import ray
    from ray._private.state import actors

    ray.init(address=address, log_to_driver=False)
    found: dict[str, list[str]] = {}
    of_first_job = [actor for actor in actors().values() if actor["JobID"] == "01000000"]
    for actor in of_first_job:
        found.setdefault(actor["ActorClassName"].rpartition(".")[2], []).append(actor["Address"]["NodeID"])
    return found


@pytest.mark.slow
def test_a_run_across_two_nodes_is_the_planned_one(cluster, tmp_path, capsys):
    from openrlhf_orz.cli import plan

    data = tmp_path / "rows.jsonl"
    rows = generate_additions(5, (3, 3), seed=1)
    data.write_text("".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows))
    flags = [
        "--actor.model_name_or_path", BASE, "--data.prompt_dataset", data, "--orz.device", "cpu",
        "--actor.num_nodes", NODES, "--actor.num_gpus_per_node", GPUS, "--critic.num_nodes", NODES,
        "--critic.num_gpus_per_node", GPUS, "--data.max_len", "160", "--rollout.max_new_tokens", "64",
        "--rollout.batch_size", "5", "--rollout.n_samples_per_prompt", "6", "--orz.critic_updates", "3",
        "--orz.warmup_steps", "0", "--orz.cpu_kvcache_mib", "64",
    ]  # fmt: skip
    assert plan.main([*map(str, flags), "--hardware", "cpux2x2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["gpus"] == NODES * GPUS

    run = Run(tmp_path / "run", *flags, RAY_ADDRESS=cluster.address)
    try:
        assert run.wait(1500) == 0, run.output()
    finally:
        run.kill_tree()
    (step,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    batches = planned["batches"]
    assert step["samples_per_rank_max"] == batches["samples_per_rank"] == 8
    assert step["samples_per_rank_min"] == batches["smallest_per_rank"] == 7
    assert step["policy_updates"] == batches["policy_updates"] == 1
    assert step["critic_updates"] == batches["critic_updates"] == 3

    where = places(cluster.address)
    for name in ("OrzPolicyModelActor", "OrzCriticModelActor", "OrzRolloutActor"):
        nodes = where[name]
        assert len(nodes) == NODES * GPUS and len(set(nodes)) == NODES, (name, nodes)
        assert all(nodes.count(node) == GPUS for node in nodes), (name, nodes)
