"""Placement and layout for the GPUs that are found: what a small model needs is not what a large one needs."""

import json
import sys

import pytest
from planned import make

from openrlhf_orz.cli import plan, train_ppo_ray
from openrlhf_orz.plan.choice import RESERVE, choose_layout, describe_layout
from openrlhf_orz.plan.hardware import gpu_by_name, gpus_here, parse_hardware
from openrlhf_orz.plan.layout import default_lengths
from openrlhf_orz.plan.planner import plan_run
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import changed


def run(model, *more):
    return ["--actor.model_name_or_path", f"Qwen/Qwen2.5-{model}", "--data.prompt_dataset", "d", *map(str, more)]


def chosen(model, on, *more):
    """The plan of README's command on this hardware."""
    hardware = parse_hardware(on)
    flags = [*run(model, *more), "--orz.device", "cuda"]
    args, explicit = parse(flags, (hardware.nodes, hardware.per_node))
    return choose_layout(plan_run(args, hardware), explicit)


@pytest.mark.parametrize("on", ["h100x1", "h100x8", "h100x8x4"])
def test_a_small_model_needs_no_zero_3_no_sleep_and_no_recomputation(on):
    found = chosen("0.5B", on)
    ds, args = found.args.ds, found.args
    assert (ds.zero_stage, ds.grad_accum_dtype, ds.enable_sleep) == (1, "fp32", False)
    assert not args.actor.gradient_checkpointing_enable
    assert found.memory.peak.total <= (1 - RESERVE) * found.memory.limit
    assert found.seconds.gpus == found.hardware.nodes * found.hardware.per_node


@pytest.mark.parametrize("model, on", [("7B", "h100x8"), ("7B", "h100x8x4"), ("32B", "h100x8x4")])
def test_a_large_model_gets_what_it_needs(model, on):
    found = chosen(model, on)
    args = found.args
    assert found.fits and args.ds.zero_stage == 3 and args.ds.grad_accum_dtype == "fp32"
    assert args.vllm.num_engines * args.vllm.tensor_parallel_size == found.seconds.gpus


def test_gradients_are_summed_in_float32_wherever_that_fits():
    """Though sums in bfloat16 would leave room for something quicker; those come where nothing else fits."""
    from dataclasses import replace

    args, explicit = parse([*run("7B"), "--orz.device", "cuda"], (1, 8))
    for memory, sums in ((79, "fp32"), (45, "fp32"), (34, "fp32"), (32, None)):
        hardware = replace(parse_hardware("h100x8"), memory_gib=float(memory))
        found = choose_layout(plan_run(args, hardware), explicit)
        assert found.fits and found.args.ds.grad_accum_dtype == sums, memory


def test_what_fits_nowhere_says_so_and_stays():
    found = chosen("32B", "h100x1")
    assert not found.fits and found.args.ds.zero_stage == 3 and found.args.vllm.enable_sleep


@pytest.mark.parametrize(
    "flags",
    [("--ds.zero_stage", 3), ("--actor.gradient_checkpointing_enable",), ("--vllm.gpu_memory_utilization", 0.3),
     ("--train.max_tokens_per_gpu", 8192), ("--vllm.enable_sleep",), ("--ds.zero_stage", 3, "--ds.enable_sleep"),
     ("--train.micro_batch_size", 2), ("--orz.check_sync",)],
)  # fmt: skip
def test_flags_win(flags):
    given, _ = parse([*run("0.5B", *flags), "--orz.device", "cuda"], (1, 1))
    found = chosen("0.5B", "h100x1", *flags).args
    for name in [flag.removeprefix("--") for flag in flags if str(flag).startswith("--")]:
        group, last = name.split(".")
        assert getattr(getattr(found, group), last) == getattr(getattr(given, group), last), name
    assert not (found.orz.check_sync and found.vllm.enable_sleep)


def test_models_on_gpus_of_their_own_are_left_alone():
    before = make("--critic.num_gpus_per_node", 2, "--actor.num_gpus_per_node", 8, "--vllm.gpu_memory_utilization=0.5")
    after = choose_layout(before, set())
    limits = {"orz.max_num_seqs": after.args.orz.max_num_seqs}
    assert limits["orz.max_num_seqs"] < before.args.orz.max_num_seqs
    assert after.args == changed(before.args, limits), "the engines' limits alone"
    assert choose_layout(before, {"orz.max_num_seqs"}).args == before.args
    assert "GPUs of their own" in describe_layout(before)


@pytest.mark.parametrize(
    "model, on, more, seqs, tokens",
    [
        ("0.5B", "h100x1", (), 1024, 16384),  # most of all
        ("7B", "h100x8x4", (), 256, 8192),  # its share of 8,192 responses
        ("7B", "4090x8x4", ("--data.max_len", 32768), 3, 2048),  # what its cache holds
        ("7B", "4090x8x4", ("--data.max_len", 32768, "--orz.max_num_seqs", 9), 9, 2048),
        ("7B", "h100x8x4", ("--orz.max_num_batched_tokens", 100), 100, 100),
    ],
)
def test_what_an_engine_does_at_once_follows_from_rollout_and_memory(model, on, more, seqs, tokens):
    found = chosen(model, on, *more)
    orz, sample = found.args.orz, default_lengths(found.args).sample
    assert (orz.max_num_seqs, orz.max_num_batched_tokens) == (seqs, tokens)
    assert f"each of {seqs} responses at once and {tokens} tokens a step" in describe_layout(found)
    if "--orz.max_num_seqs" not in more:
        assert seqs * sample <= found.memory.kv_cache_tokens
        assert f"{seqs} requests at once" in found.seconds.bound_by["generation"]


