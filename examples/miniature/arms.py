"""What is run: the arms, each a few flags that differ from the baseline's, and the figures that compare them."""

from dataclasses import dataclass, field
from pathlib import Path

STEPS, OVER_STEPS, FORMS_STEPS = 16, 64, 24  # of a run; OVER_STEPS where over-training is the point
PROMPTS, RESPONSES = 12, 8  # of a rollout
SCALES = (24, 96, 288)  # distinct prompts in files of their own
MOST = OVER_STEPS * PROMPTS
SEEDS = 5
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
# The paper gives no coefficient for its KL arms. This one weighs as much as the reward: to answer always in a style
# that the base uses with probability p costs about -KL log p, against a reward of at most 1.
KL = 0.5


# What the tasks differ in. Responses to counting grow to 200 tokens. Those to forms are shorter; their answers have
# units, are intervals or tiny numbers.
TASKS: dict[str, dict[str, object]] = {
    "counting": {
        "data.max_len": 448,
        "rollout.max_new_tokens": 352,
        "data.max_samples": STEPS * PROMPTS,
        "eval.steps": STEPS,
    },
    "forms": {},
}
HALF, PRETRAINED = "half", "pretrained"  # critics that are made before the runs


@dataclass(frozen=True)
class Arm:
    """A name, how figures call it, the flags that differ from its task's, and on how many distinct prompts it trains.

    ``critic``: the model that its critic begins from, if it is not the policy's.
    """

    name: str
    label: str
    flags: dict[str, object] = field(default_factory=dict)
    prompts: int = SCALES[-1]
    task: str = "counting"
    critic: str = ""
    steps: int = STEPS


def kl_loss(coefficient: float) -> dict[str, object]:
    """The flags of a KL loss; a penalty on the reward has the coefficient alone."""
    return {"algo.kl.init_coef": coefficient, "algo.kl.use_loss": True, "algo.kl.estimator": "k3"}


def over_arm(name: str, label: str, flags: dict[str, object] | None = None, prompts: int = MOST) -> Arm:
    """One that trains for so long that it may train too much."""
    return Arm(f"over-{name}", label, flags or {}, prompts, steps=OVER_STEPS)


# Runs of one seed are alike to the last bit only if one version of the code made them: AGAIN are the baseline's of a
# later one.
BASELINE, AGAIN, OVER, FORMS = "baseline", "again", "over-baseline", "forms-baseline"
# Its rollouts, of the base alone, are what the pre-trained critic is fitted to; it is no arm of a figure.
ROLLOUTS_OF_BASE = Arm("base", "critic alone", {"critic.freezing_steps": STEPS - 1})
ARMS = {
    arm.name: arm
    for arm in (
        Arm(BASELINE, "the paper's settings"),
        Arm(AGAIN, "the paper's settings, again"),
        Arm("lambda-0.95", "λ = 0.95", {"algo.advantage.lambd": 0.95}),
        Arm("kl-loss", f"KL loss {KL}", kl_loss(KL)),
        Arm("kl-penalty", f"KL penalty {KL}", {"algo.kl.init_coef": KL}),
        Arm("head-kaiming", "Kaiming uniform", {"orz.value_head_init": "kaiming"}),
        Arm("head-paper", "U(-√5, √5)", {"orz.value_head_init": "paper"}),
        Arm("old-log-probs", "old log-probs computed", {"orz.old_log_probs": "always"}),
        Arm("cross-fit", "cross-fit values", {"orz.cross_fit_values": True}),
        Arm("lambda-length", "λ of the policy by length", {"orz.lambda_policy": "length"}),
        Arm("critic-1", "1 critic update", {"orz.critic_updates": 1}),
        Arm("epochs-2", "2 critic epochs", {"orz.critic_epochs": 2}),
        Arm("bce", "binary cross-entropy", {"orz.value_loss": "bce"}),
        Arm("hl-gauss", "HL-Gauss", {"orz.value_loss": "hl_gauss"}),
        Arm("group", "mean of the prompt's responses", {"orz.baseline": "group"}),
        Arm("auto", "the better of critic and mean", {"orz.baseline": "auto"}),
        Arm("positive-nll", "log-likelihood of right responses", {"orz.positive_nll": 0.1}),
        Arm("pretrained", "pre-trained critic", critic=PRETRAINED),
        Arm("half", "critic of half the width", critic=HALF),
        # what raised the explained variance in the arms before
        Arm("combined", "pre-trained critic, 2 epochs", {"orz.critic_epochs": 2}, critic=PRETRAINED),
        over_arm("baseline", f"{MOST} prompts"),
        over_arm(f"prompts-{SCALES[0]}", f"{SCALES[0]} prompts", prompts=SCALES[0]),
        over_arm(f"prompts-{SCALES[1]}", f"{SCALES[1]} prompts", prompts=SCALES[1]),
        over_arm("updates-4", "4 update steps", {"orz.policy_updates": 4}),
        over_arm("updates-8", "8 update steps", {"orz.policy_updates": 8}),
        over_arm("t-0.6", "T = 0.6", {"rollout.temperature": 0.6}),
        over_arm("t-1.2", "T = 1.2", {"rollout.temperature": 1.2}),
        Arm(FORMS, "our judge", task="forms", steps=FORMS_STEPS),
        Arm("forms-plain", "plain Math-Verify", {"orz.plain_math_verify": True}, task="forms", steps=FORMS_STEPS),
    )
}


