"""What flags may be, one by one and together, on OpenRLHF's flat namespace; pure, imports nothing heavy."""

import math
import os
from importlib.util import find_spec

from openrlhf_orz.settings.redact import redact

# flags by what they may be; a list of numbers is checked one by one, None is always allowed
RANGES = {
    "at least 1": (
        lambda x: x >= 1,
        "rollout.batch_size rollout.n_samples_per_prompt rollout.micro_batch_size rollout.vllm_generate_batch_size "
        "rollout.max_tokens_per_gpu rollout.max_new_tokens train.batch_size train.micro_batch_size train.num_episodes "
        "train.max_epochs train.max_tokens_per_gpu train.async_queue_size data.max_len data.max_samples "
        "actor.num_nodes actor.num_gpus_per_node critic.num_nodes critic.num_gpus_per_node ref.num_nodes "
        "ref.num_gpus_per_node reward.num_nodes reward.num_gpus_per_node vllm.num_engines vllm.tensor_parallel_size "
        "ds.tensor_parallel_size ds.ring_attn_size ds.ring_attn_head_stride ds.zpg ds.lora.alpha algo.kl.horizon "
        "actor.muon.ns_steps critic.muon.ns_steps eval.n_samples_per_prompt logger.logging_steps ckpt.max_num "
        "orz.policy_updates orz.critic_updates orz.max_prompt_len orz.grader_workers orz.rollout_dump_max "
        "orz.sync_bucket_mib orz.cpu_kvcache_mib orz.max_skipped_steps",
    ),
    "at least 1, or -1 for never": (lambda x: x == -1 or x >= 1, "eval.steps ckpt.save_steps"),
    "at least 0": (
        lambda x: x >= 0,
        "orz.warmup_steps orz.rollout_dump_every orz.max_restarts orz.start_timeout_s orz.generation_timeout_s "
        "orz.training_timeout_s orz.trainer_timeout_s orz.sync_timeout_s orz.checkpoint_timeout_s orz.stop_timeout_s orz.logprob_gap_every "
        "data.dataloader_num_workers data.max_images_per_prompt ds.lora.rank "
        "algo.kl.init_coef actor.adam.lr critic.adam.lr actor.muon.lr critic.muon.lr actor.adam.weight_decay "
        "critic.adam.weight_decay actor.max_norm critic.max_norm actor.aux_loss_coef eval.temperature "
        "reward.overlong_penalty_factor algo.advantage.is_correction_threshold actor.eps_clip actor.eps_clip_low_high",
    ),
    "at least -1": (lambda x: x >= -1, "critic.freezing_steps local_rank orz.report_every"),
    "above 0": (
        lambda x: x > 0,
        "rollout.temperature critic.value_clip actor.adam.eps critic.adam.eps algo.kl.target ckpt.max_mem "
        "reward.overlong_buffer_len",
    ),
    "above 1": (lambda x: x > 1, "actor.dual_clip"),
    "at most 1": (lambda x: x <= 1, "reward.stop_properly_penalty_coef"),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, "rollout.top_p vllm.gpu_memory_utilization"),
    "in [0, 1]": (
        lambda x: 0 <= x <= 1,
        "algo.advantage.gamma algo.advantage.lambd actor.lr_warmup_ratio critic.lr_warmup_ratio actor.min_lr_ratio "
        "critic.min_lr_ratio train.ema_beta",
    ),
    "at least 0 and below 1": (
        lambda x: 0 <= x < 1,
        "actor.adam.betas critic.adam.betas actor.muon.momentum critic.muon.momentum ds.lora.dropout",
    ),
    "0, 1, 2 or 3": (lambda x: x in (0, 1, 2, 3), "ds.zero_stage"),
    "in [0, 4294967295]": (lambda x: 0 <= x < 2**32, "train.seed"),
    "a finite number": (math.isfinite, "actor.entropy_coef reward.clip_range algo.dynamic_filtering_range"),
}
MAY_BE_INFINITE = {"ckpt.max_mem"}

SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr",
    "cosine_warmup_with_min_lr", "polynomial", "inverse_sqrt",
)  # fmt: skip
ATTENTION = ("orz_packed", "flash_attention_2", "flash_attention_3", "sdpa", "eager", "flex_attention")
GROUPED = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")


def wrong_numbers(values: dict) -> list[str]:
    """A message for each number of the flat arguments ``values`` that makes no sense; a NaN never does."""
    problems = []
    for words, (allowed, names) in RANGES.items():
        for name in names.split():
            given = values.get(name)
            for x in given if isinstance(given, (list, tuple)) else [given]:
                finite = x is None or math.isfinite(x) or (name in MAY_BE_INFINITE and x > 0)
                if not finite or (x is not None and not allowed(x)):
                    problems.append(f"--{name} is {x}: it must be {words if finite else 'a finite number'}")
                    break
    return problems


