"""What is run: the arms, each a few flags that differ from the baseline's, and the figures that compare them."""

from dataclasses import dataclass, field
from pathlib import Path

STEPS = 24
PROMPTS, RESPONSES = 12, 8  # of a rollout
SCALES = (24, 96, STEPS * PROMPTS)  # distinct prompts to train on; all arms see as many prompts in all
HELD_OUT = 128
EVALUATE_EVERY = 12

# The paper's settings are the command's defaults. What is not the paper's here: sizes; learning rates, since a network
# this small learns at rates far above the paper's, without a warm-up of 50 steps; and full determinism, so that arms
# of one seed have the same prompts and the same random numbers.
SHARED = {
    "orz.device": "cpu",
    "data.max_len": 192,
    "rollout.max_new_tokens": 112,
    "rollout.batch_size": PROMPTS,
    "rollout.n_samples_per_prompt": RESPONSES,
    "train.max_tokens_per_gpu": 8192,
    "train.full_determinism_enable": True,
    "actor.adam.lr": 2e-4,
    "critic.adam.lr": 1e-3,
    "orz.warmup_steps": 0,
    "eval.steps": EVALUATE_EVERY,
    "eval.temperature": 1.0,
    "eval.n_samples_per_prompt": 1,
    "orz.cpu_kvcache_mib": 128,
    "orz.report_every": -1,
    "logger.tensorboard_dir": "",
}
# The paper gives no coefficient for its KL arms. STRONG weighs as much as the reward: to answer always in a style that
# the base uses with probability p costs about -STRONG log p, against a reward of at most 1.
WEAK, STRONG = 0.05, 0.5


@dataclass(frozen=True)
class Arm:
    """A name, how figures call it, the flags that differ from SHARED, and on how many distinct prompts it trains."""

    name: str
    label: str
    flags: dict[str, object] = field(default_factory=dict)
    prompts: int = SCALES[-1]


def kl_loss(coefficient: float) -> dict[str, object]:
    """The flags of a KL loss; a penalty on the reward has the coefficient alone."""
    return {"algo.kl.init_coef": coefficient, "algo.kl.use_loss": True, "algo.kl.estimator": "k3"}


BASELINE = "baseline"
ARMS = {
    arm.name: arm
    for arm in (
        Arm(BASELINE, "the paper's settings"),
        Arm("lambda-0.95", "λ = 0.95", {"algo.advantage.lambd": 0.95}),
        Arm("kl-loss", f"KL loss {WEAK}", kl_loss(WEAK)),
        Arm("kl-penalty", f"KL penalty {WEAK}", {"algo.kl.init_coef": WEAK}),
        Arm("kl-loss-strong", f"KL loss {STRONG}", kl_loss(STRONG)),
        Arm("kl-penalty-strong", f"KL penalty {STRONG}", {"algo.kl.init_coef": STRONG}),
        Arm("updates-4", "4 update steps", {"orz.policy_updates": 4}),
        Arm("critic-1", "1 critic update", {"orz.critic_updates": 1}),
        Arm("t-0.6", "T = 0.6", {"rollout.temperature": 0.6}),
        Arm("t-1.2", "T = 1.2", {"rollout.temperature": 1.2}),
        Arm("t-0.6-p-0.95", "T = 0.6, top-p = 0.95", {"rollout.temperature": 0.6, "rollout.top_p": 0.95}),
        Arm(f"prompts-{SCALES[0]}", f"{SCALES[0]} prompts", prompts=SCALES[0]),
        Arm(f"prompts-{SCALES[1]}", f"{SCALES[1]} prompts", prompts=SCALES[1]),
        Arm("head-kaiming", "Kaiming uniform", {"orz.value_head_init": "kaiming"}),
        Arm("head-paper", "U(-√5, √5)", {"orz.value_head_init": "paper"}),
        Arm("old-log-probs", "old log-probs computed", {"orz.old_log_probs": "always"}),
        Arm("cross-fit", "cross-fit values", {"orz.cross_fit_values": True}),
    )
}


@dataclass(frozen=True)
class Figure:
    """A picture: its title, the arms beside the baseline, how the baseline is called in it, its panels, the paper's
    figure, and how many seeds it has unless told."""

    title: str
    arms: tuple[str, ...] = ()
    baseline: str = "the paper's settings"
    panels: tuple[str, ...] = ("reward", "response_length")
    paper: str = ""
    seeds: int = 3


FIGURES = {
    "reward-and-length": Figure("Reward and length rise together", paper="Fig. 2"),
    "lambda": Figure("GAE λ", ("lambda-0.95",), "λ = 1", paper="Fig. 8"),
    "kl": Figure(
        "KL regularisation",
        ("kl-loss", "kl-penalty", "kl-loss-strong", "kl-penalty-strong"),
        "no KL",
        ("reward", "response_length", "held_out"),
        "Fig. 9",
    ),
    "data-scale": Figure(
        "Data scale",
        (f"prompts-{SCALES[1]}", f"prompts-{SCALES[0]}"),
        f"{SCALES[-1]} prompts",
        ("reward", "response_length", "held_out"),
        "Fig. 10",
    ),
    "update-steps": Figure("Policy update steps per rollout", ("updates-4",), "1 update step", paper="Fig. 13"),
    "critic-updates": Figure(
        "Critic updates per rollout",
        ("critic-1",),
        "12 critic updates",
        ("reward", "response_length", "explained_variance"),
        "Sec. 3.1",
    ),
    "temperature": Figure(
        "Sampling",
        ("t-0.6", "t-1.2", "t-0.6-p-0.95"),
        "T = 1",
        ("reward", "response_length", "held_out"),
        "Fig. 15",
        seeds=2,  # many arms
    ),
    "value-head": Figure(
        "Initialisation of the value head",
        ("head-kaiming", "head-paper"),
        "N(0, 1/(H+1)), released code",
        ("reward", "response_length", "explained_variance"),
        "Sec. 3.1",
    ),
    "skipped-forwards": Figure(
        "What is not computed", ("old-log-probs", "cross-fit"), "both skipped as by default", paper="none"
    ),
}


def arms_of(figures: list[str]) -> list[Arm]:
    """The arms that the figures need, each once, the baseline first."""
    names = [BASELINE, *(name for figure in figures for name in FIGURES[figure].arms)]
    return [ARMS[name] for name in dict.fromkeys(names)]


def flags(arm: Arm, seed: int, base: Path, questions: Path, run_dir: Path) -> list[str]:
    """The training command's arguments for one run."""
    values = SHARED | {
        "train.num_episodes": SCALES[-1] // arm.prompts,
        "train.seed": seed,
        "actor.model_name_or_path": base,
        "data.prompt_dataset": questions / f"train-{arm.prompts}.jsonl",
        "eval.dataset": questions / "held-out.jsonl",
        "ckpt.output_dir": run_dir,
    }
    values |= arm.flags
    argv = []
    for name, value in values.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv
