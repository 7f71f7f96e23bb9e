"""Two real steps through Ray, DeepSpeed and vLLM: after each sync the engines compute what the trainer computes."""

import pytest
from runs import read_jsonl, succeed, write_sums
from tiny_models import write_model

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "ranks, stage, tied", [(1, 2, True), (1, 3, False), (2, 2, False), (2, 3, True)], ids=lambda value: str(value)
)
def test_engines_follow_the_trainer(tmp_path, ranks, stage, tied):
    model = write_model(tmp_path / "model", tied=tied)
    run = tmp_path / "run"
    metrics = succeed(
        run, model, write_sums(tmp_path / "data.jsonl", 8),
        "--actor.num_gpus_per_node", ranks, "--critic.num_gpus_per_node", ranks, "--ds.zero_stage", stage,
        "--orz.check_sync", "--actor.adam.lr", "3e-3", "--vllm.enable_prefix_caching",
    )  # fmt: skip
    assert [m["step"] for m in metrics] == [1, 2]
    for m in metrics:
        # bfloat16 keeps 8 bits: log-probs of about 6 differ by a few hundredths at the most
        assert m["sync_logprob_gap_mean"] < 0.01 and m["sync_logprob_gap_max"] < 0.06, m
        assert m["policy_updates"] == 1 and m["critic_updates"] == 3
        assert m["ppo_kl"] == 0 and m["ppo_clip_ratio"] == 0  # strictly on-policy
        assert m["samples"] == 16 and m["actor_grad_norm"] > 0 and m["critic_grad_norm"] > 0
    # a missed sync would have shown: the weights moved the log-probs by far more than the gap
    assert metrics[1]["sync_logprob_moved_mean"] > 5 * metrics[1]["sync_logprob_gap_mean"]
    rows = read_jsonl(run / "rollouts" / "step_2.jsonl")
    assert len(rows) == 16 and all(row["prompt"].startswith("Question: ") for row in rows)
