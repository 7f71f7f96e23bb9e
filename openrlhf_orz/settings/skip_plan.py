"""Which forwards a step runs besides training, as the flags say: for the console, the plan and the report of its cost.
``trainer/experience_maker.py:OrzExperienceMaker._dispatch_forward`` acts. Imports nothing heavy.

Costs are in F, one forward of one model over all tokens of the rollout. Training a model costs 3F, with gradient
checkpointing 4F.
"""

from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf_orz.settings.critic_checks import critic_works_beside


@dataclass(frozen=True)
class Forward:
    """One forward over the rollout: whether it runs, and why or why not."""

    name: str
    runs: bool
    reason: str


def needs_old_log_probs(args: SimpleNamespace) -> str | None:
    """Why a step needs the actor's forward for old log-probs, or None where one policy step makes it redundant.

    They are of the policy as the step finds it, also where an older one has sampled (--train.async_enable).
    """
    if args.orz.old_log_probs == "always":
        return "--orz.old_log_probs always"
    if args.orz.policy_updates > 1 or args.train.max_epochs > 1:
        return "several policy steps per rollout"
    if args.algo.kl.init_coef > 0:
        return "--algo.kl.init_coef compares the policy with the reference model"
    return None


def skip_plan(args: SimpleNamespace) -> list[Forward]:
    """The forwards of a step in the order in which OpenRLHF runs them. ``args``: nested and checked."""
    reference, old = args.algo.kl.init_coef > 0, needs_old_log_probs(args)
    plan = [
        Forward(
            "reference model",
            reference,
            f"--algo.kl.init_coef {args.algo.kl.init_coef:g}" if reference else "no KL: the model is not even loaded",
        ),
        Forward("old log-probs", old is not None, old or "one on-policy step takes them from its own forward"),
    ]
    if not args.critic.model_name_or_path:
        values = Forward("values", False, f"--algo.advantage.estimator {args.algo.advantage.estimator} has no critic")
    elif args.orz.cross_fit_values:
        values = Forward(
            "values",
            False,
            "--orz.cross_fit_values takes each in the critic's own training forward, before its update",
        )
    else:
        values = Forward("values", True, "advantages use the critic as it was before this step's updates")
    return [*plan, values]


def cost(args: SimpleNamespace) -> int:
    """Cost of a step, forwards and training together, in F."""
    training = 4 if args.actor.gradient_checkpointing_enable else 3
    passes = 1 + (args.orz.critic_epochs if args.critic.model_name_or_path else 0)
    return sum(forward.runs for forward in skip_plan(args)) + passes * training * args.train.max_epochs


def describe_forwards(args: SimpleNamespace) -> str:
    """The plan as text for the console: a line for each forward, and the cost of a step."""
    lines = [
        f"[orz] forward for {forward.name}: {'runs' if forward.runs else 'skipped'} ({forward.reason})"
        for forward in skip_plan(args)
    ]
    lines.append(f"[orz] a step costs {cost(args)} forwards over its rollout, training included")
    if critic_works_beside(args):
        lines.append("[orz] the critic works on while the next rollout is generated (--orz.critic_beside)")
    return "\n".join(lines)


def describe_attention(args: SimpleNamespace) -> str:
    """Which attention the trainers use and whether shared prefixes are computed once, in a line for the console."""
    name = args.ds.attn_implementation
    if not args.ds.packing_samples:
        return f"[orz] attention: {name}, on padded micro-batches; prefixes are not shared"
    if name != "orz_packed":
        shared = "prefixes are not shared: --ds.attn_implementation orz_packed shares them"
        return f"[orz] attention: {name}, as --ds.attn_implementation or ring attention asks; {shared}"
    if args.orz.device == "cpu" or args.ds.param_dtype == "fp32":
        kernel = "each sequence of a pack to itself, in groups of like length"
    else:
        kernel = "PyTorch's varlen kernel, after each process has compared it with SDPA; its log says if it differs"
    shared = "computed once" if args.orz.share_prefixes == "auto" else "not shared (--orz.share_prefixes never)"
    if args.actor.aux_loss_coef > 0:
        shared = "not shared, as the router's loss counts tokens (--actor.aux_loss_coef)"
    return f"[orz] attention: orz_packed, {kernel}; prefixes of a pack's sequences: {shared}"
