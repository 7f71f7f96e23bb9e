"""Inherited flags in real runs, several in each; what each must leave in metrics and on disk."""

import json
from pathlib import Path

import pytest
import torch
from runs import succeed
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf_orz.cli.publish import main as publish
from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.evaluate.critic import load_critic, response_values

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"
LEARN = (
    "--orz.prompt_template", "paper", "--data.max_len", "160", "--rollout.max_new_tokens", "48",
    "--orz.logprob_gap_every", "1", "--ds.param_dtype", "fp32", "--rollout.n_samples_per_prompt", "8",
    "--actor.adam.lr", "1e-3",
)  # fmt: skip
GRPO = ("--algo.advantage.estimator", "dr_grpo", "--orz.policy_updates", "2")


def additions(folder: Path, rows: int) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate_additions(rows, (3, 3), seed=2)))
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(path / "model.safetensors").items()}


def distance(ours: dict, theirs: dict) -> float:
    return sum((ours[name] - theirs[name]).abs().sum().item() for name in ours)


def test_lora_average_freezing_and_penalties(tmp_path):
    """LoRA below our head and shared prefixes; a step in which the critic alone trains; an average in float32."""
    metrics = succeed(
        tmp_path / "run", BASE, additions(tmp_path, 12), *LEARN, "--ds.lora.rank", "8", "--train.enable_ema",
        "--train.ema_beta", "0.9", "--critic.freezing_steps", "1", "--reward.stop_properly_penalty_coef", "-0.5",
        "--reward.overlong_buffer_len", "24", "--orz.check_sync", "--critic.save_value_network",
        "--rollout.max_new_tokens", "24", "--ckpt.save_steps", "3",
    )  # fmt: skip
    assert [m.get("policy_updates") for m in metrics] == [0, 1, 1], "frozen for one step"
    assert all(m["sync_logprob_gap_max"] < 1e-4 for m in metrics), "engines have the merged weights"
    assert metrics[2]["sync_logprob_moved_mean"] > 1e-4
    assert all(m["reward_trained"] < m["reward"] for m in metrics), "the longest responses are penalised"
    assert all(m["actor_grad_norm"] > 0 and m["critic_updates"] == 3 for m in metrics[1:])
    base, policy, average = weights(BASE), weights(tmp_path / "run" / "hf"), weights(tmp_path / "run" / "hf_ema")
    assert set(policy) == set(average) == set(base)
    moved = {name for name in base if not torch.equal(base[name], policy[name])}
    assert moved == {name for name in base if name.endswith("_proj.weight")}
    assert 0 < distance(average, base) < distance(policy, base)
    adapters = load_file(tmp_path / "run" / "hf_adapter" / "adapter_model.safetensors")
    assert len(adapters) == 2 * len(moved)
    for name, options in (("adapters", ()), ("whole", ("--merged",))):  # the checkpoint of the last step
        given = [str(tmp_path / "run"), "--output", str(tmp_path / name), "--checkpoint", "global_step3", *options]
        assert publish(given) == 0
    published = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert set(published) == set(adapters) and all(torch.equal(published[n], adapters[n]) for n in adapters)
    assert all(torch.equal(tensor, policy[name]) for name, tensor in weights(tmp_path / "whole").items())
    assert "score.weight" in load_file(tmp_path / "run" / "hf_critic" / "model.safetensors")


def test_off_policy_losses_with_a_reference_model(tmp_path):
    """Clip-higher, dual clip, KL as a loss, an entropy bonus, a correction to vLLM's log-probs; no critic.

    The steps are small: the metric entropy is of the sampled tokens, and estimates the policy's while it is near the
    policy that sampled.
    """
    metrics = succeed(
        tmp_path / "run", BASE, additions(tmp_path, 8), *LEARN, *GRPO, "--actor.eps_clip_low_high", "0.2", "0.28",
        "--actor.dual_clip", "3", "--algo.kl.init_coef", "0.05", "--algo.kl.use_loss", "--algo.kl.estimator", "k3",
        "--actor.entropy_coef", "0.01", "--algo.advantage.is_correction_level", "token", "--ref.offload",
        "--actor.adam.lr", "1e-5",
    )  # fmt: skip
    assert [m["policy_updates"] for m in metrics] == [2, 2]
    for m in metrics:
        assert m["entropy_loss"] > 0 and m["is_filter_ratio"] < 0.01 and abs(m["vllm_kl"]) < 1e-3
        assert 0.8 < m["entropy_loss"] / m["entropy"] < 1.25, "the exact entropy beside the estimate"
    assert metrics[1]["kl"] > 0 and metrics[1]["ppo_kl"] != 0


