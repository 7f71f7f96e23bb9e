"""What is run: the arms, each a few flags that differ from the baseline's, and the figures that compare them."""

from dataclasses import dataclass, field
from pathlib import Path

STEPS, LONG_STEPS = 24, 16  # of a run; the long task's have three times as many tokens
OVER_STEPS = 64  # of the long task where over-training is the point
PROMPTS, RESPONSES = 12, 8  # of a rollout
SCALES = (24, 96, STEPS * PROMPTS)  # distinct prompts to train on; all arms see as many prompts in all
MOST = OVER_STEPS * PROMPTS
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


# What the tasks differ in. The long one's responses grow to 200 tokens, with a chance to give up at each item. That of
# forms is the counting one with answers that have units, intervals and tiny numbers.
TASKS: dict[str, dict[str, object]] = {
    "counting": {},
    "long": {
        "data.max_len": 448,
        "rollout.max_new_tokens": 352,
        "data.max_samples": LONG_STEPS * PROMPTS,
        "eval.steps": LONG_STEPS,
    },
    "forms": {},
}
HALF, PRETRAINED = "half", "pretrained"  # critics that are made before the runs


@dataclass(frozen=True)
class Arm:
    """A name, how figures call it, the flags that differ from its task's, and on how many distinct prompts it trains.

    ``critic``: the model that its critic begins from, if it is not the policy's. ``length``: steps, if not its task's.
    """

    name: str
    label: str
    flags: dict[str, object] = field(default_factory=dict)
    prompts: int = SCALES[-1]
    task: str = "counting"
    critic: str = ""
    length: int | None = None

    @property
    def steps(self) -> int:
        return self.length or (LONG_STEPS if self.task == "long" else STEPS)


def kl_loss(coefficient: float) -> dict[str, object]:
    """The flags of a KL loss; a penalty on the reward has the coefficient alone."""
    return {"algo.kl.init_coef": coefficient, "algo.kl.use_loss": True, "algo.kl.estimator": "k3"}


def critic_arm(name: str, label: str, flags: dict[str, object] | None = None, critic: str = "") -> Arm:
    """One of the critic's study, which is on the long task."""
    return Arm(f"long-{name}", label, flags or {}, task="long", critic=critic)


def over_arm(name: str, label: str, flags: dict[str, object] | None = None, prompts: int = MOST) -> Arm:
    """One that trains for so long that it may train too much, on the long task."""
    return Arm(f"over-{name}", label, flags or {}, prompts, task="long", length=OVER_STEPS)


BASELINE, LONG, OVER, FORMS = "baseline", "long-baseline", "over-baseline", "forms-baseline"
# Its rollouts, of the base alone, are what the pre-trained critic is fitted to; it is no arm of a figure.
ROLLOUTS_OF_BASE = critic_arm("base", "critic alone", {"critic.freezing_steps": LONG_STEPS - 1})
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
        critic_arm("baseline", "the paper's critic"),
        critic_arm("lambda-0.95", "λ = 0.95", {"algo.advantage.lambd": 0.95}),
        critic_arm("lambda-length", "λ of the policy by length", {"orz.lambda_policy": "length"}),
        critic_arm("critic-1", "1 critic update", {"orz.critic_updates": 1}),
        critic_arm("epochs-2", "2 critic epochs", {"orz.critic_epochs": 2}),
        critic_arm("bce", "binary cross-entropy", {"orz.value_loss": "bce"}),
        critic_arm("hl-gauss", "HL-Gauss", {"orz.value_loss": "hl_gauss"}),
        critic_arm("group", "mean of the prompt's responses", {"orz.baseline": "group"}),
        critic_arm("auto", "the better of critic and mean", {"orz.baseline": "auto"}),
        critic_arm("positive-nll", "log-likelihood of right responses", {"orz.positive_nll": 0.1}),
        critic_arm("pretrained", "pre-trained critic", critic=PRETRAINED),
        critic_arm("half", "critic of half the width", critic=HALF),
        Arm("long-kl-loss", f"KL loss {STRONG}", kl_loss(STRONG), task="long"),
        Arm("long-kl-penalty", f"KL penalty {STRONG}", {"algo.kl.init_coef": STRONG}, task="long"),
        over_arm("baseline", f"{MOST} prompts"),
        over_arm(f"prompts-{SCALES[0]}", f"{SCALES[0]} prompts", prompts=SCALES[0]),
        over_arm(f"prompts-{SCALES[1]}", f"{SCALES[1]} prompts", prompts=SCALES[1]),
        over_arm("updates-4", "4 update steps", {"orz.policy_updates": 4}),
        over_arm("updates-8", "8 update steps", {"orz.policy_updates": 8}),
        over_arm("t-0.6", "T = 0.6", {"rollout.temperature": 0.6}),
        over_arm("t-1.2", "T = 1.2", {"rollout.temperature": 1.2}),
        Arm(FORMS, "our judge", task="forms"),
        Arm("forms-plain", "plain Math-Verify", {"orz.plain_math_verify": True}, task="forms"),
        # what raised the explained variance in the arms before
        critic_arm("combined", "pre-trained critic, 2 epochs", {"orz.critic_epochs": 2}, critic=PRETRAINED),
    )
}


