"""docs/fidelity.md: every flag that it names is taken by the parser and validate(); its defaults are the defaults."""

import re
import shlex

import pytest
from recorded import ROOT

from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.flags import STOP_STRINGS

TEXT = (ROOT / "docs/fidelity.md").read_text()
FLAGS = sorted(set(re.findall(r"`(--[^`]+)`", TEXT)))
BASE = [
    "--actor.model_name_or_path",
    "org/model",
    "--data.prompt_dataset",
    "org/data",
    "--data.max_len",
    "8192",
    "--orz.device",
    "cpu",
]


def rows():
    for line in TEXT.splitlines():
        if line.startswith("| ") and not line.startswith(("| point", "|---")):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_are_taken(flags):
    words = shlex.split(flags)
    if flags in ("--algo.kl.use_loss --algo.kl.estimator k3", "--algo.kl.use_loss"):
        words += ["--algo.kl.init_coef", "0.01"]
    if flags.startswith("--ds.grad_accum_dtype"):  # the row is about ZeRO-3
        words += ["--ds.zero_stage", "3", "--ds.param_dtype", "bf16"]
    parse([*BASE, *words])


def test_every_difference_has_its_cells_and_its_source():
    found = list(rows())
    assert len(found) > 25
    for cells in found:
        assert len(cells) == 5 and all(cells), cells[0]
        point, paper, release, here, other = cells
        assert other == "none" or "`" in other or ":" in other, f"{point}: no flag and no 'none'"
        # what the release does has its lines, unless there is nothing of it
        assert re.search(r"\(.*\d.*\)|no script|\b264\b|\d\.\d", release), f"{point}: no line of the release"


def test_the_column_here():
    args, _ = parse(BASE)
    assert args.orz.value_head_init == "released" and args.critic.value_clip is None
    assert args.orz.critic_updates == 12 and args.orz.policy_updates == 1 and args.orz.old_log_probs == "auto"
    assert args.actor.loss_agg_mode == "token-mean" and args.algo.kl.init_coef == 0
    assert args.algo.advantage.lambd == args.algo.advantage.gamma == 1 and args.actor.entropy_coef is None
    assert args.actor.max_norm == args.critic.max_norm == 1 and args.orz.warmup_steps == 50
    assert args.orz.prompt_template == "paper" and tuple(args.orz.stop) == STOP_STRINGS
    assert args.rollout.temperature == args.rollout.top_p == 1 and not args.orz.plain_math_verify
    assert args.eval.n_samples_per_prompt == 4 and args.eval.temperature == 0.6 and args.train.seed == 42
