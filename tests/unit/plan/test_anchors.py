"""The published runs of docs/planning.md, the recipes of docs/notes/performance.md: their tables are the plan's. Print
them anew with

python tests/unit/plan/test_anchors.py
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from planned import make, ranks

from openrlhf_orz.plan.choice import choose_layout
from openrlhf_orz.plan.hardware import parse_hardware
from openrlhf_orz.plan.layout import Lengths
from openrlhf_orz.plan.planner import plan_run
from openrlhf_orz.plan.seconds import Rates
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.settings.command_line import parse

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "planning.md"
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
        "--orz.max_num_seqs", 128,  # the tables were made with vLLM's default, at which such runs were
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


LLAMA_8B = Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, False)
QWEN3_4B = Shape("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True, qk_norm=True)
QWEN3_600M = Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True, qk_norm=True)
GRPO = ("--algo.advantage.estimator", "group_norm", "--train.colocate_all", "--vllm.enable_sleep", "--ds.enable_sleep",
        "--ds.zero_stage", 3, "--actor.gradient_checkpointing_enable")  # fmt: skip


@pytest.mark.parametrize(
    "nodes, generated, published", [(1, 795, (112, 58, 18, 28)), (2, 1060, (97.7, None, None, None))]
)
def test_nemo_rl_s_grpo_of_llama_8b(nodes, generated, published):
    """8 and 16 H100, 64 prompts x 32, at most 4,096 tokens (seconds as published; sources in docs/planning.md).

    Step, generation, log-probs (of policy and reference), training. Prompts have 132 tokens: on 16 GPUs 1,562 tokens
    a second and GPU for 97.7 s are 1,192 for each sample.
    """
    flags = ("--rollout.batch_size", 64, "--rollout.n_samples_per_prompt", 32, "--data.max_len", 4096)
    flags += ("--train.max_tokens_per_gpu", 16384, "--algo.kl.init_coef", 0.01, *ranks(nodes, 8))
    found = make(*GRPO, *flags, on=f"h100x8x{nodes}", policy=LLAMA_8B, rates=Rates(concurrent=256),
                 lengths=Lengths(132, generated, 3964, "published")).seconds  # fmt: skip
    assert found.step == pytest.approx(published[0], rel=0.1)
    if published[1]:
        phases = found.phases
        assert phases["generation"] == pytest.approx(published[1], rel=0.1)
        assert phases["reference model"] + phases["old log-probs"] == pytest.approx(published[2], rel=0.2)
        assert phases["policy training"] == pytest.approx(published[3], rel=0.2)


@pytest.mark.parametrize(
    "shape, on, gpus, tokens, published, band",
    [
        (QWEN3_4B, "h200x8", 8, 16384, 4.415, (0.9, 1.1)),
        (QWEN3_4B, "h200x8", 8, 65536, 29.89, (0.9, 1.25)),
        (QWEN3_600M, "h100x1", 1, 16384, 1.992, (0.45, 1.1)),
        (QWEN3_600M, "h100x1", 1, 65536, 12.18, (0.9, 1.1)),
    ],
)
def test_prime_rl_s_training_step_of_qwen3(shape, on, gpus, tokens, published, band):
    """Two micro-batches of one sequence each on each GPU (step_time of its benchmarks; docs/planning.md, its notes).

    What its throughput and MFU count beside the step, weights written to disk, is no part of it.
    """
    flags = ("--rollout.batch_size", gpus, "--rollout.n_samples_per_prompt", 2, "--data.max_len", tokens)
    found = make(*GRPO, *flags, *ranks(1, gpus), "--train.max_tokens_per_gpu", tokens, on=on, policy=shape,
                 lengths=Lengths(100, tokens - 100, tokens - 100, "published"))  # fmt: skip
    assert found.batches.policy_micro_batches == 2
    assert band[0] < found.seconds.phases["policy training"] / published < band[1]


def recipe_flags(name: str, **arm) -> list[str]:
    """The flags of a recipe's command."""
    env = {"DRY_RUN": "1", "RUN_DIR": "r", "PATH": "/usr/bin:/bin"} | arm
    script = ROOT / "examples" / f"train_orz_qwen2.5_{name}.sh"
    printed = subprocess.run(["bash", script], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    return shlex.split(printed.stdout)[3:]


RECIPES = (
    ("0.5B, 1 GPU", "0.5b_1gpu", {}, "h100x1", 1000), ("0.5B, 8", "0.5b", {}, "h100x8", 1000),
    ("1.5B, 2 x 8", "1.5b", {}, "h100x8x2", 1000), ("7B, 4 x 8", "7b", {}, "h100x8x4", 2000),
    ("32B, 16 x 8, colocated", "32b", {"ARM": "colocated"}, "h100x8x16", 4000),
    ("32B, 16 x 8, split", "32b", {"ARM": "split"}, "h100x8x16", 4000),
)  # fmt: skip


def recipes() -> list[str]:
    """Each recipe's planned step with vLLM's own limits of a step, and with ours."""
    rows = []
    for name, recipe, arm, machine, response in RECIPES:
        flags = recipe_flags(recipe, **arm)
        lengths = Lengths(160, response, 8032 if response < 4000 else 16384, "given")
        before, now = (
            choose_layout(plan_run(args, parse_hardware(machine), lengths=lengths), explicit)
            for args, explicit in (
                parse([*flags, "--orz.max_num_seqs", "128", "--orz.max_num_batched_tokens", "2048"]),
                parse(flags),
            )
        )
        orz, cache = now.args.orz, now.memory.kv_cache_tokens / 1e6
        rows.append(
            f"| {name} | {before.seconds.step:,.0f} s | {now.seconds.step:,.0f} s |"
            f" {before.seconds.phases['generation']:,.0f} s | {now.seconds.phases['generation']:,.0f} s |"
            f" {orz.max_num_seqs:,} | {orz.max_num_batched_tokens:,} | {cache:.2f} million |"
        )
    return rows


def beside() -> list[str]:
    """What a critic that works beside generation saves, where it has GPUs of its own: the 32B recipe and a 7B."""
    shared = {"--train.colocate_all", "--vllm.enable_sleep", "--ds.enable_sleep"}
    apart = [flag for flag in recipe_flags("7b", NODES="1") if flag not in shared]
    rows = []
    for flags, machine, response, longest in (
        (recipe_flags("32b", ARM="split"), "h100x8x16", 4000, 16384),
        ([*apart, "--vllm.num_engines=16", "--vllm.gpu_memory_utilization=0.9"], "h100x8x4", 2000, 8032),
    ):
        found = []
        for more in ([], ["--orz.critic_beside", "never"]):
            args, explicit = parse([*flags, *more])
            lengths = Lengths(160, response, longest, "given")
            found.append(
                choose_layout(plan_run(args, parse_hardware(machine), lengths=lengths), explicit).seconds.step
            )
        rows.append("{1:,.0f} s to {0:,.0f}".format(*found))
    return rows


def test_the_recipes_steps_are_the_plans():
    text = (DOCS.parent / "notes" / "performance.md").read_text()
    for row in (*recipes(), *beside()):
        assert row in text, row


if __name__ == "__main__":
    print("\n".join([*a100(), "", *h800(), "", *recipes(), *beside()]))