def smi(folder, monkeypatch, lines):
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + ("" if lines else "exit 9\n"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))


H100 = "NVIDIA H100 80GB HBM3, 81559"


def test_gpus_are_found(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, [H100, H100])
    found = gpus_here()
    assert (found.name, found.nodes, found.per_node, found.memory_gib) == ("h100", 1, 2, 79)
    for visible, count in (("1", 1), ("0,1", 2), ("", None), ("-1", None), ("GPU-a", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = gpus_here()
        assert (found and found.per_node) == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi(tmp_path, monkeypatch, ["NVIDIA GB10, [N/A]"])
    assert gpus_here().per_node == 1 and "rates of an A100, as NVIDIA GB10" in gpus_here().source
    smi(tmp_path, monkeypatch, [])
    assert gpus_here() is None


@pytest.mark.parametrize(
    "name, memory, key",
    [("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"), ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"), ("A100", None, "a100-80"),
     ("NVIDIA GeForce RTX 4090", 23.9, "4090"), ("NVIDIA L40S", 44.9, "l40s"), ("H200", None, "h200"),
     ("NVIDIA H800", 79.6, "h800")],
)  # fmt: skip
def test_names_of_drivers_and_of_ray(name, memory, key):
    assert gpu_by_name(name, memory).name == key


def test_the_run_and_its_dry_run_are_laid_out_alike(tmp_path, monkeypatch, capsys):
    """README's command on the one GPU of this machine."""
    smi(tmp_path, monkeypatch, [H100])
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    args, explicit = plan.settings_of_run(run("0.5B"))
    said = capsys.readouterr().out
    assert args.orz.device == "cuda" and args.train.colocate_all and args.ds.zero_stage == 1
    assert "layout: all models share 1: ZeRO-1" in said and explicit == {
        "actor.model_name_or_path", "data.prompt_dataset"}  # fmt: skip
    with pytest.raises(AttributeError):
        args.ds.zero_stage = 3
    assert train_ppo_ray.main(["--dry_run", *run("0.5B")]) == 0
    out = capsys.readouterr().out
    assert "layout    all models share 1: ZeRO-1" in out and "fits" in out and "the 1 x 1 h100 found" in out


def test_on_a_cluster_ray_says_what_there_is(monkeypatch, capsys):
    monkeypatch.setattr(plan.ray_session, "running_ray", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(plan.ray_session, "cluster_gpus", lambda address: [("H100", 8)] * 4)
    monkeypatch.setattr(plan.machines, "gpus_here", lambda: None)
    assert plan.main([*run("7B"), "--orz.device", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == 32
    args, _ = plan.settings_of_run(run("7B", "--orz.device", "cuda"))
    assert (args.actor.num_nodes, args.critic.num_gpus_per_node, args.vllm.num_engines) == (4, 8, 32)


def test_ray_is_asked_once_and_let_go(monkeypatch):
    from types import SimpleNamespace

    from openrlhf_orz.runtime.ray_session import cluster_gpus
    from openrlhf_orz.settings.checks import ConfigError

    calls = []
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"GPU": 8.0, "accelerator_type:H100": 1.0}},
        {"Alive": False, "Resources": {"GPU": 8.0}},
        {"Alive": True, "Resources": {"GPU": 4.0}},
    ]
    ray = SimpleNamespace(init=lambda **given: calls.append(given["address"]), nodes=lambda: nodes,
                          shutdown=lambda: calls.append("shutdown"))  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cluster_gpus("here:1") == [("H100", 8), ("", 4)] and calls == ["here:1", "shutdown"]

    def refuse(**given):
        raise ConnectionError

    ray.init = refuse
    with pytest.raises(ConfigError, match="no Ray answers at here:1"):
        cluster_gpus("here:1")


def test_a_restart_is_the_same_run_while_a_node_is_lost(monkeypatch):
    """It gets the numbers that the first start found."""
    monkeypatch.setattr(plan.ray_session, "running_ray", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(plan.ray_session, "cluster_gpus", lambda address: [("H100", 8)] * 4)
    monkeypatch.setattr(train_ppo_ray, "is_supervised", lambda: False)
    monkeypatch.setattr(train_ppo_ray.console, "keep_terminal", lambda: None)
    monkeypatch.setattr(train_ppo_ray, "supervise", lambda argv, *more: argv)
    flags = run("7B", "--orz.device", "cuda", "--orz.max_restarts", 3)
    argv = train_ppo_ray.main(flags)
    assert argv == [*flags, "--actor.num_nodes=4", "--actor.num_gpus_per_node=8"]
    monkeypatch.setattr(plan.ray_session, "cluster_gpus", lambda address: [("H100", 8)] * 3)
    again, first = plan.settings_of_run(argv)[0], plan.settings_of_run(flags)[0]
    assert again.critic.num_nodes == 4 and first.critic.num_nodes == 3 and again.ds == first.ds
