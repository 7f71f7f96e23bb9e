"""What one of OpenRLHF's flags does here: it works, works beside another one, is refused, or does nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Effect:
    """Of a flag that is given with a value other than OpenRLHF's default.

    Args:
        words: for docs/flags.md and the console.
        acts: from the flat arguments, derived ones included: whether the flag does anything; None: it always does.
        refused: a flag that does nothing is an error; otherwise the run says so and goes on.
        off: a flag that does nothing is set back to OpenRLHF's default, as OpenRLHF would act on it.
    """

    words: str = "works"
    acts: Callable[[dict], bool] | None = None
    refused: bool = False
    off: bool = False

    def or_refused(self) -> "Effect":
        """The same, of a flag that must not do nothing in silence."""
        return replace(self, refused=True, words=f"{self.words}, refused without")

    def or_off(self) -> "Effect":
        """The same, of a flag that is switched off where it would do nothing."""
        return replace(self, off=True)


WORKS = Effect()


def only_with(flag: str, acts: Callable[[dict], bool] | None = None) -> Effect:
    """Works beside ``flag``, with a value where one matters."""
    return Effect(f"only with `--{flag}`", acts or (lambda values: bool(values[flag])))


def not_here(why: str, refused: bool = True) -> Effect:
    """Never works here: ``why``, and the remedy."""
    return Effect(f"{'refused' if refused else 'no effect'}: {why}", lambda values: False, refused, off=not refused)


ASYNC = only_with("train.async_enable")
CORRECTION = only_with(
    "algo.advantage.is_correction_level token` or `seq", lambda v: v["algo.advantage.is_correction_level"] != "off"
)
CRITIC = only_with("algo.advantage.estimator gae", lambda v: v["algo.advantage.estimator"] == "gae")
NO_CRITIC = Effect(  # OpenRLHF would add the routers' loss to the critic's, whose model gives none
    "only without a critic (an `--algo.advantage.estimator` other than gae), refused with one",
    lambda v: v["algo.advantage.estimator"] != "gae",
    refused=True,
)
DISCOUNT = only_with(
    "algo.advantage.estimator gae` or `reinforce", lambda v: v["algo.advantage.estimator"] in ("gae", "reinforce")
)
EMA = only_with("train.enable_ema")
EVALUATION = only_with("eval.dataset")
FILTER = only_with("algo.dynamic_filtering_enable")
GPU = only_with("orz.device cuda", lambda v: v["orz.device"] == "cuda")
KL_LOSS = only_with("algo.kl.use_loss")
LORA = only_with("ds.lora.rank")
MUON_FIXED = not_here("DeepSpeed has it fixed")
NO_REWARD_MODEL = not_here("there is no reward model", refused=False)
SEVERAL_STEPS = Effect(
    "only with several policy steps a rollout (`--orz.policy_updates` above 1)",
    lambda v: v["orz.policy_updates"] > 1 or v["train.max_epochs"] > 1,
)
OVERLONG = only_with("reward.overlong_buffer_len", lambda v: v["reward.overlong_buffer_len"] is not None)
RECOMPUTE = only_with("actor.gradient_checkpointing_enable")
REFERENCE = only_with("algo.kl.init_coef", lambda v: v["algo.kl.init_coef"] > 0)
REFERENCE_3 = only_with(  # DeepSpeed offloads no weights below ZeRO-3
    "algo.kl.init_coef` and `--ds.zero_stage 3", lambda v: v["algo.kl.init_coef"] > 0 and v["ds.zero_stage"] == 3
)
SCALED = only_with(
    "algo.advantage.estimator gae`, `reinforce` or `reinforce_baseline",
    lambda v: v["algo.advantage.estimator"] in ("gae", "reinforce", "reinforce_baseline"),
)
WANDB = only_with("logger.wandb.key")


def muon(role: str) -> Effect:
    """Of Muon's flags."""
    return only_with(f"{role}.optim muon", lambda v: v[f"{role}.optim"] == "muon")


def schedule(role: str) -> Effect:
    """Of the schedulers that end at a minimum."""
    with_minimum = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    return only_with(f"{role}.lr_scheduler cosine_with_min_lr", lambda v: v[f"{role}.lr_scheduler"] in with_minimum)