SLOW = {
    "asynchronous and partial rollouts, filtered, rloo": (
        *GRPO, "--algo.advantage.estimator", "rloo", "--train.async_enable", "--train.partial_rollout_enable",
        "--algo.dynamic_filtering_enable", "--rollout.batch_size", "2",
    ),
    "gspo, adam on the host": (*GRPO, "--actor.policy_loss_type", "gspo", "--ds.adam_offload"),
    "a critic, a KL penalty, gradient checkpointing": (
        "--algo.kl.init_coef", "0.01", "--algo.kl.target", "0.1", "--actor.gradient_checkpointing_enable",
    ),
    "rejection of sequences, reinforce with a discount": (
        "--algo.advantage.estimator", "reinforce", "--algo.advantage.gamma", "0.99", "--orz.policy_updates", "2",
        "--algo.advantage.is_correction_level", "seq", "--algo.advantage.is_correction_gating", "tv",
        "--algo.advantage.is_correction_threshold", "0.1",
    ),
    "a histogram of returns, the group's mean, frozen attention, in bfloat16": (
        "--orz.value_loss", "hl_gauss", "--orz.baseline", "group", "--orz.freeze_critic", "attention",
        "--ds.param_dtype", "bf16", "--critic.save_value_network",
    ),
    "a histogram of returns, padded, ZeRO-3, cross-fitted": (
        "--orz.value_loss", "hl_gauss", "--ds.attn_implementation", "sdpa", "--ds.zero_stage", "3",
        "--orz.cross_fit_values", "--orz.critic_epochs", "2",
    ),
    "muon": ("--actor.optim", "muon", "--actor.max_norm", "0", "--actor.muon.lr", "1e-3"),
    "lora in bfloat16 at ZeRO-2": ("--ds.param_dtype", "bf16", "--ds.zero_stage", "2", "--ds.lora.rank", "8"),
    "lora in bfloat16 at ZeRO-3": ("--ds.param_dtype", "bf16", "--ds.zero_stage", "3", "--ds.lora.rank", "8"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("flags", SLOW.values(), ids=SLOW)
def test_other_groups_of_flags(tmp_path, flags):
    metrics = succeed(tmp_path / "run", BASE, additions(tmp_path, 16), *LEARN, *flags)
    assert len(metrics) > 1 and (tmp_path / "run" / "hf" / "model.safetensors").exists()
    assert all(0 <= m.get("dynamic_filtering_pass_rate", 0) <= 100 for m in metrics)
    moved = distance(weights(tmp_path / "run" / "hf"), weights(BASE))
    assert 0 < moved < float("inf")


def write_critic(path: Path) -> Path:
    """A random model of half the policy's width, with its vocabulary."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(BASE)
    half = {name: getattr(config, name) // 2 for name in ("hidden_size", "intermediate_size")}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config.to_dict(), **half})).save_pretrained(path)
    return path


CRITIC = (
    "--orz.critic_epochs", "2", "--orz.lambda_policy", "length", "--orz.baseline", "auto", "--orz.positive_nll", "0.1",
    "--orz.value_loss", "bce", "--orz.value_base_rate", "0.3", "--critic.freezing_steps", "1",
    "--orz.freeze_critic", "layers:1", "--critic.save_value_network",
    "--critic.adam.lr", "1e-3", "--orz.rollout_values", "3",
)  # fmt: skip


def test_the_critics_flags_together_in_a_critic_of_half_the_width(tmp_path):
    small = write_critic(tmp_path / "small")
    metrics = succeed(
        tmp_path / "run", BASE, additions(tmp_path, 12), *LEARN, *CRITIC, "--critic.model_name_or_path", str(small)
    )
    assert [m["policy_updates"] for m in metrics] == [0, 1, 1] and all(m["critic_updates"] == 6 for m in metrics)
    assert all("explained_variance_minibatch_06" in m and 0 < m["value_mean"] < 1 for m in metrics)
    assert all(
        m["baseline_critic"] == ("lambda_policy" in m) and 0 <= m.get("lambda_policy", 0) < 0.5 for m in metrics
    )
    assert metrics[0]["value_mean"] == pytest.approx(0.3, abs=0.2), "the head begins near the base rate"
    assert any(m["positive_nll"] > 0 for m in metrics[1:])
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step_2.jsonl").read_text().splitlines()]
    shown = [row for row in rows if "values" in row]
    assert len(shown) == 3 and all("".join(row["token_texts"]) == row["response"] for row in shown)
    for row in shown:
        assert len(row["values"]) == len(row["advantages"]) == len(row["token_ids"]) == row["tokens"]
        assert all(0 < value < 1 for value in row["values"])
    before, after = weights(small), weights(tmp_path / "run" / "hf_critic")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert moved and not any("embed_tokens" in name or "layers.0." in name for name in moved)
    critic = load_critic(str(tmp_path / "run" / "hf_critic"), "cpu", torch.float32)
    values = response_values(critic, [5, 6, 7], [8, 9, 10, 11], "cpu")
    assert values.shape == (4,) and ((values > 0) & (values < 1)).all()
