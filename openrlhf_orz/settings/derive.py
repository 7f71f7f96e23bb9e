"""What follows from the flags: device, placement, batch sizes, folders. Nothing outside the arguments is changed.

On GPUs it lays out a large model safely; plan/choice.py then looks for something quicker that fits.
"""

import os
import re
import secrets
import shutil
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.settings.effects import Effect
from openrlhf_orz.settings.openrlhf_flags import RECORDS
from openrlhf_orz.settings.upstream import openrlhf_parser

MOST_SEQS = 1024  # vLLM's own where it generates offline
BATCHED_TOKENS = 8192  # of one step of an engine; the plan finds what the GPU has memory for


def detect_device() -> str:
    """Returns "cuda" if this machine shows an NVIDIA GPU that is not hidden, else "cpu". Imports nothing heavy."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    found = os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None
    return "cuda" if found and not hidden else "cpu"


def cpu_dtype() -> str:
    """The parameter dtype that this processor computes in: "bf16" with bfloat16 instructions, else "fp32".

    Without them a bfloat16 matrix product is emulated: 100 times slower than float32 on a Zen 3 core.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    return "bf16" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) else "fp32"


def takes_muon(values: dict) -> bool:
    """Whether a model trains by Muon. DeepSpeed has it in ZeRO-1 and 2, with sums in the parameters' dtype."""
    return "muon" in (values["actor.optim"], values["critic.optim"])


def heads_cut(key_value_heads: int, tensor_parallel: int) -> bool:
    """Whether vLLM can give each of so many GPUs as many key-value heads, or each head to as many GPUs."""
    return key_value_heads % tensor_parallel == 0 or tensor_parallel % key_value_heads == 0


def lone_rank(values: dict) -> bool:
    """Whether policy and critic have one rank each and plain Adam on it, so that ZeRO has nothing to cut."""
    ranks = {values[f"{role}.num_nodes"] * values[f"{role}.num_gpus_per_node"] for role in ("actor", "critic")}
    adam = {values["actor.optim"], values["critic.optim"]} == {"adam"} and not values["ds.adam_offload"]
    return ranks == {1} and adam


def derive(values: dict, explicit: set[str], gpus: tuple[int, int] | None = None) -> list[str]:
    """Fill in, among OpenRLHF's flat arguments, what follows from other flags; returns lines for the console.

    Args:
        values: arguments by the flags' names, their numbers checked; changed in place.
        explicit: names of the flags that the user gave; where they are given, they stay as they are.
        gpus: (nodes, GPUs of each) that there are; None if nobody has looked.
    """
    if values["orz.device"] == "auto":
        values["orz.device"] = detect_device()
    if values["orz.device"] == "cpu":
        _placement_on_cpu(values, explicit)
        _precision_on_cpu(values, explicit)
    else:
        if gpus is not None and not separate(explicit):
            _placement_on_gpus(values, explicit, *gpus)
        _sums_of_gradients(values, explicit)
    _packing(values, explicit)
    _batches(values, explicit)
    _warmup(values, explicit)
    _folders(values, explicit)
    _grading(values)
    if values["ds.lora.target_modules"] in ([], ["all-linear"]):  # peft takes the word, not a list of it
        values["ds.lora.target_modules"] = "all-linear"
    values["orz.average_weights"] = values["train.enable_ema"]
    return _without_effect(values, explicit)


@cache
def plain_default(name: str) -> Any:
    """OpenRLHF's own default of a flag of its, or that of a flag of ours."""
    return RECORDS[name].default if name.startswith("orz.") else openrlhf_parser().get_default(name)


def idle_flags(values: dict, explicit: set[str]) -> dict[str, Effect]:
    """The flags that were given and do nothing beside the other ``values``, which are derived."""
    effects = {name: RECORDS[name].effect for name in sorted(explicit & RECORDS.keys())}
    return {
        name: effect
        for name, effect in effects.items()
        if effect and effect.acts and values[name] != plain_default(name) and not effect.acts(values)
    }


