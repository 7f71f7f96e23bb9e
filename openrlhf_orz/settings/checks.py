"""Every check of the flags that can be made before Ray starts. Nothing heavy is imported.

parse calls them in this order: ``check_numbers`` on what the user gave, ``check_flags`` on what was derived from
it, ``check_run`` on what OpenRLHF's own checks return. Each raises ConfigError with a line for every problem.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace

from openrlhf_orz.settings.batch_checks import batch_problems, loss_problems, replay_problems, step_problems
from openrlhf_orz.settings.critic_checks import critic_problems
from openrlhf_orz.settings.derive import data_parallel_ranks
from openrlhf_orz.settings.effects import Effect
from openrlhf_orz.settings.finished import rollouts_of
from openrlhf_orz.settings.flags import Flag
from openrlhf_orz.settings.openrlhf_flags import RECORDS
from openrlhf_orz.settings.redact import redact

SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
)
ATTENTION = ("orz_packed", "flash_attention_2", "flash_attention_3", "sdpa", "eager", "flex_attention")
_HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"


class ConfigError(ValueError):
    """Flags that cannot work together or cannot work here; the message names the flag and the remedy."""


def _refuse(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ConfigError("\n".join(lines))


def check_numbers(values: dict) -> None:
    """Each number must lie in its flag's range. ``values`` are the flat arguments, by the flags' names."""
    _refuse(problem for flag in RECORDS.values() if (problem := _wrong_number(flag, values[flag.name])))


def _wrong_number(flag: Flag, given) -> str | None:
    if flag.range is None:
        return None
    for x in given if isinstance(given, (list, tuple)) else [given]:
        if x is None:
            continue
        if not (math.isfinite(x) or (flag.range.infinite and x > 0)):
            return f"--{flag.name} is {x}: it must be a finite number"
        if not flag.range.allows(x):
            return f"--{flag.name} is {x}: it must be {flag.range.words}"
    return None


def check_flags(args: SimpleNamespace, explicit: set[str], idle: dict[str, Effect]) -> None:
    """What flags say by themselves and together.

    ``explicit`` are the names of the flags that the user gave, ``idle`` those among them that do nothing.
    """
    _refuse(
        [
            *(f"--{name} ({effect.words}): leave it out" for name, effect in idle.items() if effect.refused),
            *_unknown_names(args),
            *_templates(args, explicit),
            *_lists(args),
            *_evaluation(args),
            *_responses(args),
            *batch_problems(args, explicit),
            *_grading(args, explicit),
            *loss_problems(args, explicit),
            *critic_problems(args, explicit),
            *replay_problems(args, explicit),
            *_packages(args),
        ]
    )


def check_run(args: SimpleNamespace) -> None:
    """Models, data and folders that flags name, and the batches and ranks of the run."""
    _refuse([*_models(args), *_folders(args), *step_problems(args)])


def _unknown_names(args) -> Iterator[str]:
    for role in ("actor", "critic"):
        name = getattr(args, role).lr_scheduler
        if name not in SCHEDULERS:
            yield f"--{role}.lr_scheduler {name} is not one of {', '.join(SCHEDULERS)}"
    name = args.ds.attn_implementation
    if name not in ATTENTION and "/" not in name:
        yield (
            f"--ds.attn_implementation {name} is not one of {', '.join(ATTENTION)}, nor a kernel of the hub"
            " (OWNER/NAME)"
        )
    name = args.ds.grad_accum_dtype
    if name not in (None, "fp32", "bf16", "fp16"):
        yield f"--ds.grad_accum_dtype {name} is not one of fp32, bf16, fp16"
    name = args.vllm.sync_backend
    if name not in ("nccl", "gloo"):
        yield f"--vllm.sync_backend {name} is not one of nccl, gloo"


def _templates(args, explicit) -> Iterator[str]:
    template, ours = args.data.input_template, "orz.prompt_template" in explicit
    if template is not None and "{}" not in template:
        yield (
            f"--data.input_template {template!r} has no {{}} where the question goes: put it in, or leave the flag out"
            " and use --orz.prompt_template"
        )
    if template is not None and ours:
        yield "--data.input_template and --orz.prompt_template both say what stands around a question: leave one out"
    if args.data.apply_chat_template and (template is not None or ours):
        yield (
            "--data.apply_chat_template takes the tokenizer's template: leave --orz.prompt_template and"
            " --data.input_template out"
        )
    if "" in args.orz.stop:
        yield "--orz.stop has an empty text, at which nothing can stop: leave it out"


def _lists(args) -> Iterator[str]:
    for name, (low, high) in (
        ("reward.clip_range", args.reward.clip_range),
        ("algo.dynamic_filtering_range", args.algo.dynamic_filtering_range),
    ):
        if low >= high:
            yield f"--{name} {low:g} {high:g}: give the lower number first, then a higher one"
    threshold = args.algo.advantage.is_correction_threshold
    if len(threshold) > 2 or list(threshold) != sorted(threshold):
        yield "--algo.advantage.is_correction_threshold takes HIGH, or LOW and HIGH, in this order"
    given, datasets = args.data.prompt_probs, (args.data.prompt_dataset or "").split(",")
    if given is not None and not _are_probabilities(given, len(datasets)):
        yield (
            f"--data.prompt_probs {given}: give a number above 0 for each of the {len(datasets)} data sets in"
            " --data.prompt_dataset, with commas between them, 1 in all"
        )


def _are_probabilities(text: str, count: int) -> bool:
    try:
        numbers = [float(x) for x in text.split(",")]
    except ValueError:
        return False
    return len(numbers) == count and all(0 < x <= 1 for x in numbers) and abs(sum(numbers) - 1) <= 1e-6


def _evaluation(args) -> Iterator[str]:
    steps, dataset = args.eval.steps, args.eval.dataset
    if steps >= 1 and not dataset:
        yield f"--eval.steps {steps} has nothing to evaluate: name it by --eval.dataset, or leave it out"
    if dataset and steps == -1:
        yield f"--eval.dataset {dataset} would never be evaluated: say every how many steps by --eval.steps"


def _responses(args) -> Iterator[str]:
    buffer, longest = args.reward.overlong_buffer_len, args.rollout.max_new_tokens
    if buffer is not None and (longest or 0) < buffer:
        yield (
            f"--reward.overlong_buffer_len {buffer} is counted from the end of --rollout.max_new_tokens ({longest}):"
            " give that, at least as large"
        )
    images = args.data.max_images_per_prompt
    if images > 0:
        yield f"--data.max_images_per_prompt {images}: questions are text alone here. Leave it out"


def _grading(args, explicit) -> Iterator[str]:
    agent = args.train.agent_func_path
    if agent is not None and not (agent.endswith(".py") and os.path.isfile(agent)):
        yield f"--train.agent_func_path: there is no Python file {agent}: check the path"
    if "reward.remote_url" in explicit:  # else it is our own mark, no address
        yield from _addresses(args.reward.remote_url.split(","))
    yield from _one_reward(args, explicit)


def _addresses(urls: list[str]) -> Iterator[str]:
    for url in urls:
        if url.endswith(".py"):
            if not os.path.isfile(url):
                yield f"--reward.remote_url: there is no file {url}: check the path"
            if len(urls) > 1:
                yield f"--reward.remote_url {url} gives the rewards alone: leave the other addresses out"
        elif not url.startswith(("http://", "https://")):
            shown = redact(url) or "''"
            yield (
                f"--reward.remote_url {shown} is neither http://... nor a .py file with a reward_func: leave it out,"
                " and the verifier grades (--orz.verifier)"
            )


def _one_reward(args, explicit) -> Iterator[str]:
    """One of verifier, file or URL, class and agent gives the rewards; what it makes useless is refused."""
    agents = [name for name in ("train.agent_func_path", "orz.agent_cls") if name in explicit]
    rewards = [name for name in ("reward.remote_url", "orz.reward_cls") if name in explicit]
    for names, what in ((agents, "an agent"), (rewards, "a reward")):
        if len(names) > 1:
            yield f"--{names[0]} and --{names[1]} both name {what}: leave one out"
    if agents and rewards:
        yield f"--{agents[0]} gives the rewards itself: leave --{rewards[0]} out"
    if args.orz.plain_math_verify and args.orz.verifier != "math":
        yield f"--orz.plain_math_verify is about the verifier math, not {args.orz.verifier}: leave it out"
    if not args.orz.verifier_grades:
        for name in sorted({"orz.verifier", "orz.plain_math_verify", "orz.grader_workers"} & explicit):
            by = "--" + [*agents, *rewards, "reward.remote_url"][0]
            yield f"--{name} would not be used: {by} gives the rewards. Leave one of them out"


# optional, and in no requirement file: flash-attn is compiled for hours where there is no wheel for this torch
PINS = {"flash_attn": "--no-build-isolation flash-attn==2.8.3.post2", "ring_flash_attn": "ring-flash-attn==0.1.8"}


def _packages(args) -> Iterator[str]:
    attention, ring = args.ds.attn_implementation, args.ds.ring_attn_size
    for flag, wanted, package in (
        ("use_ms", args.use_ms, "modelscope"),
        ("ds.use_liger_kernel", args.ds.use_liger_kernel, "liger_kernel"),
        (f"ds.attn_implementation {attention}", attention == "flash_attention_2" and ring == 1, "flash_attn"),
        *((f"ds.ring_attn_size {ring}", ring > 1, package) for package in ("flash_attn", "ring_flash_attn")),
        ("logger.wandb.key", args.logger.wandb.key, "wandb"),
    ):
        if wanted and not find_spec(package):
            how = f"pip install --no-deps {PINS[package]}" if package in PINS else "install it"
            yield f"--{flag} needs the package {package}, which is not installed here: {how}, or leave the flag out"


def _models(args) -> Iterator[str]:
    policy, critic = args.actor.model_name_or_path, args.critic.model_name_or_path
    if not policy:
        yield "--actor.model_name_or_path is missing: name a model or a directory"
    named = {"actor": policy} | ({"critic": critic} if critic != policy else {})
    for role, path in named.items():
        if not path:
            continue
        if not os.path.exists(path):
            if not re.fullmatch(_HUB_NAME, path):
                yield f"--{role}.model_name_or_path: there is no directory {path}: check the path"
        elif not os.path.isfile(os.path.join(path, "config.json")):
            yield (
                f"--{role}.model_name_or_path: {path} holds no config.json: name the directory of a model as"
                " transformers saves it"
            )


def _folders(args) -> Iterator[str]:
    for flag, path in (
        ("--ckpt.output_dir", args.orz.run_dir),
        ("--ckpt.path", args.ckpt.path),
        ("--logger.tensorboard_dir", args.logger.tensorboard_dir),
    ):
        problem = path and _cannot_be_made(path)
        if problem:
            yield f"{flag}: {problem}"
    if not args.data.prompt_dataset:
        yield "--data.prompt_dataset is missing: name a Hugging Face data set or a file"


def _cannot_be_made(path: str) -> str | None:
    """Why no folder ``path`` can be written, with the remedy; None if nothing speaks against it. Makes nothing."""
    folder = os.path.abspath(path)
    try:
        while not os.path.lexists(folder):
            if len(os.path.basename(folder).encode()) > 255:
                return f"{os.path.basename(folder)[:20]}... is too long for a file's name: choose another folder"
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder):
            return f"{folder} is not a folder: choose another one"
    except OSError as error:
        return f"{error}: choose another folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: change its permissions, or choose another folder"
    return None


def check_rollouts(args: SimpleNamespace, prompts: int) -> None:
    """Raise ConfigError if a rollout of ``prompts`` leaves a rank without a sample, or none would train the policy."""
    rollouts = rollouts_of(args, prompts)
    if args.critic.freezing_steps >= rollouts:
        raise ConfigError(
            f"--critic.freezing_steps {args.critic.freezing_steps}: the run has {rollouts} steps, so the policy would"
            " never train: lower it, or raise --train.num_episodes"
        )
    ranks, batch, each = data_parallel_ranks(args), args.rollout.batch_size, args.rollout.n_samples_per_prompt
    # nobody knows beforehand what the filter leaves: one prompt's responses must be enough
    last = 1 if args.algo.dynamic_filtering_enable else prompts % batch or batch
    if last * each < ranks:
        which = "a filtered rollout may have" if args.algo.dynamic_filtering_enable else "the last rollout has"
        raise ConfigError(
            f"--rollout.batch_size {batch}: of {prompts} prompts {which} {last}, which with"
            f" --rollout.n_samples_per_prompt {each} are {last * each} samples, fewer than the {ranks} ranks that"
            " train (--actor.num_nodes x --actor.num_gpus_per_node): raise --rollout.n_samples_per_prompt, or choose a"
            " --rollout.batch_size or --data.max_samples that leaves more"
        )
