"""Checks of batches, ranks, modes and losses: what must divide, fit or go together. checks.py raises it."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

from openrlhf_orz.settings.critic_checks import cross_fit_problem
from openrlhf_orz.settings.derive import data_parallel_ranks

GROUPED = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")  # estimators that compare a prompt's responses


def batch_problems(args: SimpleNamespace, explicit: set[str]) -> Iterator[str]:
    """A message for each batch size, number of ranks or mode that cannot be; before OpenRLHF's own checks."""
    yield from _rollout(args, explicit)
    yield from _modes(args)
    yield from _sleep(args)
    yield from _parallelism(args)


def step_problems(args: SimpleNamespace) -> Iterator[str]:
    """The same for optimizer steps, shared GPUs and lengths; after OpenRLHF's own checks."""
    yield from _optimizer_steps(args)
    yield from _colocation(args)
    yield from _lengths(args)
    if args.orz.cross_fit_values and (problem := cross_fit_problem(args)):
        yield f"--orz.cross_fit_values {problem}"


def _ranks(group) -> int:
    return group.num_nodes * group.num_gpus_per_node


def _rollout(args, explicit) -> Iterator[str]:
    each, batch, micro = args.rollout.n_samples_per_prompt, args.rollout.batch_size, args.rollout.micro_batch_size
    estimator, updates = args.algo.advantage.estimator, args.orz.policy_updates
    if estimator in GROUPED and each == 1:
        yield (
            f"--algo.advantage.estimator {estimator} compares the responses to one prompt, and"
            " --rollout.n_samples_per_prompt 1 gives one: every advantage would be 0. Give 2 or more"
        )
    if args.algo.dynamic_filtering_enable and each == 1:
        yield (
            "--algo.dynamic_filtering_enable looks at the mean reward of a prompt's responses: give"
            " --rollout.n_samples_per_prompt 2 or more"
        )
    ranks = data_parallel_ranks(args)
    if each * batch // micro < ranks:
        yield (
            f"--rollout.batch_size {batch} x --rollout.n_samples_per_prompt {each} in batches of"
            f" --rollout.micro_batch_size {micro} are {each * batch // micro} batches, fewer than the {ranks} ranks"
            " that train (--actor.num_nodes x --actor.num_gpus_per_node): raise the first two"
        )
    if "train.batch_size" not in explicit and each * batch % updates:
        yield (
            f"--orz.policy_updates {updates} does not divide the rollout of {each * batch} samples"
            " (--rollout.batch_size x --rollout.n_samples_per_prompt): choose a number that does"
        )


def _modes(args) -> Iterator[str]:
    generate, batch = args.rollout.vllm_generate_batch_size, args.rollout.batch_size
    if generate is not None and generate > batch:  # OpenRLHF takes it with --train.async_enable alone
        yield (
            f"--rollout.vllm_generate_batch_size {generate} is above --rollout.batch_size {batch}: no checkpoint would"
            " hold the responses that are drawn ahead, and a resumed run would skip their prompts; leave it out"
        )
    if generate is not None and generate < batch:  # OpenRLHF trains on what one call has generated
        yield (
            f"--rollout.vllm_generate_batch_size {generate} is below --rollout.batch_size {batch}: each step would"
            f" train on {generate} prompts; lower the second, or leave the first out"
        )
    if args.orz.batch_invariant and args.orz.device == "cpu":
        yield "--orz.batch_invariant needs vLLM's kernels for GPUs, H100 and later: leave it out with --orz.device cpu"
    if args.orz.fp32_head and args.orz.batch_invariant:
        yield (
            "--orz.fp32_head does not go with --orz.batch_invariant: vLLM's float32 head takes a product that depends"
            " on the batch; leave one of them out"
        )
    if args.orz.fp32_head and args.algo.kl.init_coef > 0:
        yield (
            f"--orz.fp32_head does not go with --algo.kl.init_coef {args.algo.kl.init_coef:g}: the reference model's"
            " logits are in --ds.param_dtype, and its KL to the policy would not be 0; leave one of them out"
        )
    if args.orz.check_sync and args.train.async_enable:
        yield (
            "--orz.check_sync asks the engines right after a sync, while --train.async_enable has them generate: leave"
            " one of them out"
        )

    seqs, tokens = args.orz.max_num_seqs, args.orz.max_num_batched_tokens
    if seqs is not None and tokens is not None and tokens < seqs:
        yield (
            f"--orz.max_num_batched_tokens {tokens} is below --orz.max_num_seqs {seqs}, of which each computes a"
            " token: raise the first or lower the second"
        )


def _sleep(args) -> Iterator[str]:
    """DeepSpeed's optimizers that cannot leave the GPU; the run would end at its first sleep."""
    ds = args.ds
    bf16 = ds.zero_stage == 1 and ds.param_dtype == "bf16" and ds.grad_accum_dtype == "fp32" and not ds.adam_offload
    if ds.enable_sleep and (ds.zero_stage == 0 or bf16):
        which = "--ds.zero_stage 0" if ds.zero_stage == 0 else "--ds.zero_stage 1 with --ds.grad_accum_dtype fp32"
        yield f"--ds.enable_sleep does not go with {which}, whose states stay on the GPU: give --ds.zero_stage 3"


def _parallelism(args) -> Iterator[str]:
    ring, tensor = args.ds.ring_attn_size, args.ds.tensor_parallel_size
    for role in ("actor", "critic"):
        ranks = _ranks(getattr(args, role))
        if ring * tensor > 1 and ranks % (ring * tensor):
            yield (
                f"--ds.ring_attn_size {ring} x --ds.tensor_parallel_size {tensor} does not divide the {ranks} ranks of"
                f" --{role}.num_nodes x --{role}.num_gpus_per_node"
            )
    shared = args.train.colocate_all or args.train.colocate_actor_ref
    actor, ref = ((group.num_nodes, group.num_gpus_per_node) for group in (args.actor, args.ref))
    if args.algo.kl.init_coef > 0 and shared and actor != ref:
        yield (
            f"--algo.kl.init_coef {args.algo.kl.init_coef:g} loads the reference model, which is to share the policy's"
            f" GPUs: give --ref.num_nodes {actor[0]} and --ref.num_gpus_per_node {actor[1]}"
        )
    if ring > 1 and (args.orz.device == "cpu" or "flash_attention" not in args.ds.attn_implementation):
        yield (
            f"--ds.ring_attn_size {ring} needs --ds.attn_implementation flash_attention_2 on a GPU, not"
            f" {args.ds.attn_implementation} on {args.orz.device}: leave it out"
        )
    if tensor > 1 and args.ds.zero_stage == 3:
        yield (
            f"--ds.tensor_parallel_size {tensor} does not go with --ds.zero_stage 3: the weight sync gathers what one"
            " of the two cuts. Give --ds.zero_stage 1 or 2"
        )
    if args.ds.param_dtype == "fp16" and args.orz.device == "cpu":
        yield "--ds.param_dtype fp16 needs GPUs: DeepSpeed trains in it on few processors. Give bf16 or fp32 on a CPU"
    if args.vllm.tensor_parallel_size > 1 and args.orz.device == "cpu":
        yield f"--vllm.tensor_parallel_size {args.vllm.tensor_parallel_size} needs GPUs: leave it out on a CPU"
    if args.ds.zero_stage == 0 and args.ds.grad_accum_dtype not in (None, args.ds.param_dtype):
        yield (
            f"--ds.grad_accum_dtype {args.ds.grad_accum_dtype} needs --ds.zero_stage 1 or more with --ds.param_dtype"
            f" {args.ds.param_dtype}"
        )
    if tensor > 1 and args.ds.param_dtype != "bf16":
        yield f"--ds.tensor_parallel_size {tensor} needs --ds.param_dtype bf16, not {args.ds.param_dtype}"


def loss_problems(args: SimpleNamespace, explicit: set[str]) -> Iterator[str]:
    """The same for what is trained on: corrections, KL, adapters, optimizers. OpenRLHF checks them late or never."""
    yield from _correction(args.algo.advantage, args.actor.policy_loss_type, explicit)
    kl, estimator = args.algo.kl, args.algo.kl.estimator
    if kl.use_loss and kl.init_coef > 0 and estimator == "k1" and not kl.unbiased_gradient:
        yield (
            "--algo.kl.use_loss with --algo.kl.estimator k1 has a gradient of mean 0: give k3 or k2, or"
            " --algo.kl.unbiased_gradient"
        )
    for role in ("actor", "critic"):
        each = getattr(args, role)
        if each.optim == "muon" and each.max_norm > 0:
            yield (
                f"--{role}.optim muon needs --{role}.max_norm 0: DeepSpeed clips Muon's update, whose norm is far"
                f" above {each.max_norm:g}, instead of the gradient"
            )
        if each.optim == "muon":
            yield from _muon(role, args.ds)
    if args.ds.lora.rank > 0:
        yield from _adapters(args)