def _without_effect(values, explicit) -> list[str]:
    remarks = []
    for name, effect in idle_flags(values, explicit).items():
        if effect.off:
            values[name] = plain_default(name)
        if not effect.refused:
            remarks.append(f"--{name} has no effect: {effect.words.removeprefix('no effect: ')}")
    return remarks


def data_parallel_ranks(args: SimpleNamespace) -> int:
    """Number of the policy's ranks that train on different samples."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    return max(1, ranks // args.ds.ring_attn_size // args.ds.tensor_parallel_size)


def prompt_budget(args: SimpleNamespace) -> int:
    """Longest prompt in tokens that leaves room for its response."""
    return min(args.orz.max_prompt_len, args.data.max_len - (args.rollout.max_new_tokens or 1))


def _default(values: dict, explicit: set[str], name: str, value) -> None:
    if name not in explicit:
        values[name] = value


def _placement_on_cpu(values, explicit) -> None:
    _default(values, explicit, "actor.num_gpus_per_node", 1)
    for role in ("critic", "ref"):
        _default(values, explicit, f"{role}.num_gpus_per_node", values["actor.num_gpus_per_node"])
    _default(values, explicit, "reward.num_gpus_per_node", 1)
    _default(values, explicit, "train.colocate_all", True)
    _default(values, explicit, "vllm.enforce_eager", True)


# who gives one of these lays the models out by hand
_BY_HAND = {
    *(f"{role}.{number}" for role in ("critic", "ref") for number in ("num_nodes", "num_gpus_per_node")),
    *("vllm.num_engines", "train.async_enable", "train.colocate_actor_ref", "train.colocate_critic_reward"),
}


def separate(explicit: set[str]) -> bool:
    """Whether the flags given put models on GPUs of their own: then OpenRLHF's placement is not touched."""
    return bool(_BY_HAND & explicit) and not (
        "train.colocate_all" in explicit and "train.async_enable" not in explicit
    )


def _placement_on_gpus(values, explicit, nodes: int, per_node: int) -> None:
    """All models on all GPUs, each asleep while another works."""
    _default(values, explicit, "actor.num_nodes", nodes)
    _default(values, explicit, "actor.num_gpus_per_node", per_node)
    for role in ("critic", "ref"):
        for number in ("num_nodes", "num_gpus_per_node"):
            _default(values, explicit, f"{role}.{number}", values[f"actor.{number}"])
    _default(values, explicit, "train.colocate_all", True)
    _default(values, explicit, "vllm.enable_sleep", not values["orz.check_sync"])
    whole = values["ds.tensor_parallel_size"] == 1
    _default(values, explicit, "ds.zero_stage", 2 if takes_muon(values) else 3 if whole else 1)
    _default(values, explicit, "ds.enable_sleep", values["ds.zero_stage"] == 3 and not values["ds.adam_offload"])
    _default(values, explicit, "actor.gradient_checkpointing_enable", True)
    _default(values, explicit, "vllm.gpu_memory_utilization", 0.75 if values["vllm.enable_sleep"] else 0.4)
    # packs of two samples at least, in forwards alone of four
    _default(values, explicit, "train.max_tokens_per_gpu", max(16384, values["data.max_len"]))
    _default(values, explicit, "rollout.max_tokens_per_gpu", 2 * values["train.max_tokens_per_gpu"])


def _sums_of_gradients(values, explicit) -> None:
    """In float32, as on a CPU: dozens of micro-batches summed in bfloat16 lose 1 % (docs/fidelity.md)."""
    wide = values["ds.zero_stage"] == 3 or (values["ds.zero_stage"] == 1 and values["ds.param_dtype"] == "bf16")
    if wide and values["ds.param_dtype"] != "fp32" and not takes_muon(values):
        _default(values, explicit, "ds.grad_accum_dtype", "fp32")


def _precision_on_cpu(values, explicit) -> None:
    """The dtype, and the least of ZeRO where there is nothing to cut."""
    _default(values, explicit, "ds.param_dtype", cpu_dtype())
    if lone_rank(values) and values["ds.param_dtype"] == "fp32":
        _default(values, explicit, "ds.zero_stage", 0)  # ZeRO's copies would be a quarter of a 135M model's step
    elif lone_rank(values) and values["ds.param_dtype"] == "bf16":
        # at stage 2 copies would be half of the critic's training; stage 1 sums gradients in place, and in float32
        _default(values, explicit, "ds.zero_stage", 1)
        if values["ds.zero_stage"] == 1:
            _default(values, explicit, "ds.grad_accum_dtype", "fp32")


