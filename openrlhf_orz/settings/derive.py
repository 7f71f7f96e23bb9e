"""What follows from the flags, and every check that can be made before Ray starts."""

import os
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from openrlhf_orz.settings.checks import cannot_be_made, wrong_combinations, wrong_numbers
from openrlhf_orz.settings.skip_plan import cross_fit_problem

HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"


class ConfigError(ValueError):
    """Flags that cannot work together or cannot work here; the message names the flag and the remedy."""


def detect_device() -> str:
    """ "cuda" if this machine shows an NVIDIA GPU that is not hidden, else "cpu"; imports nothing heavy."""
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


def lone_rank(values: dict) -> bool:
    """Whether policy and critic have one rank each and plain Adam on it, so that ZeRO has nothing to cut."""
    ranks = {values[f"{role}.num_nodes"] * values[f"{role}.num_gpus_per_node"] for role in ("actor", "critic")}
    adam = {values["actor.optim"], values["critic.optim"]} == {"adam"} and not values["ds.adam_offload"]
    return ranks == {1} and adam


def derive(args, explicit: set[str]) -> None:
    """Fill in, on OpenRLHF's flat namespace, what follows from other flags; ``explicit`` ones are never changed.

    Raises ConfigError if a number makes no sense, if flags contradict each other, or name what is not there.
    """
    values = vars(args)
    wrong = wrong_numbers(values)
    if wrong:
        raise ConfigError("\n".join(wrong))

    def default(name, value):
        if name not in explicit:
            values[name] = value

    if values["orz.device"] == "auto":
        values["orz.device"] = detect_device()
    if values["orz.device"] == "cpu":
        for role in ("actor", "critic", "ref", "reward"):
            default(f"{role}.num_gpus_per_node", 1)
        default("train.colocate_all", True)
        default("vllm.enforce_eager", True)
        default("ds.param_dtype", cpu_dtype())
        if lone_rank(values) and values["ds.param_dtype"] == "fp32":
            default("ds.zero_stage", 0)  # ZeRO's copies would be a quarter of a 135M model's step
        elif lone_rank(values) and values["ds.param_dtype"] == "bf16":
            # half of the critic's training would be copies at stage 2; this one sums gradients in place, and in float32
            default("ds.zero_stage", 1)
            if values["ds.zero_stage"] == 1:
                default("ds.grad_accum_dtype", "fp32")
        for name in ("vllm.enable_sleep", "ds.enable_sleep"):
            if values[name]:
                print(f"[orz] --{name} has no effect on CPU and is off", flush=True)
                values[name] = False
    # Packed (Sec. 3.1), on every device
    if values["orz.device"] == "cpu" or not find_spec("flash_attn"):
        default("ds.attn_implementation", "orz_packed")
    if values["ds.attn_implementation"] == "orz_packed" or "flash_attention" in values["ds.attn_implementation"]:
        default("ds.packing_samples", True)
    wrong = wrong_combinations(values, explicit)
    if wrong:
        raise ConfigError("\n".join(wrong))
    if values["vllm.num_engines"] is None:
        ranks = values["actor.num_nodes"] * values["actor.num_gpus_per_node"]
        values["vllm.num_engines"] = max(1, ranks // values["vllm.tensor_parallel_size"])

    samples = values["rollout.batch_size"] * values["rollout.n_samples_per_prompt"]
    updates = values["orz.policy_updates"]
    if values["train.batch_size"] is None:
        if samples % updates:
            raise ConfigError(
                f"--orz.policy_updates {updates} does not divide the rollout of {samples} samples "
                "(--rollout.batch_size x --rollout.n_samples_per_prompt)"
            )
        values["train.batch_size"] = samples // updates

    # Token-budget micro-batches unless the user asks for a fixed number of samples. OpenRLHF's dynamic mode is the
    # machinery of both, because it alone lets the trainer choose the optimizer steps.
    fixed = {"train.micro_batch_size", "rollout.micro_batch_size"} & explicit
    values["orz.fixed_micro_batches"] = bool(fixed) and "train.dynamic_batch_enable" not in explicit
    if values["orz.device"] == "cpu":
        default("train.max_tokens_per_gpu", 2048)  # a 135M model's activations: 1.2 MB a token
        # a forward alone keeps none, and two threads do better on more tokens
        budget = values["train.max_tokens_per_gpu"]
        default("rollout.max_tokens_per_gpu", max(budget, min(4 * budget, 8192)))

    for role in ("actor", "critic"):
        values[f"orz.{role}_warmup_steps"] = (
            None if f"{role}.lr_warmup_ratio" in explicit else values["orz.warmup_steps"]
        )
    if values["ckpt.output_dir"] is None:
        values["ckpt.output_dir"] = os.path.join("runs", time.strftime("orz-%Y%m%d-%H%M%S"))
    run_dir = os.path.abspath(values["ckpt.output_dir"])
    values["orz.run_dir"] = run_dir
    values["ckpt.output_dir"] = os.path.join(run_dir, "hf")
    if values["ckpt.path"] is None:
        values["ckpt.path"] = os.path.join(run_dir, "checkpoints")
    default("logger.tensorboard_dir", os.path.join(run_dir, "tensorboard"))
    os.environ["OPENRLHF_TRUST_REMOTE_CODE"] = "1" if values["orz.trust_remote_code"] else "0"


def validate(args) -> None:
    """Check OpenRLHF's nested arguments; raises ConfigError with every problem found, one a line."""
    problems: list[str] = []

    def check(ok, message):
        if not ok:
            problems.append(message)

    samples = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    check(args.actor.model_name_or_path, "--actor.model_name_or_path is missing: name a model or a directory")
    for role in ("actor", "critic"):
        path = getattr(args, role).model_name_or_path
        if role == "critic" and path == args.actor.model_name_or_path:
            continue
        if path and not re.fullmatch(HUB_NAME, path):  # else a name on the hub, if there is no such directory
            check(os.path.exists(path), f"--{role}.model_name_or_path: there is no directory {path}: check the path")
        if path and os.path.exists(path):
            check(
                os.path.isfile(os.path.join(path, "config.json")),
                f"--{role}.model_name_or_path: {path} holds no config.json: name the directory of a model as"
                " transformers saves it",
            )
    for name, path in (
        ("--ckpt.output_dir", args.orz.run_dir),
        ("--ckpt.path", args.ckpt.path),
        ("--logger.tensorboard_dir", args.logger.tensorboard_dir),
    ):
        problem = path and cannot_be_made(path)
        check(not problem, f"{name}: {problem}")
    check(args.data.prompt_dataset, "--data.prompt_dataset is missing: name a Hugging Face data set or a file")
    if problems:
        raise ConfigError("\n".join(problems))

    updates = args.orz.policy_updates
    if updates == 1:
        check(
            args.train.batch_size == samples,
            f"--train.batch_size {args.train.batch_size} is not the rollout of {samples} samples (--rollout.batch_size"
            f" {args.rollout.batch_size} x --rollout.n_samples_per_prompt {args.rollout.n_samples_per_prompt}): strict"
            " on-policy training takes one policy step for each rollout. Leave --train.batch_size out, or say"
            " --orz.policy_updates K for an off-policy run",
        )
        check(
            args.train.max_epochs == 1,
            f"--train.max_epochs {args.train.max_epochs} repeats the rollout: say --orz.policy_updates 2 or more"
            " (steps per epoch) for an off-policy run",
        )
    else:
        check(
            args.train.batch_size * updates == samples,
            f"--train.batch_size {args.train.batch_size} x --orz.policy_updates {updates} is not the rollout of"
            f" {samples} samples: leave --train.batch_size out",
        )
    ranks, dp_size = args.actor.num_nodes * args.actor.num_gpus_per_node, data_parallel_ranks(args)
    per_rank = samples // dp_size
    check(
        per_rank >= updates,
        f"--orz.policy_updates {updates} needs as many samples on each of {dp_size} ranks, there are {per_rank}",
    )
    if args.critic.model_name_or_path:
        check(
            per_rank >= args.orz.critic_updates,
            f"--orz.critic_updates {args.orz.critic_updates} needs as many samples on each of {dp_size} ranks, there"
            f" are {per_rank}: lower it, or raise --rollout.batch_size or --rollout.n_samples_per_prompt",
        )
    if args.train.colocate_all:
        engines = args.vllm.num_engines * args.vllm.tensor_parallel_size
        check(
            args.train.async_enable or engines == ranks,
            f"--train.colocate_all needs --vllm.num_engines x --vllm.tensor_parallel_size ({engines}) to equal"
            f" --actor.num_nodes x --actor.num_gpus_per_node ({ranks})",
        )
        if args.critic.model_name_or_path:
            critic_ranks = args.critic.num_nodes * args.critic.num_gpus_per_node
            check(
                critic_ranks == ranks,
                f"--train.colocate_all needs as many critic ranks ({critic_ranks}: --critic.num_nodes x"
                f" --critic.num_gpus_per_node) as actor ranks ({ranks})",
            )
    check(
        not (args.orz.check_sync and args.vllm.enable_sleep),
        "--orz.check_sync asks the engines right after a sync, when --vllm.enable_sleep has their cache asleep: leave"
        " one of them out",
    )
    new_tokens = args.rollout.max_new_tokens
    check(
        new_tokens is None or 1 <= new_tokens < args.data.max_len,
        f"--rollout.max_new_tokens {new_tokens} leaves no room for a prompt in --data.max_len {args.data.max_len}:"
        " leave it out to give each response what its prompt leaves",
    )
    if args.orz.cross_fit_values:
        problem = cross_fit_problem(args)
        check(problem is None, f"--orz.cross_fit_values {problem}")
    if problems:
        raise ConfigError("\n".join(problems))


def data_parallel_ranks(args) -> int:
    """Ranks of the policy that each train on samples of their own."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    return max(1, ranks // args.ds.ring_attn_size // args.ds.tensor_parallel_size)


def check_rollouts(args, prompts: int) -> None:
    """Raise ConfigError if a rollout of these ``prompts``, the last one above all, leaves a rank without a sample."""
    ranks, batch, each = data_parallel_ranks(args), args.rollout.batch_size, args.rollout.n_samples_per_prompt
    # what the filter leaves is not known before: one prompt's responses must do
    last = 1 if args.algo.dynamic_filtering_enable else prompts % batch or batch
    if last * each < ranks:
        which = "a filtered rollout may have" if args.algo.dynamic_filtering_enable else "the last rollout has"
        raise ConfigError(
            f"--rollout.batch_size {batch}: of {prompts} prompts {which} {last}, which with"
            f" --rollout.n_samples_per_prompt {each} are {last * each} samples, fewer than the {ranks} ranks that"
            " train (--actor.num_nodes x --actor.num_gpus_per_node): raise --rollout.n_samples_per_prompt, or choose a"
            " --rollout.batch_size or --data.max_samples that leaves more"
        )


def prompt_budget(args) -> int:
    """Longest prompt in tokens that leaves room for its response."""
    return min(args.orz.max_prompt_len, args.data.max_len - (args.rollout.max_new_tokens or 1))