def _muon(role: str, ds) -> Iterator[str]:
    """DeepSpeed orthogonalises in ZeRO-1 and 2; elsewhere it steps on plain gradients in silence, or fails late."""
    wide = ds.grad_accum_dtype not in (None, ds.param_dtype)
    for flag, given in (
        (f"--ds.zero_stage {ds.zero_stage}", ds.zero_stage in (0, 3)),
        (f"--ds.grad_accum_dtype {ds.grad_accum_dtype}", wide),
        ("--ds.adam_offload", ds.adam_offload),
        (f"--ds.tensor_parallel_size {ds.tensor_parallel_size}", ds.tensor_parallel_size > 1),
    ):
        if given:
            yield (
                f"--{role}.optim muon does not go with {flag}: DeepSpeed has Muon on whole matrices, in ZeRO-1 and 2."
                " Give --ds.zero_stage 2, without the others (--ds.grad_accum_dtype bf16, where a recipe has it)"
            )


def _correction(advantage, loss, explicit) -> Iterator[str]:
    level, gating = advantage.is_correction_level, advantage.is_correction_gating
    threshold, prefix = advantage.is_correction_threshold, "--algo.advantage.is_correction"
    if level == "off":
        return
    if advantage.is_correction_mode == "clip" and (level == "seq" or gating != "ratio"):
        yield (
            f"{prefix}_mode clip clamps the ratio of a token: give {prefix}_level token and {prefix}_gating ratio, or"
            f" {prefix}_mode mask"
        )
    if gating != "ratio" and len(threshold) > 1 and threshold[0] > 0:
        yield (
            f"{prefix}_gating {gating} is bounded from above alone: give {prefix}_threshold HIGH, one number (the"
            " default is for ratios)"
        )
    ignored = [n for n in ("mode", "gating", "threshold") if f"algo.advantage.is_correction_{n}" in explicit]
    if loss == "gspo" and ignored:
        yield (
            f"{prefix}_{ignored[0]} does nothing with --actor.policy_loss_type gspo, whose ratio is to vLLM's"
            f" log-probs as soon as {prefix}_level is on: leave it out"
        )


def _adapters(args) -> Iterator[str]:
    if args.ds.tensor_parallel_size > 1:
        yield f"--ds.lora.rank needs whole weights: leave --ds.tensor_parallel_size {args.ds.tensor_parallel_size} out"
    if "muon" in (args.actor.optim, args.critic.optim):
        yield "--ds.lora.rank does not go with --actor.optim muon or --critic.optim muon: leave it out"
    apart = not args.train.colocate_all or args.train.async_enable or args.vllm.sync_backend != "nccl"
    if args.orz.device == "cuda" and apart:
        yield (
            "--ds.lora.rank needs engines on the GPUs that train, which get the merged weights: give"
            " --train.colocate_all, without --train.async_enable"
        )
    whole = {"lm_head", "embed_tokens", "embed_in", "embed_out", "wte"} & set(args.ds.lora.target_modules)
    if whole:
        yield f"--ds.lora.target_modules {min(whole)}: embeddings and head get no adapters. Leave it out"


