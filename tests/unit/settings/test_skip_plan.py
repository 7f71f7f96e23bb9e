"""What a step computes follows from the flags, and comes back by itself where it is needed."""

import pytest

from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.skip_plan import cost, describe_attention, describe_forwards, skip_plan

BASE = ["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cpu"]


def plan(*flags) -> tuple[dict[str, bool], int]:
    args, _ = parse([*BASE, *flags])
    return {forward.name: forward.runs for forward in skip_plan(args)}, cost(args)


def runs(reference=False, old=False, values=False) -> dict[str, bool]:
    return {"reference model": reference, "old log-probs": old, "values": values}


@pytest.mark.parametrize(
    "flags, expected, forwards",
    [
        ([], runs(values=True), 7),  # values 1, training 3 + 3
        (["--actor.gradient_checkpointing_enable"], runs(values=True), 9),
        (["--orz.critic_epochs", "2"], runs(values=True), 10),
        (["--orz.cross_fit_values"], runs(), 6),
        (["--orz.cross_fit_values", "--actor.gradient_checkpointing_enable"], runs(), 8),
        (["--orz.old_log_probs", "always"], runs(old=True, values=True), 8),
        (["--algo.kl.init_coef", "0.01"], runs(reference=True, old=True, values=True), 9),
        (["--orz.policy_updates", "2"], runs(old=True, values=True), 8),
        (["--orz.policy_updates", "2", "--train.max_epochs", "2"], runs(old=True, values=True), 14),
        (["--train.async_enable"], runs(values=True), 7),
        (["--algo.advantage.estimator", "group_norm"], runs(), 3),
    ],
)
def test_plan(flags, expected, forwards):
    assert plan(*flags) == (expected, forwards)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--algo.advantage.lambd", "0.95"], "--algo.advantage.lambd"),
        (["--algo.advantage.gamma", "0.99"], "--algo.advantage.gamma"),
        (["--critic.value_clip", "0.2"], "--critic.value_clip"),
        (["--orz.lambda_policy", "0.95"], "--orz.lambda_policy"),
        (["--orz.policy_updates", "2", "--train.max_epochs", "2"], "--train.max_epochs"),
        (["--train.async_enable"], "--train.async_enable"),
        (["--critic.freezing_steps", "3"], "--critic.freezing_steps"),
        (["--orz.device", "cuda", "--critic.num_gpus_per_node", "4"], "--critic.num_gpus_per_node"),
        (["--orz.device", "cuda", "--critic.num_nodes", "2"], "as many"),
    ],
)
def test_cross_fit_is_refused_where_it_would_be_wrong(flags, named, capsys):
    with pytest.raises(SystemExit):
        plan("--orz.cross_fit_values", *flags)
    message = capsys.readouterr().err
    assert "--orz.cross_fit_values" in message and named in message


def test_every_forward_says_why():
    args, _ = parse(BASE)
    lines = describe_forwards(args).splitlines()
    assert len(lines) == 4 and all("(" in line for line in lines[:3])
    assert "skipped (no KL: the model is not even loaded)" in lines[0] and lines[-1].startswith(
        "[orz] a step costs 7 "
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], ["orz_packed", "in groups of like length", "computed once"]),
        (["--orz.device", "cuda"], ["orz_packed", "varlen kernel", "computed once"]),
        (["--orz.device", "cuda", "--ds.param_dtype", "fp32"], ["orz_packed", "in groups of like length"]),
        (["--orz.share_prefixes", "never"], ["not shared (--orz.share_prefixes never)"]),
        (["--ds.attn_implementation", "sdpa"], ["sdpa, on padded micro-batches", "are not shared"]),
    ],
)
def test_the_attention_and_why(flags, words):
    line = describe_attention(parse([*BASE, *flags])[0])
    assert "\n" not in line and all(word in line for word in words), line
