"""One fault each, on real processes. The two quickest are part of every test run; the others, minutes each, are not:

bash tests/run.sh -m slow tests/e2e/test_faults.py
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import Run, no_traces, shared_memory, wait_for
from runs import read_jsonl
from safetensors.torch import load_file, save_file

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.runtime.processes import ended

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"
STARTED: list[Run] = []


@pytest.fixture(autouse=True)
def no_run_outlives_its_test():
    yield
    while STARTED:
        run = STARTED.pop()
        if run.process.poll() is None:
            run.kill_tree()


def start(tmp_path, *flags, steps=6, model=BASE, **env) -> Run:
    data = tmp_path / "rows.jsonl"
    rows = generate_additions(2 * steps, (3, 3), seed=1)
    data.write_text("".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows))
    run = Run(
        tmp_path / "run", "--actor.model_name_or_path", model, "--data.prompt_dataset", data, "--orz.device", "cpu",
        "--data.max_len", "160", "--rollout.max_new_tokens", "64", "--rollout.batch_size", "2",
        "--rollout.n_samples_per_prompt", "8", "--orz.critic_updates", "3", "--orz.warmup_steps", "0",
        "--ckpt.save_steps", "1", *flags, **env,
    )  # fmt: skip
    STARTED.append(run)
    return run


def complete(run: Run, steps: int = 6) -> list[dict]:
    """The run ends well; every prompt was trained on once. Returns its metrics."""
    assert run.wait(600) == 0, run.output()
    metrics = read_jsonl(run.run_dir / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, steps + 1))
    prompts = [row["prompt"] for row in read_jsonl(run.run_dir / "data" / "prompts_train.jsonl")]
    trained = [row["prompt"] for s in range(1, steps + 1)
               for row in read_jsonl(run.run_dir / "rollouts" / f"step_{s}.jsonl")[::8]]  # fmt: skip
    assert sorted(trained) == sorted(prompts)
    return metrics


@pytest.mark.slow
def test_engines_that_die_and_hang(tmp_path):
    run = start(tmp_path, "--orz.generation_timeout_s", "30", steps=8)
    run.wait_for_step(1)
    (actor,) = run.named("OrzRolloutActor")
    actor.kill()
    run.wait_for_step(4)
    (core,) = run.named("EngineCore")
    assert not run.named("VLLM::Worker")  # on a CPU the engine's core does its work itself
    core.send_signal(signal.SIGSTOP)
    assert complete(run, 8)[-1]["engines_restarted"] >= 2
    assert not core.is_running() or core.status() == "zombie"


@pytest.mark.slow
def test_a_rank_that_dies(tmp_path):
    run = start(tmp_path, "--orz.max_restarts", "1")
    run.wait_for_step(2)
    run.named("OrzCriticModelActor")[0].kill()
    metrics = complete(run)
    assert metrics[-1]["restarts"] == 1
    assert "OrzCriticModelActor" in run.output() and "restart 1 of 1" in run.output()


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("training", 3), ("checkpoint", 2)])
def test_a_rank_that_hangs(tmp_path, phase, step):
    """Checkpoints come every second step: stopped behind the third the rank hangs in training."""
    flag = f"--orz.{phase}_timeout_s"
    run = start(tmp_path, "--orz.max_restarts", "1", flag, "60", "--ckpt.save_steps", "2")
    run.wait_for_step(step)
    (stopped,) = run.named("OrzPolicyModelActor")
    stopped.send_signal(signal.SIGSTOP)
    assert complete(run)[-1]["restarts"] == 1
    assert ended(stopped), "it must not keep its memory from the run that goes on"
    (report,) = (run.run_dir / "logs").glob(f"hang-{phase}-*.txt")
    assert "OrzPolicyModelActor" in report.read_text() and "OrzPPOTrainer" in report.read_text()
    assert flag in run.output()


def test_the_trainer_dies_and_no_restart_is_allowed(tmp_path):
    run = start(tmp_path)
    run.wait_for_step(1)
    begin = time.monotonic()
    run.named("OrzPPOTrainer")[0].kill()
    assert run.wait(90) == 1 and time.monotonic() - begin < 90
    assert "OrzPPOTrainer" in run.output() and "error: training failed" in run.output()


@pytest.mark.slow
def test_the_trainer_hangs(tmp_path):
    """Its own time-outs are stopped with it: the driver has to notice."""
    run = start(tmp_path, "--orz.max_restarts", "1", "--orz.trainer_timeout_s", "20")
    run.wait_for_step(2)
    (stopped,) = run.named("OrzPPOTrainer")
    stopped.send_signal(signal.SIGSTOP)
    assert complete(run)[-1]["restarts"] == 1
    assert ended(stopped) and not (run.run_dir / ".alive").exists()
    (report,) = (run.run_dir / "logs").glob("hang-trainer-*.txt")
    assert "OrzPPOTrainer" in report.read_text() and "--orz.trainer_timeout_s" in run.output()


@pytest.mark.slow
def test_values_that_are_not_finite(tmp_path):
    """A critic whose head is NaN: every step is left out, and the run ends naming why, with the batches kept."""
    import shutil

    critic = tmp_path / "critic"
    shutil.copytree(BASE, critic)
    weights = load_file(critic / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, critic / "model.safetensors", metadata={"format": "pt"})
    run = start(tmp_path, "--critic.model_name_or_path", critic, "--orz.max_skipped_steps", "2")
    assert run.wait(300) == 1, run.output()
    assert "not finite" in run.output() and "--orz.max_skipped_steps" in run.output()
    dumps = list((run.run_dir / "nonfinite").glob("critic_*.safetensors"))
    assert dumps and any(t.isnan().any() for t in load_file(dumps[0]).values())


@pytest.mark.slow
def test_a_full_disk_and_logs_that_cannot_be_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "rollouts").write_text("not a directory")
        run = start(tmp_path, "--ckpt.path", disk / "checkpoints", "--ckpt.max_num", "10")
        assert run.wait(300) == 0, run.output()
        last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
        assert last["step"] == 6 and last["checkpoints_failed"] >= 1 and last["writes_failed"] >= 1
        assert "is kept" in (tmp_path / "run" / "warnings.log").read_text()
        (tmp_path / "run" / "rollouts").unlink()
        from openrlhf_orz.runtime import checkpoints

        assert checkpoints.newest_valid(disk / "checkpoints")[0] is not None
        assert not list((disk / "checkpoints").glob(".partial-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_signal_stops_at_once(tmp_path):
    run = start(tmp_path, steps=50)
    run.wait_for_step(1)
    family, memory, folders = run.family(), shared_memory(run.family()), run.folders()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 128 + signal.SIGINT, run.output()
    no_traces(family, memory, folders)


@pytest.mark.slow
def test_what_a_killed_run_leaves_is_cleared_by_the_next(tmp_path):
    (tmp_path / "first").mkdir()
    run = start(tmp_path / "first", steps=50)
    run.wait_for_step(1)
    memory, left = shared_memory(run.family()), run.folders()
    run.kill_tree()
    assert left  # what is in shared memory has no name any more where vLLM is one process, as on a CPU
    (tmp_path / "second").mkdir()
    complete(start(tmp_path / "second", steps=2), 2)
    assert not any(map(os.path.exists, left))
    segments = {name for name in memory if os.path.basename(name).startswith("psm_")}
    assert wait_for(lambda: not any(map(os.path.exists, segments)), 5)


@pytest.mark.slow
def test_a_node_that_is_lost(tmp_path, monkeypatch):
    """Everything with a GPU is on a second Ray node (of this machine), which dies; another comes in its place."""
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # empty, Ray would refuse GPUs, logical ones too
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    try:
        node = cluster.add_node(num_cpus=8, num_gpus=1)
        run = start(tmp_path, "--orz.max_restarts", "1", RAY_ADDRESS=cluster.address)
        assert wait_for(lambda: run.steps() >= 2 or run.process.poll() is not None, 300)
        cluster.remove_node(node, allow_graceful=False)
        assert wait_for(lambda: "restart 1 of 1" in run.output(), 120), run.output()
        cluster.add_node(num_cpus=8, num_gpus=1)
        assert complete(run)[-1]["restarts"] == 1
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_asynchronous_training_is_stopped_and_resumed(tmp_path):
    """Generation and training overlap: what was under way is drawn again, every step is there once."""
    flags = ("--train.async_enable", "--orz.policy_updates", "1", "--vllm.num_engines", "1")
    run = start(tmp_path, *flags)
    run.wait_for_step(2)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM, run.output()
    resumed = start(tmp_path, *flags, "--ckpt.load_enable")
    complete(resumed)
    assert "resuming from" in resumed.output()
