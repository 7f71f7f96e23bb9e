"""The paper's metrics by hand, and their cost."""

import math
import random
import time

import pytest
import torch

from openrlhf_orz.algo.text_stats import reflects, repetition
from openrlhf_orz.algo.token_stats import LogProbGap, explained_variance, explained_variances, fit_sums
from openrlhf_orz.reward.guards import GUARDS
from openrlhf_orz.reward.rules import JUDGE_RULES, RULES, rule_number
from openrlhf_orz.trainer.metrics import length_metrics, reflection_metrics, step_record, text_metrics


@pytest.mark.parametrize("text", ["Wait, no", "let me RECHECK it", "retrying", "Alternatively, 3", "so. However, x"])
def test_reflection_patterns_in_any_case(text):
    assert reflects(text)


@pytest.mark.parametrize("text", ["", "wait for it", "however it is", "alternatively 3", "re-check"])
def test_no_reflection(text):
    assert not reflects(text)


def test_repetition_by_hand():
    assert repetition([1, 2, 3]) == 0 and repetition([]) == 0
    assert repetition(list(range(100))) == 0
    # 1 2 1 2 1 2 1: the 4-grams 1212 2121 1212 2121, two of them new
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == 0.5
    assert repetition([7] * 103) == pytest.approx(0.99)
    # the order of a 4-gram counts
    assert repetition([1, 2, 3, 4, 9, 4, 3, 2, 1]) == 0


def test_repetition_agrees_with_counting_tuples():
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.choice((0, 1, 2**17)) for _ in range(rng.randrange(4, 80))]
        grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
        assert repetition(ids) == 1 - len(set(grams)) / len(grams)


def test_many_responses_take_no_time():
    """200 responses of 2,000 tokens; and twice the length costs about twice the time, not four times."""
    rng = random.Random(0)
    ids = [rng.randrange(150_000) for _ in range(2000)]
    texts = ["thinking about it " * 400] * 200

    def seconds(token_ids):
        begin = time.process_time()
        text_metrics(texts, token_ids, torch.ones(200, dtype=torch.bool))
        return time.process_time() - begin

    once = min(seconds([ids] * 200) for _ in range(2))
    assert once < 0.6  # the rollouts of the paper are 150 times as large and train for minutes
    assert min(seconds([ids * 2] * 200) for _ in range(2)) < 3.2 * once


def test_length_metrics_by_hand():
    lengths, right = torch.tensor([10, 20, 30, 40, 50]), torch.tensor([True, True, True, False, False])
    metrics = length_metrics(lengths, right)
    assert metrics["response_length_p50"] == 30 and metrics["response_length_p10"] == pytest.approx(14)
    assert metrics["response_length_p90"] == pytest.approx(46)
    assert metrics["response_length_right_p50"] == 20 and metrics["response_length_wrong_p50"] == 45
    assert metrics["response_length_std"] == pytest.approx(math.sqrt(200))
    assert metrics["response_length_wrong_std"] == 5
    assert math.isnan(length_metrics(lengths, right | True)["response_length_wrong_p50"])


def test_reflection_by_hand():
    """Average correct reflection length: responses that reflect and are right (2 and 8 tokens), not all (2, 8, 20)."""
    reflecting = torch.tensor([True, True, True, False])
    right = torch.tensor([True, True, False, True])
    metrics = reflection_metrics(reflecting, torch.tensor([2, 8, 20, 100]), right)
    assert metrics == {
        "reflection": 0.75, "reflection_reward": pytest.approx(2 / 3), "reflection_length": 10,
        "reflection_length_right": 5,
    }  # fmt: skip
    none = reflection_metrics(torch.zeros(2, dtype=torch.bool), torch.tensor([1, 2]), torch.tensor([True, False]))
    assert none["reflection"] == 0 and math.isnan(none["reflection_length_right"])


def test_explained_variance_of_mini_batches():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(3):
        values, returns = torch.rand(4, 7, generator=generator), torch.rand(4, 7, generator=generator).round()
        rows.append((values, returns, (torch.rand(4, 7, generator=generator) > 0.3).float()))
    sums = torch.stack([fit_sums(*row) for row in rows])
    assert explained_variances(sums) == pytest.approx([explained_variance(*row) for row in rows], abs=1e-5)
    # sums over micro-batches or ranks are the sums of the whole
    halves = sum(fit_sums(*(x[i : i + 2] for x in rows[0])) for i in (0, 2))
    assert explained_variances(halves[None]) == pytest.approx([explained_variance(*rows[0])], abs=1e-5)
    constant = fit_sums(torch.rand(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    assert math.isnan(explained_variances(constant[None])[0])


def test_log_prob_gap_by_hand():
    """Differences 0.5 and -0.25 on two measured tokens; the masked and the unmeasured one count nowhere."""
    gap = LogProbGap()
    gap.add(
        torch.tensor([[-1.0, -2.0, math.nan, -9.0]]),
        torch.tensor([[-1.5, -1.75, -1, -1]]),
        torch.tensor([[1, 1, 1, 0]]),
    )
    assert gap.metrics(lambda tensor, op: tensor) == {
        "logprob_gap_mean": 0.375, "logprob_gap_kl": 0.125, "logprob_gap_max": 0.5, "logprob_gap_tokens": 2,
    }  # fmt: skip
    assert LogProbGap().metrics(lambda tensor, op: tensor) == {}


def test_log_prob_gap_by_response():
    gap, mask = LogProbGap(), torch.tensor([[1, 1], [1, 0], [1, 1]])
    sampled = torch.tensor([[-1.0, -2.0], [-3.0, math.inf], [math.nan, math.nan]])
    assert gap.add(sampled, torch.tensor([[-1.5, -2.0], [-4.0, 0.0], [-1.0, -1.0]]), mask).tolist() == [0.25, 1.0, 0]
    found = gap.metrics(lambda tensor, op: tensor, limit=0.5)
    assert found["logprob_gap_masked"] == 0.5  # of the two that were measured
    assert found["logprob_gap_mean"] == 0.5 and found["logprob_gap_max"] == 1.0


def test_rules_have_numbers():
    assert all(
        RULES[rule_number(name)] == name for name in (*JUDGE_RULES, *(guard.name for guard in GUARDS), "identical")
    )
    assert rule_number(None) == 0 and rule_number("something new") == 0


def test_tokens_per_second_of_phases():
    status = {
        "timing/generation": 2.0,
        "timing/ppo_train": 4.0,
        "timing/make_experience": 0.0,
        "timing/step_total": 6.0,
    }
    record = step_record(1, status, {"tokens": 60.0, "response_tokens": 40.0})
    assert record["tokens_per_second_generation"] == 20 and record["tokens_per_second_training"] == 15
    assert record["tokens_per_second"] == 10 and "tokens_per_second_experience" not in record