def _packing(values, explicit) -> None:
    """Samples are packed (Sec. 3.1) on every device; ring attention alone needs flash-attn's own."""
    if values["ds.ring_attn_size"] == 1:
        _default(values, explicit, "ds.attn_implementation", "orz_packed")
    if values["ds.attn_implementation"] == "orz_packed" or "flash_attention" in values["ds.attn_implementation"]:
        _default(values, explicit, "ds.packing_samples", True)


def _batches(values, explicit) -> None:
    """Engines, the policy's batch, and micro-batches by a budget of tokens unless the user gives a number of samples.

    Both kinds run in OpenRLHF's dynamic mode: it alone lets the trainer choose the optimizer steps.
    """
    if values["vllm.num_engines"] is None:
        ranks = values["actor.num_nodes"] * values["actor.num_gpus_per_node"]
        values["vllm.num_engines"] = max(1, ranks // values["vllm.tensor_parallel_size"])
    samples = values["rollout.batch_size"] * values["rollout.n_samples_per_prompt"]
    if values["train.batch_size"] is None:
        values["train.batch_size"] = samples // values["orz.policy_updates"]
    if values["orz.device"] == "cuda":  # vLLM's own for an engine like ours are 128 and 2048, as for a server of chats
        seqs = responses_at_once(samples, values["vllm.num_engines"])
        seqs = min(seqs, values["orz.max_num_batched_tokens"] or seqs)  # each computes a token of a step
        _default(values, explicit, "orz.max_num_seqs", seqs)
        tokens = max(BATCHED_TOKENS, values["orz.max_num_seqs"])
        _default(values, explicit, "orz.max_num_batched_tokens", tokens)
    fixed = {"train.micro_batch_size", "rollout.micro_batch_size"} & explicit
    values["orz.fixed_micro_batches"] = bool(fixed) and "train.dynamic_batch_enable" not in explicit
    if values["orz.device"] == "cpu":
        _default(values, explicit, "train.max_tokens_per_gpu", 2048)  # a 135M model's activations: 1.2 MB a token
        # a forward alone keeps none, and two threads do better on more tokens
        budget = values["train.max_tokens_per_gpu"]
        _default(values, explicit, "rollout.max_tokens_per_gpu", max(budget, min(4 * budget, 8192)))


def responses_at_once(samples: int, engines: int) -> int:
    """The share of a rollout of ``samples`` responses that each of ``engines`` generates, where it has room."""
    return min(MOST_SEQS, -(-samples // engines))


def _warmup(values, explicit) -> None:
    for role in ("actor", "critic"):
        by_ratio = f"{role}.lr_warmup_ratio" in explicit
        values[f"orz.{role}_warmup_steps"] = None if by_ratio else values["orz.warmup_steps"]


def _folders(values, explicit) -> None:
    given = values["ckpt.output_dir"]
    # jobs of an array start in the same second
    name = f"orz-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    run_dir = os.path.abspath(os.path.join("runs", name) if given is None else given)
    values["orz.run_dir"] = run_dir
    values["ckpt.output_dir"] = os.path.join(run_dir, "hf")
    if values["orz.replay"] is not None:  # the trainer's process may be elsewhere
        values["orz.replay"] = os.path.abspath(values["orz.replay"])
    if values["ckpt.path"] is None:
        values["ckpt.path"] = os.path.join(run_dir, "checkpoints")
    _default(values, explicit, "logger.tensorboard_dir", os.path.join(run_dir, "tensorboard"))


def _grading(values) -> None:
    agent, url = values["train.agent_func_path"], values["reward.remote_url"]
    if agent is None and url is None:
        values["reward.remote_url"] = url = "orz"  # our agent grades: OpenRLHF then starts no reward model
    own_class = values["orz.agent_cls"] or values["orz.reward_cls"]
    values["orz.verifier_grades"] = agent is None and url == "orz" and not own_class
