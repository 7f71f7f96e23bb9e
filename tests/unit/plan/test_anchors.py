"""The published runs of docs/planning.md: its tables are what the plan says. Print them anew with

python tests/unit/plan/test_anchors.py
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from planned import make, ranks

from openrlhf_orz.plan.layout import Lengths

DOCS = Path(__file__).parents[3] / "docs" / "planning.md"
RELEASE = ("--algo.kl.init_coef", "1e-9", "--orz.share_prefixes", "never")  # reference, old log-probs, whole prompts
MEAN_LENGTHS = (500, 1000, 1500, 2000, 3000)
DAYS_5_5 = 5.5 * 86400


def seconds(machine: str, nodes: int, response: int, *flags) -> float:
    """A step of the 7B recipe."""
    recipe = (
        "--data.max_len", 10240, "--orz.max_prompt_len", 2048, "--rollout.max_new_tokens", 8000,
        "--actor.gradient_checkpointing_enable", "--train.colocate_all", "--vllm.gpu_memory_utilization", 0.5,
        "--vllm.enable_sleep", "--ds.enable_sleep", "--ds.zero_stage", 3, "--ds.attn_implementation", "orz_packed",
        "--train.max_tokens_per_gpu", 16384, "--rollout.max_tokens_per_gpu", 32768, *ranks(nodes, 8),
    )  # fmt: skip
    return make(*recipe, *flags, on=machine, lengths=Lengths(160, response, 8000, "given")).seconds.step


def a100() -> list[str]:
    rows = []
    for length in MEAN_LENGTHS:
        ours, release = seconds("a100-80x8x4", 4, length), seconds("a100-80x8x4", 4, length, *RELEASE)
        rows.append(
            f"| {length:,} | {ours:.0f} s | {ours / 531 - 1:+.0%} | {release:.0f} s | {release / 531 - 1:+.0%} |"
        )
    return rows


def h800() -> list[str]:
    rows = []
    for length in MEAN_LENGTHS:
        step = seconds("h800x8x8", 8, length, *RELEASE)
        errors = [f"{step / (DAYS_5_5 / steps) - 1:+.0%}" for steps in (680, 1000)]
        rows.append(f"| {length:,} | {step:.0f} s | {' | '.join(errors)} | {DAYS_5_5 / step:,.0f} |")
    return rows


def test_the_tables_are_the_plans():
    text = DOCS.read_text()
    for row in (*a100(), *h800()):
        assert row in text, row


def test_where_the_plan_meets_the_anchor():
    text = re.sub(r"\s+", " ", DOCS.read_text())
    ours, release = re.search(r"mean response of about ([\d,]+) tokens with 9 F and ([\d,]+) with 11 F", text).groups()
    for words, flags in ((ours, ()), (release, RELEASE)):
        length = int(words.replace(",", ""))
        assert abs(seconds("a100-80x8x4", 4, length, *flags) - 531) < 5


if __name__ == "__main__":
    print("\n".join([*a100(), "", *h800()]))
