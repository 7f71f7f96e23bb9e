"""avg@n, pass@k, maj@n and the bootstrap against values worked out by hand."""

import itertools

import pytest

from openrlhf_orz.evaluate.statistics import (
    avg_at_n,
    bootstrap_interval,
    evaluation_logs,
    majority,
    pass_at_k,
    powers,
    summarise,
)


def test_avg_at_n_by_hand():
    """Questions weigh the same: (3/4 + 0 + 1/4) / 3."""
    assert avg_at_n([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("n", "right", "k", "expected"), [
    (4, 1, 1, 1 / 4), (4, 1, 2, 1 / 2), (4, 2, 2, 5 / 6), (4, 0, 4, 0), (4, 1, 4, 1), (5, 2, 3, 9 / 10),
])  # fmt: skip
def test_pass_at_k_by_hand(n, right, k, expected):
    """1 - C(n-c, k) / C(n, k): of 4 with 2 right, 1 of 6 pairs holds none."""
    assert pass_at_k(n, right, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_subsets():
    for right in range(7):
        scores = [1] * right + [0] * (6 - right)
        for k in range(1, 7):
            subsets = list(itertools.combinations(scores, k))
            assert pass_at_k(6, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="pass@7"):
        pass_at_k(6, 1, 7)


def test_powers():
    assert powers(16) == [1, 2, 4, 8, 16] and powers(3) == [1, 2, 3] and powers(1) == [1]


def test_bootstrap_by_hand():
    """Two questions, one always right: a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    assert bootstrap_interval([[1, 1], [0, 0]]) == (0, 1)
    assert bootstrap_interval([[1, 0], [0, 1], [1, 0]]) == (0.5, 0.5)  # questions do not differ: nothing varies
    # 100 questions, half of them right: the binomial's 2.5 % and 97.5 % quantiles are 40 and 60
    low, high = bootstrap_interval([[1]] * 50 + [[0]] * 50)
    assert low == pytest.approx(0.40, abs=0.011) and high == pytest.approx(0.60, abs=0.011)
    assert bootstrap_interval([[1]] * 5 + [[0]] * 9, seed=3) == bootstrap_interval([[1]] * 5 + [[0]] * 9, seed=3)


def same(first, second):
    return first.strip("$ ") == second.strip("$ ")


def test_majority_by_hand():
    assert majority(["1", "2", "$1$"], [0, 1, 0], same) == 0  # 1 has two votes
    assert majority(["1", "2", "2"], [0, 1, 1], same) == 1
    assert majority(["1", "2"], [0, 1], same) == 0.5  # a tie: one of the two at random
    assert majority([None, None, "2"], [0, 0, 1], same) == 1  # no answer, no vote
    assert majority([None], [0], same) == 0
    asked = []
    majority(["7"] * 50 + ["8"] * 50, [0] * 100, lambda a, b: asked.append((a, b)) or a == b)
    assert len(asked) == 1  # the same text is not compared again


def row(question, reward, extracted, tokens=10, stop="</answer>", form=True):
    return {"id": question, "reward": reward, "extracted": extracted, "tokens": tokens, "stop_reason": stop,
            "format": form}  # fmt: skip


def test_summary_by_hand():
    rows = [
        row("a", 1.0, "4"), row("a", 0.0, "5", tokens=30),
        # cut by length: its right answer earns nothing and does not vote
        row("b", 0.0, "4", tokens=50, stop="length", form=False), row("b", 1.0, "4", tokens=20),
    ]  # fmt: skip
    result = summarise(rows, lambda row: same)
    assert result["questions"] == 2 and result["n"] == 2 and result["avg_at_n"] == 0.5
    assert result["pass_at_1"] == 0.5 and result["pass_at_2"] == 1 and result["maj_at_n"] == 0.75
    assert result["response_length"] == 27.5 and result["response_length_right"] == 15
    assert result["response_length_wrong"] == 40
    assert result["truncated"] == 0.25 and result["format"] == 0.75 and (result["low"], result["high"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="as many"):
        summarise(rows[:3], lambda row: same)
    assert "maj_at_n" not in summarise(rows)


def test_cut_responses_do_not_vote():
    """Two cut responses say 5; the one that ended says 4 and is right. A vote of all would be lost."""
    rows = [row(0, 0.0, "5", stop="length"), row(0, 0.0, "5", stop="length"), row(0, 1.0, "4")]
    assert summarise(rows, lambda row: same)["maj_at_n"] == 1
    assert evaluation_logs(["x"], rows, 3, lambda row: same)["eval_x_maj3"] == 1
    ended = [row(0, 0.0, "5"), row(0, 0.0, "5"), row(0, 1.0, "4")]
    assert summarise(ended, lambda row: same)["maj_at_n"] == 0


def test_an_answer_with_two_grades_has_the_one_of_most():
    assert majority(["1", "1", "$1$"], [1, 1, 0], same) == 1
    assert majority(["1", "1", "$1$"], [0, 0, 1], same) == 0
    assert majority(["1", "$1$"], [1, 0], same) == 1  # half of them is enough


def test_logs_of_training_by_hand():
    rows = [row(0, 1.0, "4"), row(0, 0.0, None, tokens=30, form=False), row(1, 1.0, "4"), row(1, 1.0, "4", tokens=50)]
    logs = evaluation_logs(["x", "y"], rows, 2, lambda row: same)
    assert (logs["eval_x_pass1"], logs["eval_x_pass2"], logs["eval_y_pass1"]) == (0.5, 1.0, 1.0)
    assert (logs["eval_x_low"], logs["eval_x_high"], logs["eval_x_maj2"]) == (0.5, 0.5, 1.0)
    assert (logs["eval_x_response_length_mean"], logs["eval_y_response_length_mean"]) == (20, 30)
    assert logs["eval_x_format_rate"] == 0.5 and logs["eval_response_length_mean"] == 25
    single = evaluation_logs(["x"], rows[:1], 1, lambda row: same)
    assert not any("maj" in key or "pass2" in key for key in single)
    assert evaluation_logs([], [], 1) == {"eval_num_samples": 0.0}


def test_the_harness_agrees():
    """lighteval's own pass@k on the same scores; it is not part of the set-up (its pins contradict the stack's)."""
    pytest.importorskip("lighteval", reason="lighteval is not installed: it has an environment of its own")
    from lighteval.metrics.metrics_sample import PassAtK

    for n, right, k in itertools.product((4, 16), range(5), (1, 2, 4)):
        metric = PassAtK(k=k, n=n)
        assert pass_at_k(n, right, k) == pytest.approx(metric.pass_at_k([1] * right + [0] * (n - right)))
