"""Checks of our flags for the critic and what stands in its place (docs/critic.md). checks.py raises them."""

import re
from collections.abc import Iterator
from types import SimpleNamespace


def critic_problems(args: SimpleNamespace, explicit: set[str]) -> Iterator[str]:
    """A message for each of them that cannot be, or would do nothing."""
    if args.orz.rollout_values and args.orz.cross_fit_values:
        late = "with --orz.cross_fit_values values come when the rollout is on the ranks"
        yield f"--orz.rollout_values: {late}: leave one of them out"
    if args.orz.rollout_values and not args.orz.rollout_dump_every:
        yield "--orz.rollout_values does nothing with --orz.rollout_dump_every 0: leave one of them out"
    yield from _lambda(args)
    yield from _baseline(args)
    yield from _frozen(args)
    yield from _value_loss(args, explicit)
    if args.orz.critic_beside == "always" and (problem := _beside_problem(args)):
        yield f"--orz.critic_beside always {problem}"


def _lambda(args) -> Iterator[str]:
    given = args.orz.lambda_policy
    if given not in (None, "length") and not _is_share(given):
        yield f"--orz.lambda_policy {given} is neither a number in [0, 1] nor length"


def _baseline(args) -> Iterator[str]:
    baseline, given = args.orz.baseline, f"--orz.baseline {args.orz.baseline}"
    if baseline == "critic":
        return
    if args.algo.advantage.gamma != 1:
        yield f"{given} compares whole returns, which needs --algo.advantage.gamma 1"
    if baseline == "group" and args.rollout.n_samples_per_prompt == 1:
        yield f"{given} compares the responses to a prompt: give --rollout.n_samples_per_prompt 2 or more"
    if baseline != "auto" and args.orz.lambda_policy is not None:
        yield f"--orz.lambda_policy weighs the critic's values, and {given} uses none: leave it out"


def _frozen(args) -> Iterator[str]:
    what = args.orz.freeze_critic
    if what not in ("none", "attention", "embeddings") and not re.fullmatch(r"layers:[1-9]\d{0,3}", what):
        yield f"--orz.freeze_critic {what} is none of none, attention, embeddings, layers:N with N at least 1"
    if what != "none" and args.ds.lora.rank > 0:
        yield f"--orz.freeze_critic {what}: with --ds.lora.rank only adapters and the value head train. Leave one out"


def _beside_problem(args) -> str | None:
    if args.orz.device == "cuda" and args.train.colocate_all and not args.train.async_enable:
        return "needs GPUs of the critic's own: give --critic.num_gpus_per_node without --train.colocate_all"
    if args.ds.enable_sleep:
        return "needs a critic that stays in memory: leave --ds.enable_sleep out"
    if args.train.async_enable:
        return "has no effect with --train.async_enable, which generates all the time: leave it out"
    if args.orz.cross_fit_values:
        return "cannot be with --orz.cross_fit_values, whose policy waits for the critic: leave one of them out"
    return None


def cross_fit_problem(args: SimpleNamespace) -> str | None:
    """Why --orz.cross_fit_values cannot work, with the remedy; None if it can. Without a critic it has no effect."""
    advantage = args.algo.advantage
    if advantage.gamma != 1 or advantage.lambd != 1:
        return "needs --algo.advantage.gamma 1 and --algo.advantage.lambd 1: else the returns depend on the values"
    if args.orz.lambda_policy not in (None, "1", "1.0"):
        return "needs --orz.lambda_policy 1: else the advantages depend on all values of a response. Leave it out"
    if args.orz.baseline != "critic":
        return "is about the critic's values: leave --orz.baseline out"
    if args.critic.value_clip is not None:
        return "has no values before the update for --critic.value_clip to clip to: leave one of them out"
    if args.train.max_epochs > 1:
        return "takes each value in its sample's only critic update: leave --train.max_epochs at 1"
    if args.train.async_enable:
        return "trains the critic before the policy: leave --train.async_enable out"
    if args.critic.freezing_steps > 0:
        return "trains both models in each step: leave --critic.freezing_steps out"
    if args.critic.num_nodes * args.critic.num_gpus_per_node != args.actor.num_nodes * args.actor.num_gpus_per_node:
        return "hands values from critic rank to policy rank: give both as many (--critic.num_gpus_per_node)"
    return None


def critic_works_beside(args: SimpleNamespace) -> bool:
    """Whether the critic's training may last until the next rollout is there (``--orz.critic_beside``)."""
    if not args.critic.model_name_or_path or args.orz.critic_beside == "never":
        return False
    alone = args.orz.critic_beside == "always" or not args.train.colocate_all
    return alone and _beside_problem(args) is None


def takes_early_values(args: SimpleNamespace) -> bool:
    """Whether the critic takes values while a rollout is generated.

    Not where responses may wait for a later step's critic, or batches are OpenRLHF's.
    """
    own_batches = args.orz.fixed_micro_batches or args.ds.packing_samples
    waits = args.algo.dynamic_filtering_enable or args.orz.replay is not None
    return critic_works_beside(args) and own_batches and not waits


def returns_range(args: SimpleNamespace) -> tuple[float, float]:
    """In which range rewards lie: verifiers' in [0, 1], those of one's own in ``--reward.clip_range``."""
    return (0.0, 1.0) if args.orz.verifier_grades else tuple(args.reward.clip_range)


def _value_loss(args, explicit) -> Iterator[str]:
    loss, given = args.orz.value_loss, f"--orz.value_loss {args.orz.value_loss}"
    if loss == "mse":
        return
    if not args.orz.verifier_grades and "reward.clip_range" not in explicit:
        yield f"{given} needs to know in which range your rewards lie: give --reward.clip_range LOW HIGH"
    low, high = returns_range(args)
    if loss == "bce" and not 0 <= low < high <= 1:
        yield f"{given} needs rewards in [0, 1]: give --reward.clip_range 0 1, or --orz.value_loss hl_gauss"
    if args.algo.advantage.gamma != 1:
        yield f"{given} needs --algo.advantage.gamma 1"
    if args.algo.kl.init_coef > 0 and not args.algo.kl.use_loss:
        yield f"{given}: a KL penalty takes returns out of their range: give --algo.kl.use_loss"
    for name in ("overlong_buffer_len", "stop_properly_penalty_coef"):
        if getattr(args.reward, name) is not None:
            yield f"{given}: --reward.{name} takes returns out of their range: leave one of them out"
    if args.critic.value_clip is not None:
        yield f"{given}: --critic.value_clip is about squared errors: leave it out"
    if args.reward.normalize_enable:
        yield f"{given}: --reward.normalize_enable would shift the head's outputs: leave it out"
    if args.ds.tensor_parallel_size > 1 or args.ds.ring_attn_size > 1:
        yield f"{given} does not go with --ds.tensor_parallel_size or --ds.ring_attn_size above 1: leave it out"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