def wrong_combinations(values: dict, explicit: set[str]) -> list[str]:
    """A message for each combination of the flat arguments that cannot be, and each name of something not there.

    ``explicit`` are the flags that the user gave. Numbers have been checked before.
    """
    problems: list[str] = []

    def refuse(when, message):
        if when:
            problems.append(message)

    for check in (_names, _numbers_together, _batches, _ranks, _what_is_graded, _packages):
        check(values, explicit, refuse)
    return problems


def _names(values, explicit, refuse):
    for role in ("actor", "critic"):
        name = values[f"{role}.lr_scheduler"]
        refuse(name not in SCHEDULERS, f"--{role}.lr_scheduler {name} is not one of {', '.join(SCHEDULERS)}")
    name = values["ds.attn_implementation"]
    refuse(
        name not in ATTENTION and "/" not in name,
        f"--ds.attn_implementation {name} is not one of {', '.join(ATTENTION)}, nor a kernel of the hub (OWNER/NAME)",
    )
    name = values["vllm.sync_backend"]
    refuse(name not in ("nccl", "gloo"), f"--vllm.sync_backend {name} is not one of nccl, gloo")
    template = values["data.input_template"]
    refuse(
        template is not None and "{}" not in template,
        f"--data.input_template {template!r} has no {{}} where the question goes: put it in, or leave the flag out"
        " and use --orz.prompt_template",
    )
    refuse(
        template is not None and "orz.prompt_template" in explicit,
        "--data.input_template and --orz.prompt_template both say what stands around a question: leave one out",
    )
    refuse(
        values["data.apply_chat_template"] and (template is not None or "orz.prompt_template" in explicit),
        "--data.apply_chat_template takes the tokenizer's template: leave --orz.prompt_template and"
        " --data.input_template out",
    )
    refuse("" in values["orz.stop"], "--orz.stop has an empty text, at which nothing can stop: leave it out")


def _numbers_together(values, explicit, refuse):
    for name in ("reward.clip_range", "algo.dynamic_filtering_range"):
        low, high = values[name]
        refuse(low >= high, f"--{name} {low:g} {high:g}: give the lower number first, then a higher one")
    threshold = values["algo.advantage.is_correction_threshold"]
    refuse(
        len(threshold) > 2 or list(threshold) != sorted(threshold),
        "--algo.advantage.is_correction_threshold takes HIGH, or LOW and HIGH, in this order",
    )
    refuse(
        values["eval.steps"] >= 1 and not values["eval.dataset"],
        f"--eval.steps {values['eval.steps']} has nothing to evaluate: name it by --eval.dataset, or leave it out",
    )
    refuse(
        values["eval.dataset"] and values["eval.steps"] == -1,
        f"--eval.dataset {values['eval.dataset']} would never be evaluated: say every how many steps by --eval.steps",
    )
    refuse(
        values["reward.overlong_buffer_len"] is not None
        and (values["rollout.max_new_tokens"] or 0) < values["reward.overlong_buffer_len"],
        f"--reward.overlong_buffer_len {values['reward.overlong_buffer_len']} is counted from the end of"
        f" --rollout.max_new_tokens ({values['rollout.max_new_tokens']}): give that, at least as large",
    )
    if values["data.prompt_probs"] is not None:
        _probabilities(values, refuse)


def _probabilities(values, refuse):
    given, datasets = values["data.prompt_probs"], (values["data.prompt_dataset"] or "").split(",")
    try:
        numbers = [float(x) for x in given.split(",")]
    except ValueError:
        numbers = []
    wrong = len(numbers) != len(datasets) or not all(0 < x <= 1 for x in numbers) or abs(sum(numbers) - 1) > 1e-6
    refuse(
        wrong,
        f"--data.prompt_probs {given}: give a number above 0 for each of the {len(datasets)} data sets in"
        " --data.prompt_dataset, with commas between them, 1 in all",
    )