@dataclass(frozen=True)
class Figure:
    """A picture: its title, the arms beside the baseline, how the baseline is called in it, its panels, the paper's
    figure, how many seeds it has unless told, the arm that the others are compared with, and the page it is on."""

    title: str
    arms: tuple[str, ...] = ()
    baseline: str = "the paper's settings"
    panels: tuple[str, ...] = ("reward", "response_length")
    paper: str = ""
    seeds: int = 3
    base: str = BASELINE
    page: str = "miniature"


def critic_figure(title: str, arms: tuple[str, ...]) -> Figure:
    """Of the critic's study: five seeds, the paper's critic against the arms."""
    panels = ("reward", "explained_variance", "response_length")
    return Figure(title, arms, "the paper's critic", panels, "none", seeds=5, base=LONG, page="critic")


def long_figure(title: str, arms: tuple[str, ...], baseline: str, paper: str, base: str = LONG) -> Figure:
    """Of a claim with more power: five seeds of the long task."""
    panels = ("reward", "response_length", "held_out")
    return Figure(title, arms, baseline, panels, paper, seeds=5, base=base, page="long")


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
    "judge": Figure(
        "Our judge or plain Math-Verify",
        ("forms-plain",),
        "our judge",
        ("reward", "right", "response_length"),
        "Fig. 3",
        seeds=5,
        base=FORMS,
        page="reward",
    ),
    "long-lambda": long_figure("GAE λ, long responses", ("long-lambda-0.95",), "λ = 1", "Fig. 8"),
    "long-kl": long_figure(
        "KL regularisation, long responses", ("long-kl-loss", "long-kl-penalty"), "no KL", "Fig. 9"
    ),
    "over-data-scale": long_figure(
        f"Data scale, {OVER_STEPS} steps",
        (f"over-prompts-{SCALES[1]}", f"over-prompts-{SCALES[0]}"),
        f"{MOST} prompts",
        "Fig. 10",
        OVER,
    ),
    "over-update-steps": long_figure(
        f"Policy update steps, {OVER_STEPS} steps",
        ("over-updates-4", "over-updates-8"),
        "1 update step",
        "Fig. 13",
        OVER,
    ),
    "over-temperature": long_figure(
        f"Sampling, {OVER_STEPS} steps", ("over-t-0.6", "over-t-1.2"), "T = 1", "Fig. 15", OVER
    ),
    "critic-advantages": critic_figure(
        "What the advantage subtracts",
        ("long-lambda-0.95", "long-lambda-length", "long-group", "long-auto"),
    ),
    "critic-training": critic_figure(
        "How the critic is trained",
        ("long-critic-1", "long-epochs-2", "long-bce", "long-hl-gauss", "long-pretrained", "long-half"),
    ),
    "critic-policy": critic_figure("The policy's loss, and what fits best", ("long-positive-nll", "long-combined")),
}
CRITIC_STUDY = tuple(name for name, figure in FIGURES.items() if figure.page == "critic")


def arms_of(figures: list[str]) -> list[Arm]:
    """The arms that the figures need, each once, the baseline first."""
    names = [FIGURES[figure].base for figure in figures] + [
        name for figure in figures for name in FIGURES[figure].arms
    ]
    return [ARMS[name] for name in dict.fromkeys(names)]


def flags(arm: Arm, seed: int, home: Path, run_dir: Path) -> list[str]:
    """The training command's arguments for one run; ``home`` holds what the task's runs share."""
    values = (
        SHARED
        | TASKS[arm.task]
        | {
            "train.num_episodes": max(1, arm.steps * PROMPTS // arm.prompts),
            "train.seed": seed,
            "actor.model_name_or_path": home / "base",
            "data.prompt_dataset": home / "questions" / f"train-{arm.prompts}.jsonl",
            "eval.dataset": home / "questions" / "held-out.jsonl",
            "ckpt.output_dir": run_dir,
        }
    )
    if arm.task == "long":
        values["data.max_samples"] = min(arm.steps * PROMPTS, arm.prompts)
    if arm.critic:
        values["critic.model_name_or_path"] = home / arm.critic
    values |= arm.flags
    argv = []
    for name, value in values.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv
