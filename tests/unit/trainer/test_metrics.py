import json
from types import SimpleNamespace

import pytest
import torch
from glue import make_args

pytest.importorskip("openrlhf")
from glue import Tokenizer, make_sample

from openrlhf_orz.reward.rules import RULES
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import pack_label
from openrlhf_orz.runtime.run_dir import RunDir
from openrlhf_orz.trainer.metrics import (
    StepMetrics,
    info,
    rank_metrics,
    rollout_metrics,
    step_record,
    trained_rewards,
)
from openrlhf_orz.trainer.rollout_rows import rollout_row, spread_places, token_numbers, token_texts


def test_rollout_metrics_by_hand():
    # three prompts with two responses each: both right, one right, none right
    right, wrong, none = float(Verdict.RIGHT), float(Verdict.WRONG), float(Verdict.NO_ANSWER)
    metrics = rollout_metrics(
        rewards=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]),
        right=torch.tensor([True, True, True, False, False, False]),
        lengths=torch.tensor([10, 20, 30, 40, 50, 60]),
        truncated=torch.tensor([0.0, 0, 0, 0, 1, 0]),
        verdicts=torch.tensor([right, right, right, wrong, right, none]),  # one right but cut by length
        formats=torch.tensor([1.0, 1, 1, 1, 1, 0]),
        samples_per_prompt=2,
    )
    assert metrics["reward"] == 0.5 and metrics["response_length"] == 35 and metrics["response_length_max"] == 60
    assert metrics["response_length_right"] == 20 and metrics["response_length_wrong"] == 50
    assert metrics["truncated"] == 1 / 6 and metrics["format"] == 5 / 6
    assert metrics["pass_at_n"] == 2 / 3 and metrics["all_right"] == 1 / 3 and metrics["all_wrong"] == 1 / 3
    assert (metrics["samples"], metrics["prompts"]) == (6, 3)
    assert (metrics["verdict_right"], metrics["verdict_wrong"], metrics["verdict_no_answer"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("flags", "rewards", "trained"),
    [
        ((), [1.0, 0.0], None),
        (("--reward.clip_range", "-1", "0.5"), [1.0, 0.0], [0.5, 0.0]),
        # the distance to the others is clipped, which no reward by itself shows
        (("--reward.clip_range", "-1", "0.5", "--algo.advantage.estimator", "group_norm"), [1.0, 0.0], None),
        (("--reward.overlong_buffer_len", "4", "--rollout.max_new_tokens", "8"), [0.75, 0.0], [0.75, 0.0]),
    ],
)
def test_rewards_that_are_trained_on(tmp_path, flags, rewards, trained):
    args = make_args(tmp_path, *flags)
    experiences = [SimpleNamespace(rewards=torch.tensor([reward]), index=[i]) for i, reward in enumerate(rewards)]
    found = trained_rewards(list(reversed(experiences)), args)
    assert (None if found is None else found.tolist()) == trained


def test_metrics_of_rewards_that_are_neither_0_nor_1():
    """Rewards 0.25 and 0.75, of which from 0.5 on count as right; nobody gave a verdict or looked at the format."""
    unknown = torch.full((4,), float("nan"))
    rewards = torch.tensor([0.25, 0.75, 0.25, -0.25])
    metrics = rollout_metrics(
        rewards=rewards, right=rewards >= 0.5, lengths=torch.tensor([10, 20, 30, 40]), truncated=torch.zeros(4),
        verdicts=unknown, formats=unknown, samples_per_prompt=2,
    )  # fmt: skip
    record = step_record(1, {}, metrics)
    assert (
        record["reward"] == 0.25
        and record["response_length_right"] == 20
        and record["response_length_wrong"] == 80 / 3
    )
    assert (record["pass_at_n"], record["all_right"], record["all_wrong"]) == (0.5, 0.0, 0.5)
    assert {record[key] for key in record if key.startswith("verdict_")} == {None} and record["format"] is None


def test_the_least_right_reward_decides_in_metrics_and_rollouts():
    samples = [make_sample(reward=reward) for reward in (0.75, 0.25)]
    for least, right in ((0.5, [True, False]), (1.0, [False, False])):
        metrics = StepMetrics(Tokenizer(), 2, least)
        metrics.start(samples)
        assert metrics.pending is None, "all GPUs wait for this process now"
        metrics.finish_texts()
        assert metrics.values["repetition"] == 0.0 and not metrics.samples
        record = metrics.record(1, {})
        assert record["pass_at_n"] == float(any(right)) and record["reward"] == 0.5
        assert record["verdict_right"] is None and record["format"] is None
        rows = [rollout_row(sample, Tokenizer(), [], None, least) for sample in samples]
        assert [row["right"] for row in rows] == right and [row["reward"] for row in rows] == [0.75, 0.25]
        assert {(row["verdict"], row["rule"], row["stop_reason"]) for row in rows} == {(None, None, None)}


def test_a_row_of_a_rollout_has_label_and_verifier_apart():
    sample = make_sample(verdict=Verdict.RIGHT, rule=1, ended=0)
    sample.labels = [pack_label("B", "letter")]
    row = rollout_row(sample, Tokenizer(), ["</answer>"])
    assert (row["reference"], row["verifier"], row["verdict"], row["rule"]) == ("B", "letter", "right", "identical")
    assert row["stop_reason"] == "</answer>" and row["right"]
    sample.labels, sample.info, sample.truncated = [pack_label({"tests": [1]})], {}, torch.tensor([1.0])
    row = rollout_row(sample, Tokenizer(), [])
    assert row["reference"] == {"tests": [1]} and row["stop_reason"] == "length" and "verifier" not in row


def test_a_row_has_the_sampled_token_ids():
    sample = make_sample(prompt=3, response=4)
    row = rollout_row(sample, Tokenizer(), [])
    assert (row["prompt_tokens"], row["token_ids"], row["tokens"]) == (3, [4, 5, 6, 7], 4) and "between" not in row
    sample.action_mask[0, 3:5] = 0  # an agent's own tokens, 5 and 6, between actions
    row = rollout_row(sample, Tokenizer(), [])
    assert (row["token_ids"], row["between"], row["tokens"]) == ([4, 5, 6, 7], [[1, 3]], 2)
    sample.action_mask[:] = 0
    row = rollout_row(sample, Tokenizer(), [])
    assert (row["prompt_tokens"], row["token_ids"]) == (7, []) and "between" not in row


def test_values_and_advantages_of_chosen_responses_by_token():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
    values, advantages = torch.arange(12.0).reshape(3, 4) / 3, -torch.arange(12.0).reshape(3, 4)
    batch = SimpleNamespace(index=[2, 0, 1], action_mask=mask, values=values, advantages=advantages)
    found = token_numbers([batch], [0, 1])
    assert found[0] == {"values": [2.0, 2.3333], "advantages": [-6, -7]}
    assert found[1]["advantages"] == [-8, None, None, -11], "an agent's tokens between actions have none"
    assert set(found) == {0, 1}
    assert spread_places(10, 4) == [0, 2, 5, 7] and spread_places(2, 5) == [0, 1] and spread_places(5, 0) == []
    row = rollout_row(make_sample(prompt=2, response=3), Tokenizer(), [], None, 1.0, {"values": [0, 1, 2]})
    assert row["values"] == [0, 1, 2] and "".join(row["token_texts"]) == row["response"]
    assert "token_texts" not in rollout_row(make_sample(), Tokenizer(), [])


def test_each_token_has_the_text_that_it_adds():
    class Bytes:
        """A token a byte; as sentencepiece's, it drops a blank at the beginning."""

        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace").removeprefix(" ")

    text = "a é b🧠."
    texts = token_texts(Bytes(), list(text.encode()))
    assert "".join(texts) == text and texts == ["a", " ", "", "é", " ", "b", "", "", "", "🧠", "."]
    assert token_texts(Bytes(), list("é".encode())[:1]) == ["\ufffd"] and token_texts(Bytes(), []) == []


def test_step_record_names_and_nan():
    status = {"timing/step_total": 4.0, "timing/generation": 1.0, "values": 0.5, "reward": 9.0, "kl": 0.0, "odd": "x",
              "critic_lr": 1e-5}  # fmt: skip
    record = step_record(3, status, {"reward": 0.25, "tokens": 100.0, "response_length_right": float("nan")})
    assert record == {
        "step": 3, "reward": 0.25, "tokens": 100.0, "response_length_right": None, "seconds_step": 4.0,
        "seconds_generation": 1.0, "value_mean": 0.5, "critic_lr": 1e-5, "tokens_per_second": 25.0,
    }  # fmt: skip
    # in a first step policy and reference are the same
    assert step_record(1, {"kl": 0.0}, {}, reference=True)["kl"] == 0.0


def test_rank_metrics():
    assert rank_metrics([[0, 3], [1, 2, 4]]) == {"samples_per_rank_min": 2, "samples_per_rank_max": 3}


def test_run_dir(tmp_path):
    run = RunDir(tmp_path / "run")
    run.append("metrics.jsonl", {"step": 1})
    run.append("metrics.jsonl", {"step": 2})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    run.dump_rollouts(7, lambda: ({"response": text} for text in ("ä\u2028<b>", "\x00")))
    run.wait()
    lines = (tmp_path / "run" / "rollouts" / "step_7.jsonl").read_text().split("\n")
    assert [json.loads(line)["response"] for line in lines if line] == ["ä\u2028<b>", "\x00"]
    assert not list((tmp_path / "run" / "rollouts").glob("*.partial"))


def test_a_number_of_each_sample_or_nan_for_none():
    samples = [make_sample(verdict=2), make_sample()]
    assert info(samples, "verdict").nan_to_num(-9).tolist() == [2.0, -9.0] and info(samples, "format").isnan().all()


def test_a_response_is_written_with_the_rule_that_decided():
    decided = make_sample(prompt=5, response=3, reward=1.0, verdict=Verdict.RIGHT, rule=1, ended=0)
    row = rollout_row(decided, Tokenizer(), ["</answer>"])
    assert (row["verdict"], row["rule"], row["stop_reason"]) == (Verdict.RIGHT.label, RULES[1], "</answer>")
    assert (row["prompt"], row["reference"], row["reward"], row["tokens"]) == ("What is 1+1?", "2", 1.0, 3)
    of_another_agent = rollout_row(make_sample(verdict=Verdict.WRONG, ended=-1), Tokenizer(), [])
    assert RULES[1] and of_another_agent["rule"] is None and of_another_agent["stop_reason"] == "eos"
