"""What follows from the flags, on the flat arguments alone."""

import os

import pytest

from openrlhf_orz.settings import derive as module
from openrlhf_orz.settings.command_line import training_parser
from openrlhf_orz.settings.derive import derive

DEFAULTS = vars(training_parser().parse_args([]))


def derived(gpus=None, **given) -> dict:
    """The arguments with these flags given, written with ``__`` for a dot."""
    flags = {name.replace("__", "."): value for name, value in given.items()}
    values = DEFAULTS | flags
    derive(values, set(flags), gpus)
    return values


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A processor without bfloat16."""
    monkeypatch.setattr(module, "cpu_dtype", lambda: "fp32")


def test_only_the_arguments_change(capsys):
    before = dict(os.environ)
    derived(orz__device="cpu", vllm__enable_sleep=True, orz__trust_remote_code=True)
    assert dict(os.environ) == before and capsys.readouterr() == ("", "")


def test_placement_on_a_cpu():
    values = derived(orz__device="cpu")
    assert [values[f"{role}.num_gpus_per_node"] for role in ("actor", "critic", "ref", "reward")] == [1] * 4
    assert values["train.colocate_all"] and values["vllm.enforce_eager"] and values["ds.param_dtype"] == "fp32"
    assert derived(orz__device="cpu", critic__num_gpus_per_node=3)["critic.num_gpus_per_node"] == 3
    values = derived(orz__device="cpu", actor__num_gpus_per_node=2)
    assert values["critic.num_gpus_per_node"] == values["ref.num_gpus_per_node"] == 2, "models share ranks"
    values = derived(orz__device="cuda")
    assert values["actor.num_gpus_per_node"] == 8 and not values["train.colocate_all"]
    assert not values["vllm.enforce_eager"] and values["ds.param_dtype"] == "bf16" and values["ds.zero_stage"] == 2
    assert (values["train.max_tokens_per_gpu"], values["rollout.max_tokens_per_gpu"]) == (16192, None)


@pytest.mark.parametrize("gpus", [(1, 1), (1, 8), (4, 8)])
def test_on_gpus_all_models_share_all_that_are_found(gpus):
    values = derived(gpus, orz__device="cuda")
    for role in ("actor", "critic", "ref"):
        assert (values[f"{role}.num_nodes"], values[f"{role}.num_gpus_per_node"]) == gpus
    assert values["train.colocate_all"] and values["vllm.num_engines"] == gpus[0] * gpus[1]
    assert values["vllm.enable_sleep"] and values["ds.enable_sleep"] and values["ds.zero_stage"] == 3
    assert values["ds.grad_accum_dtype"] == "fp32" and values["vllm.gpu_memory_utilization"] == 0.75


def test_flags_win_over_what_is_found():
    values = derived((1, 8), orz__device="cuda", actor__num_gpus_per_node=4, vllm__tensor_parallel_size=2)
    assert values["critic.num_gpus_per_node"] == 4 and values["vllm.num_engines"] == 2
    for name, given in (("critic__num_gpus_per_node", 2), ("vllm__num_engines", 4), ("train__async_enable", True)):
        values = derived((1, 8), orz__device="cuda", **{name: given})  # laid out by hand: as OpenRLHF has it
        assert not values["train.colocate_all"] and not values["vllm.enable_sleep"] and values["ds.zero_stage"] == 2
    values = derived((1, 8), orz__device="cuda", train__colocate_all=True, vllm__num_engines=4)
    assert values["vllm.enable_sleep"] and values["actor.num_gpus_per_node"] == 8
    assert not derived((1, 8), orz__device="cuda", orz__check_sync=True)["vllm.enable_sleep"]
    values = derived((1, 8), orz__device="cuda", ds__zero_stage=2)
    assert not values["ds.enable_sleep"] and values["ds.grad_accum_dtype"] is None  # no effect on the sum at stage 2
    for role in ("actor", "critic"):  # DeepSpeed has Muon in ZeRO-2, and steps on plain gradients with float32 sums
        values = derived((1, 8), orz__device="cuda", **{f"{role}__optim": "muon"})
        assert values["ds.zero_stage"] == 2 and values["ds.grad_accum_dtype"] is None and not values["ds.enable_sleep"]
    assert derived((4, 8), orz__device="cpu")["actor.num_gpus_per_node"] == 1


@pytest.mark.parametrize(
    ("stage", "dtype", "sums"), [(3, "bf16", "fp32"), (3, "fp16", "fp32"), (1, "bf16", "fp32"), (1, "fp16", None),
                                 (2, "bf16", None), (3, "fp32", None)],
)  # fmt: skip
def test_gradients_are_summed_in_float32_where_deepspeed_can(stage, dtype, sums):
    given = dict(orz__device="cuda", ds__zero_stage=stage, ds__param_dtype=dtype)
    assert derived(**given)["ds.grad_accum_dtype"] == sums
    assert derived(**given, ds__grad_accum_dtype="bf16")["ds.grad_accum_dtype"] == "bf16"


def test_sleep_is_off_on_a_cpu_and_that_is_said():
    for name in ("vllm.enable_sleep", "ds.enable_sleep"):
        values = DEFAULTS | {"orz.device": "cpu", name: True}
        assert derive(values, {"orz.device", name}) == [f"--{name} has no effect: only with `--orz.device cuda`"]
        assert values[name] is False
        values = DEFAULTS | {"orz.device": "cuda", name: True}
        assert derive(values, {"orz.device", name}) == [] and values[name] is True


def test_the_device_is_found(monkeypatch):
    for found in ("cpu", "cuda"):
        monkeypatch.setattr(module, "detect_device", lambda found=found: found)
        assert derived()["orz.device"] == found
        assert derived(orz__device="cpu")["orz.device"] == "cpu"


@pytest.mark.parametrize(
    ("device", "given", "attention", "packed"),
    [
        ("cpu", {}, "orz_packed", True),
        ("cuda", {}, "orz_packed", True),
        ("cuda", {"ds__attn_implementation": "flash_attention_2"}, "flash_attention_2", True),
        ("cuda", {"ds__ring_attn_size": 2}, "flash_attention_2", True),
        ("cuda", {"ds__attn_implementation": "sdpa"}, "sdpa", False),
        ("cpu", {"ds__attn_implementation": "eager"}, "eager", False),
    ],
)
def test_attention_and_packing(device, given, attention, packed):
    values = derived(orz__device=device, **given)
    assert (values["ds.attn_implementation"], values["ds.packing_samples"]) == (attention, packed)


def test_engines_share_the_policy_s_gpus():
    assert derived(orz__device="cuda", actor__num_nodes=2)["vllm.num_engines"] == 16
    assert derived(orz__device="cuda", actor__num_nodes=2, vllm__tensor_parallel_size=4)["vllm.num_engines"] == 4
    assert (
        derived(orz__device="cuda", actor__num_gpus_per_node=1, vllm__tensor_parallel_size=4)["vllm.num_engines"] == 1
    )
    assert derived(orz__device="cuda", vllm__num_engines=5)["vllm.num_engines"] == 5


def test_the_policy_s_batch():
    assert derived(orz__device="cpu")["train.batch_size"] == 128 * 64
    assert derived(orz__device="cpu", orz__policy_updates=8)["train.batch_size"] == 1024
    assert derived(orz__device="cpu", orz__policy_updates=8, train__batch_size=3)["train.batch_size"] == 3


def test_engines_generate_their_share_of_a_rollout_at_once():
    def of(**given):
        values = derived(**({"orz__device": "cuda"} | given))
        return values["orz.max_num_seqs"], values["orz.max_num_batched_tokens"]

    assert of(actor__num_nodes=4) == (256, 8192) and of(actor__num_nodes=4, vllm__num_engines=30)[0] == 274
    assert of(actor__num_gpus_per_node=1) == (1024, 8192)
    assert of(actor__num_nodes=4, orz__max_num_seqs=7, orz__max_num_batched_tokens=99) == (7, 99)
    assert of(actor__num_nodes=4, orz__max_num_batched_tokens=99) == (99, 99)  # each computes a token of a step
    assert of(actor__num_nodes=4, orz__max_num_seqs=9000) == (9000, 9000)
    assert of(orz__device="cpu") == (None, None)


def test_micro_batches_are_fixed_where_their_number_is_given():
    def fixed(**given):
        return derived(orz__device="cuda", **given)["orz.fixed_micro_batches"]

    assert not fixed() and fixed(train__micro_batch_size=1) and fixed(rollout__micro_batch_size=4)
    assert not fixed(train__micro_batch_size=1, train__dynamic_batch_enable=True)


def test_who_grades():
    def grades(**given):
        values = derived(orz__device="cpu", **given)
        return values["orz.verifier_grades"], values["reward.remote_url"]

    assert grades() == (True, "orz")
    assert grades(reward__remote_url="http://host") == (False, "http://host")
    assert grades(train__agent_func_path="agent.py") == (False, None)
    assert grades(orz__reward_cls="m:C") == grades(orz__agent_cls="m:C") == (False, "orz")


def test_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = derived(orz__device="cpu", ckpt__output_dir="out")
    assert values["orz.run_dir"] == f"{tmp_path}/out" and values["ckpt.output_dir"] == f"{tmp_path}/out/hf"
    assert values["ckpt.path"] == f"{tmp_path}/out/checkpoints"
    assert values["logger.tensorboard_dir"] == f"{tmp_path}/out/tensorboard"
    assert derived(ckpt__path="there", logger__tensorboard_dir="tb")["ckpt.path"] == "there"
    assert derived()["orz.run_dir"].startswith(f"{tmp_path}/runs/orz-2")
    assert len({derived()["orz.run_dir"] for _ in range(20)}) == 20, "jobs that start in one second do not meet"
    assert list(tmp_path.iterdir()) == []
