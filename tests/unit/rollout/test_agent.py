"""The agent executor: how generation is asked for, how a response ended, and what it earns. The engine is a fake."""

import asyncio
import math
from types import SimpleNamespace

import pytest
import torch
from openrlhf.utils.agent import AgentExecutorBase, SingleTurnAgentExecutor

from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.verifiers import pack_label, unpack_label
from openrlhf_orz.rollout import agent
from openrlhf_orz.rollout.agent import (
    CUT_BY_LENGTH,
    STOPPED_AT_EOS,
    AgentExecutor,
    RewardError,
    make_executor,
    stop_reason,
)
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


class Tokenizer:
    def __call__(self, text, **_):
        return {"input_ids": torch.tensor([PROMPT])}

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids)) + (" special" if not skip_special_tokens else "")


def params(**given):
    return SimpleNamespace(
        **{"logprobs": None, "max_tokens": 8, "stop": None, "include_stop_str_in_output": False} | given
    )


@pytest.fixture
def make(monkeypatch):
    """Executors whose grader belongs to this process; the answers here need none of its workers."""
    kind = agent.VerifierSet
    monkeypatch.setattr(agent, "VerifierSet", lambda name, shared, **options: kind(name, **options))
    made = []

    def executor(**options):
        made.append(AgentExecutor(**options))
        return made[-1]

    yield executor
    for each in made:
        each.close()
        each.threads.shutdown()


def run(executor, engine, label="2", sampling_params=None):
    return asyncio.run(executor.execute("1 + 1?", label, sampling_params or params(), 64, Tokenizer(), engine))


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
    monkeypatch.setattr(agent, "VerifierSet", lambda name, **options: made.append((name, options)))
    monkeypatch.setattr(agent.os, "sched_getaffinity", lambda pid: set(range(100)))
    AgentExecutor()
    AgentExecutor(verifier="letter", workers=3, plain=True)
    assert made == [
        ("math", dict(workers=8, plain=False, shared=True)),
        ("letter", dict(workers=3, plain=True, shared=True)),
    ]


def test_the_rows_verifier_grades(make):
    executor = make(verifier="exact")
    text = "</think> <answer>\\boxed{(B)}</answer>"
    assert run(executor, Engine(text=text), label="B")["reward"] == 0
    output = run(executor, Engine(text=text), label=pack_label("B", "letter"))
    assert output["reward"] == 1 and output["extra_logs"]["rule"] == rule_number("letter")


# ---- rewards and agents of the user's


def reward_file(tmp_path, body):
    (tmp_path / "reward.py").write_text(f"def reward_func(queries, prompts, labels):\n    {body}\n")
    return SingleTurnAgentExecutor([str(tmp_path / "reward.py")])


def test_a_reward_file_has_the_runs_stops_log_probs_and_labels(tmp_path):
    loaded = reward_file(
        tmp_path,
        "return {'rewards': [0.75], 'scores': 0.5, 'extra_logs': {'query': float('special' in queries[0]),"
        " 'label': len(labels[0]['tests']), 'format': 7}}",
    )
    executor = make_executor(loaded, own=True, stop=("</answer>",), gap_every=2)
    engine = Engine()
    outputs = [run(executor, engine, label=pack_label({"tests": [1, 2]})) for _ in range(2)]
    assert {(tuple(each.stop), each.include_stop_str_in_output) for each in engine.asked} == {(("</answer>",), True)}
    assert [each.logprobs for each in engine.asked] == [0, None]
    assert outputs[0]["rollout_log_probs"] == [0.0, 0.0, 0.0, -0.5, -0.25]
    assert all(map(math.isnan, outputs[1]["rollout_log_probs"]))
    assert (outputs[0]["reward"], outputs[0]["scores"]) == (0.75, 0.5)
    # no verdict, and what has a name of ours is not lost
    assert outputs[0]["extra_logs"] == {"query": 1, "label": 2, "own_format": 7, "format": 1, "ended": 0}
    assert executor.verifiers is None


@pytest.mark.parametrize("given, keep, earned", [(0.75, False, 0), (-0.5, False, -0.5), (0.75, True, 0.75)])
def test_a_cut_response_earns_at_most_nothing_with_an_own_reward(tmp_path, given, keep, earned):
    executor = make_executor(reward_file(tmp_path, f"return {{'rewards': {given}}}"), own=True, keep_cut=keep)
    output = run(executor, Engine(finish_reason="length", stop=None))
    assert output["reward"] == output["scores"] == earned and output["extra_logs"]["ended"] == CUT_BY_LENGTH