def _optimizer_steps(args) -> Iterator[str]:
    samples, batch = args.rollout.batch_size * args.rollout.n_samples_per_prompt, args.train.batch_size
    updates, critic_updates = args.orz.policy_updates, args.orz.critic_updates
    if updates == 1 and batch != samples:
        yield (
            f"--train.batch_size {batch} is not the rollout of {samples} samples (--rollout.batch_size"
            f" {args.rollout.batch_size} x --rollout.n_samples_per_prompt {args.rollout.n_samples_per_prompt}): strict"
            " on-policy training takes one policy step for each rollout. Leave --train.batch_size out, or say"
            " --orz.policy_updates K for an off-policy run"
        )
    if updates == 1 and args.train.max_epochs != 1:
        yield (
            f"--train.max_epochs {args.train.max_epochs} repeats the rollout: say --orz.policy_updates 2 or more"
            " (steps per epoch) for an off-policy run"
        )
    if updates > 1 and batch * updates != samples:
        yield (
            f"--train.batch_size {batch} x --orz.policy_updates {updates} is not the rollout of {samples} samples:"
            " leave --train.batch_size out"
        )
    dp_size = data_parallel_ranks(args)
    per_rank = samples // dp_size
    if per_rank < updates:
        yield (
            f"--orz.policy_updates {updates} needs as many samples on each of {dp_size} ranks, there are {per_rank}"
        )
    if args.critic.model_name_or_path and per_rank < critic_updates:
        yield (
            f"--orz.critic_updates {critic_updates} needs as many samples on each of {dp_size} ranks, there are"
            f" {per_rank}: lower it, or raise --rollout.batch_size or --rollout.n_samples_per_prompt"
        )


def _colocation(args) -> Iterator[str]:
    ranks, critic_ranks = _ranks(args.actor), _ranks(args.critic)
    engines = args.vllm.num_engines * args.vllm.tensor_parallel_size
    if args.train.colocate_all and not args.train.async_enable and engines != ranks:
        yield (
            "models share GPUs (--train.colocate_all, the default where none is laid out by hand):"
            f" --vllm.num_engines x --vllm.tensor_parallel_size, now {engines}, must equal --actor.num_nodes x"
            f" --actor.num_gpus_per_node, {ranks}"
        )
    if args.train.colocate_all and args.critic.model_name_or_path and critic_ranks != ranks:
        yield (
            "models share GPUs (--train.colocate_all, the default where none is laid out by hand):"
            f" --critic.num_nodes x --critic.num_gpus_per_node, now {critic_ranks}, must equal --actor.num_nodes x"
            f" --actor.num_gpus_per_node, {ranks}"
        )
    elif args.critic.model_name_or_path and ranks % critic_ranks:  # each takes the samples of as many policy ranks
        yield (
            f"--critic.num_nodes x --critic.num_gpus_per_node, {critic_ranks} ranks, must divide --actor.num_nodes x"
            f" --actor.num_gpus_per_node, {ranks}: the critic's ranks share the policy's samples"
        )
    if args.orz.check_sync and args.vllm.enable_sleep:
        yield (
            "--orz.check_sync asks the engines right after a sync, when --vllm.enable_sleep has their cache asleep:"
            " leave one of them out"
        )


def _lengths(args) -> Iterator[str]:
    new_tokens = args.rollout.max_new_tokens
    if new_tokens is not None and not 1 <= new_tokens < args.data.max_len:
        yield (
            f"--rollout.max_new_tokens {new_tokens} leaves no room for a prompt in --data.max_len {args.data.max_len}:"
            " leave it out to give each response what its prompt leaves"
        )


def replay_problems(args, explicit: set[str]) -> Iterator[str]:
    """What a rollout that is read back cannot have: --orz.replay starts no engines."""
    if args.orz.replay is None:
        return
    if not os.path.isdir(os.path.join(args.orz.replay, "rollouts")):
        yield f"--orz.replay: {args.orz.replay} has no rollouts/: name a run's directory"
    elif os.path.realpath(args.orz.replay) == os.path.realpath(args.orz.run_dir):
        yield "--orz.replay: a run cannot replay itself, as it writes there: choose another --ckpt.output_dir"
    own = ("train.agent_func_path", "orz.agent_cls", "orz.reward_cls", "reward.remote_url")
    for name, given, why in (
        ("train.async_enable", args.train.async_enable, "draws rollouts in a process of its own"),
        ("algo.dynamic_filtering_enable", args.algo.dynamic_filtering_enable, "draws other prompts"),
        *((name, name in explicit, "would not be asked: rewards are read") for name in own),
        ("eval.dataset", args.eval.dataset, "is answered by engines"),
        ("orz.check_sync", args.orz.check_sync, "asks engines"),
        ("orz.on_logprob_gap", args.orz.on_logprob_gap != "warn", "needs vLLM's log-probs"),
        (
            "algo.advantage.is_correction_level",
            args.algo.advantage.is_correction_level != "off",
            "needs vLLM's log-probs",
        ),
    ):
        if given:
            yield f"--{name} {why}, and --orz.replay starts none: leave one of them out"