def _batches(values, explicit, refuse):
    samples, batch = values["rollout.n_samples_per_prompt"], values["rollout.batch_size"]
    estimator = values["algo.advantage.estimator"]
    refuse(
        estimator in GROUPED and samples == 1,
        f"--algo.advantage.estimator {estimator} compares the responses to one prompt, and"
        " --rollout.n_samples_per_prompt 1 gives one: every advantage would be 0. Give 2 or more",
    )
    refuse(
        values["algo.dynamic_filtering_enable"] and samples == 1,
        "--algo.dynamic_filtering_enable looks at the mean reward of a prompt's responses: give"
        " --rollout.n_samples_per_prompt 2 or more",
    )
    ranks = values["actor.num_nodes"] * values["actor.num_gpus_per_node"]
    ranks = ranks // values["ds.ring_attn_size"] // values["ds.tensor_parallel_size"]
    micro = values["rollout.micro_batch_size"]
    refuse(
        samples * batch // micro < ranks,
        f"--rollout.batch_size {batch} x --rollout.n_samples_per_prompt {samples} in batches of"
        f" --rollout.micro_batch_size {micro} are {samples * batch // micro} batches, fewer than the {ranks} ranks"
        " that train (--actor.num_nodes x --actor.num_gpus_per_node): raise the first two",
    )
    generate = values["rollout.vllm_generate_batch_size"]
    refuse(
        generate is not None and generate > batch and not values["train.async_enable"],
        f"--rollout.vllm_generate_batch_size {generate} is above --rollout.batch_size {batch}: that needs"
        " --train.async_enable; lower it or leave it out",
    )
    refuse(
        values["train.partial_rollout_enable"] and not values["train.async_enable"],
        "--train.partial_rollout_enable needs --train.async_enable",
    )
    refuse(
        values["orz.check_sync"] and values["train.async_enable"],
        "--orz.check_sync asks the engines right after a sync, while --train.async_enable has them generate: leave"
        " one of them out",
    )


def _ranks(values, explicit, refuse):
    ring, tensor = values["ds.ring_attn_size"], values["ds.tensor_parallel_size"]
    for role in ("actor", "critic"):
        ranks = values[f"{role}.num_nodes"] * values[f"{role}.num_gpus_per_node"]
        refuse(
            ring * tensor > 1 and ranks % (ring * tensor),
            f"--ds.ring_attn_size {ring} x --ds.tensor_parallel_size {tensor} does not divide the {ranks} ranks of"
            f" --{role}.num_nodes x --{role}.num_gpus_per_node",
        )
    shared = values["train.colocate_all"] or values["train.colocate_actor_ref"]
    actor, ref = ([values[f"{role}.num_nodes"], values[f"{role}.num_gpus_per_node"]] for role in ("actor", "ref"))
    refuse(
        values["algo.kl.init_coef"] > 0 and shared and actor != ref,
        f"--algo.kl.init_coef {values['algo.kl.init_coef']:g} loads the reference model, which is to share the policy's"
        f" GPUs: give --ref.num_nodes {actor[0]} and --ref.num_gpus_per_node {actor[1]}",
    )
    refuse(
        ring > 1 and "flash_attention" not in values["ds.attn_implementation"],
        f"--ds.ring_attn_size {ring} needs --ds.attn_implementation flash_attention_2 (and a GPU), not"
        f" {values['ds.attn_implementation']}",
    )
    refuse(
        tensor > 1 and values["ds.param_dtype"] != "bf16",
        f"--ds.tensor_parallel_size {tensor} needs --ds.param_dtype bf16, not {values['ds.param_dtype']}",
    )


def _what_is_graded(values, explicit, refuse):
    agent, url = values["train.agent_func_path"], values["reward.remote_url"]
    refuse(
        agent is not None and not (agent.endswith(".py") and os.path.isfile(agent)),
        f"--train.agent_func_path: there is no Python file {agent}",
    )
    first = (url or "").split(",")[0]
    refuse(
        first.endswith(".py") and not os.path.isfile(first),
        f"--reward.remote_url: there is no file {first}",
    )
    refuse(
        first not in ("", "agent", "orz", "none")
        and not first.endswith(".py")
        and not first.startswith(("http://", "https://")),
        f"--reward.remote_url {redact(first)} is neither http://... nor a .py file with a reward_func",
    )
    refuse(
        values["reward.model_name_or_path"] is not None and agent is None and url is None,
        "--reward.model_name_or_path would not be used: answers are graded against the references. Leave it out, or"
        " serve the model and name it by --reward.remote_url",
    )
    images = values["data.max_images_per_prompt"]
    refuse(images > 0, f"--data.max_images_per_prompt {images}: questions are text alone here. Leave it out")


def _packages(values, explicit, refuse):
    for name, wanted, package in (
        ("use_ms", values["use_ms"], "modelscope"),
        ("ds.load_in_4bit", values["ds.load_in_4bit"], "bitsandbytes"),
        ("ds.use_liger_kernel", values["ds.use_liger_kernel"], "liger_kernel"),
        ("ds.attn_implementation flash_attention_2",
         values["ds.attn_implementation"] == "flash_attention_2", "flash_attn"),
    ):  # fmt: skip
        refuse(
            wanted and not find_spec(package),
            f"--{name} needs the package {package}, which is not installed here: install it, or leave the flag out",
        )


def cannot_be_made(path: str) -> str | None:
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
