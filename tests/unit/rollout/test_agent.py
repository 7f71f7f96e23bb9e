"""The agent executor: how generation is asked for, how a response ended, and what it earns. The engine is a fake."""

import asyncio
import math
from types import SimpleNamespace

import pytest
import torch

from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.rollout import agent
from openrlhf_orz.rollout.agent import CUT_BY_LENGTH, STOPPED_AT_EOS, AgentExecutor, stop_reason
from openrlhf_orz.settings.flags import STOP_STRINGS

RIGHT = "1 + 1</think> <answer>\\boxed{2}</answer>"
PROMPT = [5, 6, 7]


class Engine:
    """Answers every prompt with ``text``, whose tokens are 11, 12."""

    def __init__(self, text=RIGHT, finish_reason="stop", stop="</answer>"):
        self.text, self.finish_reason, self.stop = text, finish_reason, stop
        self.asked = []

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        assert prompt_token_ids == PROMPT
        self.asked.append(sampling_params)
        logprobs = None
        if sampling_params.logprobs is not None:
            logprobs = [{11: SimpleNamespace(logprob=-0.5)}, {12: SimpleNamespace(logprob=-0.25)}]
        completion = SimpleNamespace(
            text=self.text, token_ids=[11, 12], finish_reason=self.finish_reason, stop_reason=self.stop,
            logprobs=logprobs,
        )  # fmt: skip
        return SimpleNamespace(outputs=[completion])


def params(**given):
    return SimpleNamespace(
        **{"logprobs": None, "max_tokens": 8, "stop": None, "include_stop_str_in_output": False} | given
    )


@pytest.fixture
def make(monkeypatch):
    """Executors whose grader belongs to this process; the answers here need none of its workers."""
    monkeypatch.setattr(agent, "Grader", lambda workers, plain, shared: Grader(workers=workers, plain=plain))
    made = []

    def executor(**options):
        made.append(AgentExecutor(**options))
        return made[-1]

    yield executor
    for each in made:
        each.grader.close()
        each.threads.shutdown()


def run(executor, engine, label="2", sampling_params=None):
    def tokenizer(text, **_):
        return {"input_ids": torch.tensor([PROMPT])}

    return asyncio.run(executor.execute("1 + 1?", label, sampling_params or params(), 64, tokenizer, engine))


def test_stops_at_the_strings_and_keeps_them(make):
    asked, engine = params(), Engine()
    run(make(), engine, sampling_params=asked)
    assert engine.asked[0].stop == list(STOP_STRINGS) and engine.asked[0].include_stop_str_in_output is True
    assert asked.stop is None and not asked.include_stop_str_in_output, "the caller's parameters are shared by prompts"
    run(make(stop=()), engine := Engine(stop=None))
    assert engine.asked[0].stop is None and not engine.asked[0].include_stop_str_in_output


@pytest.mark.parametrize("stop", ["</answer>", None, 151643])
def test_a_right_answer_that_ended_earns_1(make, stop):
    output = run(make(), Engine(stop=stop))
    assert output["reward"] == output["scores"] == 1.0 and not output["truncated"]
    logs = output["extra_logs"]
    assert logs["ended"] == (STOP_STRINGS.index(stop) if isinstance(stop, str) else STOPPED_AT_EOS)
    assert (logs["verdict"], logs["rule"], logs["format"]) == (Verdict.RIGHT, rule_number("identical"), 1.0)
    assert logs["grade_ms"] >= 0 and all(type(value) is float for value in logs.values())
    assert output["observation_tokens"] == [*PROMPT, 11, 12] and output["action_ranges"] == [(3, 5)]


def test_a_right_answer_that_was_cut_earns_nothing(make):
    output = run(make(), Engine(finish_reason="length", stop=None))
    assert output["reward"] == output["scores"] == 0.0 and output["truncated"]
    assert output["extra_logs"]["ended"] == CUT_BY_LENGTH and output["extra_logs"]["verdict"] == Verdict.RIGHT


def test_which_stop_string_ended_it(make):
    output = run(make(stop=("User:", "</answer>")), Engine(stop="</answer>"))
    assert output["extra_logs"]["ended"] == 1.0
    assert [stop_reason(n, ["a", "b"]) for n in (0, 1, STOPPED_AT_EOS, CUT_BY_LENGTH)] == ["a", "b", "eos", "length"]


@pytest.mark.parametrize(
    "text, label, verdict, rule, form",
    [
        ("no answer", "2", Verdict.NO_ANSWER, "", 0),
        (RIGHT, "", Verdict.UNPARSABLE, "reference", 1),
        ("<answer>\\boxed{2}</answer>", "2", Verdict.RIGHT, "identical", 0),
    ],
)
def test_verdict_rule_and_format_are_numbers(make, text, label, verdict, rule, form):
    output = run(make(), Engine(text=text), label=label)
    logs = output["extra_logs"]
    assert (logs["verdict"], logs["rule"], logs["format"]) == (verdict, rule_number(rule), form)
    assert output["reward"] == float(verdict is Verdict.RIGHT)


def test_log_probs_of_every_third_response(make):
    executor, engine = make(gap_every=3), Engine()
    outputs = [run(executor, engine)["rollout_log_probs"] for _ in range(7)]
    assert [each.logprobs for each in engine.asked] == [0, None, None, 0, None, None, 0]
    for i, log_probs in enumerate(outputs):
        if i % 3 == 0:
            assert log_probs == [0.0, 0.0, 0.0, -0.5, -0.25]
        else:  # as many, so that a batch of both kinds is one tensor
            assert len(log_probs) == 5 and all(map(math.isnan, log_probs))


@pytest.mark.parametrize("gap_every, given, expected", [(0, None, None), (0, 1, 1), (3, 1, 1)])
def test_log_probs_are_as_asked_for_otherwise(make, gap_every, given, expected):
    executor, engine = make(gap_every=gap_every), Engine()
    for _ in range(2):
        log_probs = run(executor, engine, sampling_params=params(logprobs=given))["rollout_log_probs"]
        assert log_probs == (None if expected is None else [0.0, 0.0, 0.0, -0.5, -0.25])
    assert [each.logprobs for each in engine.asked] == [expected, expected]


def test_the_pool_is_shared_and_not_larger_than_8(monkeypatch):
    made = []
    monkeypatch.setattr(agent, "Grader", lambda **options: made.append(options))
    monkeypatch.setattr(agent.os, "sched_getaffinity", lambda pid: set(range(100)))
    AgentExecutor()
    AgentExecutor(workers=3, plain=True)
    assert made == [dict(workers=8, plain=False, shared=True), dict(workers=3, plain=True, shared=True)]