@pytest.mark.parametrize(
    "body, words",
    [
        ("raise KeyError('no tests')", "reward.py: KeyError: 'no tests'"),
        ("return {'rewards': float('nan')}", "rewards of .*reward.py is nan: it must be one finite number"),
        ("return {'rewards': [0.5, 0.5]}", r"rewards of .*\[0.5, 0.5\]"),
        ("return None", "gave None: an object with rewards is expected"),
        ("return {'rewards': 1, 'extra_logs': {'why': 'good'}}", r"extra_logs\['why'\] of the reward is 'good'"),
    ],
)
def test_a_reward_that_fails_or_is_none_ends_the_run_with_its_reason(tmp_path, body, words):
    with pytest.raises(RewardError, match=words):
        run(make_executor(reward_file(tmp_path, body), own=True), Engine())


@pytest.mark.parametrize(
    "result, reward, logs",
    [
        (0.5, 0.5, {}),
        (Grade(Verdict.WRONG, 0.25, "3", "mine", 1.0), 0.25, {"verdict": 1, "rule": 0, "grade_ms": 1}),
        ({"rewards": 0.75, "extra_logs": {"own": 3}}, 0.75, {"own": 3}),
    ],
)
def test_a_reward_class(result, reward, logs):
    class Reward:
        def grade(self, response, label, stopped):
            assert (response, label, stopped) == (RIGHT, ["2"], True)
            return result

    executor = make_executor(SingleTurnAgentExecutor(None), reward=Reward, stop=("</answer>",))
    output = run(executor, Engine(), label=pack_label(["2"]))
    assert output["reward"] == reward and output["extra_logs"] == {**logs, "format": 1, "ended": 0}


class TwoTurns(AgentExecutorBase):
    """Two turns; the second without log-probs if it changes the sampling parameters."""

    truncated, reward = False, torch.tensor(0.5)

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        await llm_engine.generate(PROMPT, sampling_params)
        found = await llm_engine.generate(PROMPT, params(stop=["own"]))
        tokens = [*PROMPT, 11, 12]
        log_probs = None if found.outputs[0].logprobs is None else [0.0] * 5
        return {"prompt": prompt, "label": label, "observation_tokens": tokens, "action_ranges": [(3, 5)],
                "rollout_log_probs": log_probs, "truncated": self.truncated, "reward": self.reward,
                "scores": None, "extra_logs": {"label": float(label == ["2"])}}  # fmt: skip


def test_an_agent_of_the_users_has_the_runs_rules():
    for loaded, cls in ((TwoTurns(), None), (SingleTurnAgentExecutor(None), TwoTurns)):
        executor, engine = make_executor(loaded, agent=cls, own=True, stop=("</answer>",), gap_every=1), Engine()
        output = run(executor, engine, label=pack_label(["2"]))
        assert [each.stop for each in engine.asked] == [["</answer>"], ["own"]]  # it may have its own
        assert (output["reward"], output["scores"], output["extra_logs"]) == (0.5, 0.5, {"label": 1.0})
        assert all(map(math.isnan, output["rollout_log_probs"])) and len(output["rollout_log_probs"]) == 5
        assert unpack_label(output["label"])[0] == ["2"]


def test_log_probs_that_an_agent_has_lost():
    """0: wanted for the gap, in the first rollouts; 1: OpenRLHF corrects by them."""
    output = run(make_executor(TwoTurns()), Engine(), sampling_params=params(logprobs=0))
    assert len(output["rollout_log_probs"]) == 5 and all(map(math.isnan, output["rollout_log_probs"]))
    with pytest.raises(RewardError, match="0 rollout_log_probs for 5 tokens"):
        run(make_executor(TwoTurns()), Engine(), sampling_params=params(logprobs=1))


def test_an_agents_cut_response_and_its_missing_reward(monkeypatch):
    monkeypatch.setattr(TwoTurns, "truncated", True)
    assert run(make_executor(TwoTurns()), Engine())["reward"] == 0
    monkeypatch.setattr(TwoTurns, "reward", None)
    with pytest.raises(RewardError, match="TwoTurns .*is None"):
        run(make_executor(TwoTurns()), Engine())


def test_a_subclass_of_our_agent_has_the_runs_options(make):
    class Mine(AgentExecutor):
        pass

    mine = make_executor(SingleTurnAgentExecutor(None), agent=Mine, stop=("x",), verifier="exact", gap_every=3)
    assert type(mine) is Mine and mine.rules.stop == ["x"] and mine.rules.gap_every == 3
    assert run(mine, Engine(stop=None))["extra_logs"]["rule"] == rule_number("exact")
    from_file = make_executor(Mine(), stop=("y",), own=True)  # made by OpenRLHF, without arguments
    assert from_file.rules.stop == ["y"] and from_file.verifiers is not None


def test_a_reward_class_is_asked_and_no_url():
    """With --orz.reward_cls the run's --reward.remote_url is our own mark, which is no address."""

    class Mine:
        def grade(self, response, label, stopped):
            return 0.5

    executor = make_executor(SingleTurnAgentExecutor(remote_rm_url="orz"), reward=Mine, own=True)
    assert executor.remote is None and isinstance(executor.reward, Mine)
    executor.close()