CURVES = ("reward", "response_length", "held_out")
OF_CRITIC = ("reward", "explained_variance", "response_length")


@dataclass(frozen=True)
class Figure:
    """A picture: its title, the arms beside the baseline, how the baseline is called in it, its panels, the paper's
    figure, the arm that the others are compared with, and the page it is on."""

    title: str
    arms: tuple[str, ...] = ()
    baseline: str = "the paper's settings"
    panels: tuple[str, ...] = CURVES
    paper: str = ""
    base: str = BASELINE
    page: str = "miniature"


def critic_figure(title: str, arms: tuple[str, ...]) -> Figure:
    """Of the critic's study."""
    return Figure(title, arms, "the paper's critic", OF_CRITIC, page="critic")


FIGURES = {
    "reward-and-length": Figure("Reward and length rise together", paper="Fig. 2"),
    "lambda": Figure("GAE λ", ("lambda-0.95",), "λ = 1", paper="Fig. 8"),
    "kl": Figure("KL regularisation", ("kl-loss", "kl-penalty"), "no KL", paper="Fig. 9"),
    "data-scale": Figure(
        f"Data scale, {OVER_STEPS} steps",
        (f"over-prompts-{SCALES[1]}", f"over-prompts-{SCALES[0]}"),
        f"{MOST} prompts",
        paper="Fig. 10",
        base=OVER,
    ),
    "update-steps": Figure(
        f"Policy update steps per rollout, {OVER_STEPS} steps",
        ("over-updates-4", "over-updates-8"),
        "1 update step",
        paper="Fig. 13",
        base=OVER,
    ),
    "critic-updates": Figure(
        "Critic updates per rollout", ("critic-1",), "12 critic updates", OF_CRITIC, paper="Sec. 3.1"
    ),
    "temperature": Figure(
        f"Sampling, {OVER_STEPS} steps",
        ("over-t-0.6", "over-t-1.2"),
        "T = 1",
        paper="Fig. 15",
        base=OVER,
    ),
    "value-head": Figure(
        "Initialisation of the value head",
        ("head-kaiming", "head-paper"),
        "N(0, 1/(H+1)), released code",
        OF_CRITIC,
        paper="Sec. 3.1",
        base=AGAIN,
    ),
    "skipped-forwards": Figure(
        "What is not computed", ("old-log-probs", "cross-fit"), "both skipped as by default", base=AGAIN
    ),
    "judge": Figure(
        "Our judge or plain Math-Verify",
        ("forms-plain",),
        "our judge",
        ("reward", "right", "response_length"),
        "Fig. 3",
        base=FORMS,
        page="reward",
    ),
    "critic-advantages": critic_figure(
        "What the advantage subtracts", ("lambda-0.95", "lambda-length", "group", "auto")
    ),
    "critic-training": critic_figure(
        "How the critic is trained", ("critic-1", "epochs-2", "bce", "hl-gauss", "pretrained", "half")
    ),
    "critic-policy": critic_figure("The policy's loss, and what fits best", ("positive-nll", "combined")),
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
    if "data.max_samples" in values:
        values["data.max_samples"] = min(arm.steps * PROMPTS, arm.prompts)
    if arm.critic:
        values["critic.model_name_or_path"] = home / arm.critic
    values |= arm.flags
    argv = []
    for name, value in values.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv
