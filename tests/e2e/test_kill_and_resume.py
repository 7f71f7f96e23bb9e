"""A run that is killed and resumed, its engine killed on the way, equals the undisturbed run; and it stops well."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from faults import Run, attack, is_loopback, listening, no_traces, of_run, shared_memory, speak_to_ray, unanswered
from runs import read_jsonl
from safetensors.torch import load_file

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.runtime import checkpoints

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"
STEPS = 6
# what a machine's speed decides; and the rounding of vLLM, which depends on what is computed beside a response
OF_TIME = (
    "seconds", "memory", "time", "tokens_per_second", "grade_ms", "engines_restarted", "prompts_redone", "restarts",
    "logprob_gap",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = generate_additions(2 * STEPS, (3, 3), seed=1)
    path.write_text("".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows))
    return path


def flags(data):
    return (
        "--actor.model_name_or_path", BASE, "--data.prompt_dataset", data, "--orz.device", "cpu",
        "--data.max_len", "160", "--rollout.max_new_tokens", "64", "--rollout.batch_size", "2",
        "--rollout.n_samples_per_prompt", "8", "--orz.critic_updates", "3", "--orz.warmup_steps", "0",
        "--actor.adam.lr", "1e-4", "--train.full_determinism_enable", "--ckpt.save_steps", "1",
        "--ds.param_dtype", "fp32",  # in bfloat16 a value's third digit depends on what is packed with it
    )  # fmt: skip


def rollouts(run_dir, steps):
    rows = [read_jsonl(run_dir / "rollouts" / f"step_{step}.jsonl") for step in range(1, steps + 1)]
    return [[{k: row[k] for k in ("prompt", "response", "reward", "verdict")} for row in step] for step in rows]


def same(ours: list[dict], theirs: list[dict], near_zero: float = 1e-7) -> None:
    assert [m["step"] for m in ours] == [m["step"] for m in theirs] == list(range(1, len(ours) + 1))
    for a, b in zip(ours, theirs):
        for key in a:
            if not key.startswith(OF_TIME) and "_mib" not in key:
                found, expected = a[key], b.get(key)
                close = found == expected or abs(found - expected) <= near_zero + 1e-5 * abs(expected)
                assert close, (a["step"], key, found, expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run", *flags(data))
    assert run.wait(600) == 0, run.output()
    return run


def test_a_replay_trains_as_the_run_did(undisturbed, data, tmp_path):
    """On the same rollouts from the same weights: the same losses and the same policy, without an engine."""
    run = Run(tmp_path / "run", *flags(data), "--orz.replay", undisturbed.run_dir, "--orz.rollout_dump_every", "0")
    assert run.wait(300) == 0, run.output()
    assert "NOT on-policy" in run.output() and "is ready" not in run.output(), "an engine says that it is"
    metrics, whole = (read_jsonl(path / "metrics.jsonl") for path in (run.run_dir, undisturbed.run_dir))
    assert [m["replayed"] for m in metrics] == [1] * STEPS and "replayed" not in whole[0]
    for ours, theirs in zip(metrics, whole, strict=True):
        for key in ("reward", "response_length", "critic_loss", "actor_grad_norm", "value_mean", "verdict_right"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-7), (ours["step"], key)
    policy, other = (load_file(path / "hf" / "model.safetensors") for path in (run.run_dir, undisturbed.run_dir))
    assert all(torch.equal(policy[name], other[name]) for name in other)


def test_a_critic_that_works_beside_generation_learns_alike(undisturbed, data, tmp_path):
    """Its training lasts into the next rollout, and values are taken of what is there: the run is the same."""
    more = ["--orz.critic_beside", "always", "--ckpt.save_steps", "4", "--rollout.max_tokens_per_gpu", "256"]
    run = Run(tmp_path / "run", *flags(data), *more)
    assert run.wait(600) == 0, run.output()
    metrics, whole = (read_jsonl(path / "metrics.jsonl") for path in (run.run_dir, undisturbed.run_dir))
    assert [m.pop("values_early") for m in metrics] == [1] * STEPS and "values_early" not in whole[0]
    assert all(m["critic_updates"] == 3 and m["seconds_critic_wait"] >= 0 for m in metrics)
    assert rollouts(run.run_dir, STEPS) == rollouts(undisturbed.run_dir, STEPS)
    same(metrics, whole, 1e-6)  # values are rounded otherwise, and the loss is a mean around 0
    checkpoints.verify(run.run_dir / "checkpoints" / "global_step4")


def test_killed_resumed_and_stopped(undisturbed, data, tmp_path):
    run_dir = tmp_path / "run"
    # more steps than the undisturbed run has: what is looked at below takes longer than two of them on a busy machine
    longer = [*flags(data), "--train.num_episodes", "8"]
    # an engine is killed while it generates, then everything at once
    run = Run(run_dir, *longer)
    run.wait_for_step(1)
    run.kill_engine()
    run.wait_for_step(3)
    left = run.folders()
    for name in ("OrzRolloutActor", "OrzPolicyModelActor", "OrzCriticModelActor", "OrzPPOTrainer"):
        assert "openrlhf_orz.runtime.fork_server" in run.named(name)[0].parent().cmdline(), "nothing is imported twice"
    assert len(left) == 2 and all(map(os.path.isdir, left))
    run.kill_tree()

    # the newest checkpoint is damaged: the one before it is taken, and the steps since are made again
    saved = sorted((run_dir / "checkpoints").glob("global_step*"), key=lambda path: int(path.name[11:]))
    victim = next(saved[-1].glob("_actor/**/*model_states.pt"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    run = Run(run_dir, *longer, "--ckpt.load_enable")
    stranger = speak_to_ray(run)
    run.wait_for_step(STEPS - 2)
    assert f"{saved[-1]} is damaged" in run.output() and "has changed since it was written" in run.output()
    assert f"resuming from {saved[-2]}" in run.output()
    assert not any(map(os.path.exists, left)), "what the killed run has left"
    family, memory, folders = run.family(), shared_memory(run.family()), run.folders()
    everyone = {*family, *of_run(run.mark, run.process.pid)}  # also whoever has left the family
    sockets = [line for process in everyone for line in listening(process)]
    assert len(family) > 5 and sockets, "the sockets of Ray, at least, are seen"
    assert not [line for line in sockets if not is_loopback(line[0])], "nothing may listen beyond loopback"
    assert not [line for line in sockets if "tensorboard" in line[2]]

    attack(run)
    assert unanswered(stranger)

    # SIGTERM, as timeout sends it: the step in hand is finished and saved, and nothing stays behind
    run.process.send_signal(signal.SIGTERM)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM, run.output()
    assert "resume with the same flags and --ckpt.load_enable" in run.output()
    no_traces(family, memory, folders)
    metrics = read_jsonl(run_dir / "metrics.jsonl")
    last = metrics[-1]["step"]
    assert STEPS - 2 <= last < 8 * STEPS
    assert any(m["engines_restarted"] for m in [*metrics, *read_jsonl(run_dir / "lost-metrics.jsonl")])
    checkpoints.verify(run_dir / "checkpoints" / f"global_step{last}")

    whole = read_jsonl(undisturbed.run_dir / "metrics.jsonl")
    assert "seconds_checkpoint" not in whole[0] and all(m["seconds_checkpoint"] > 0 for m in whole[1:])
    both = min(last, STEPS)
    assert rollouts(run_dir, both) == rollouts(undisturbed.run_dir, both)
    same(metrics[:both], whole[:both])
