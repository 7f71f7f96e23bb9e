"""Agents: one response to a prompt, up to a stop string, and what it earns, by whatever rewards it.

    AgentExecutor   one turn; a verifier, a class of one's own or OpenRLHF's ``--reward.remote_url`` gives the reward
    OwnAgent        any executor of the user's, under the same rules: stop strings, log-probs, cut responses

OpenRLHF can also load this file by its path (``--train.agent_func_path``); it then uses the paper's settings.
"""

import asyncio
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase, SingleTurnAgentExecutor

from openrlhf_orz.reward.extract import has_format
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verdict import Grade
from openrlhf_orz.reward.verifiers import VerifierSet, unpack_label
from openrlhf_orz.settings.flags import STOP_STRINGS

# How a response ended, as a number, since OpenRLHF's extra_logs hold only numbers. 0 and up: index of the stop string.
STOPPED_AT_EOS, CUT_BY_LENGTH = -1, -2
# Keys of the metrics that are ours; the same key in the extra_logs of the user's reward gets "own_" in front.
OUR_KEYS = frozenset(
    "verdict rule right format ended grade_ms reward score return truncated response_length total_length"
    " response_clip_ratio".split()
)


class RewardError(RuntimeError):
    """A reward of the user's gave what is none; the message says what."""


def stop_reason(ended: int, stop: list[str]) -> str:
    """Turn the number for how a response ended into "length", "eos" or the stop string."""
    return {STOPPED_AT_EOS: "eos", CUT_BY_LENGTH: "length"}.get(ended) or stop[ended]


def one_number(value: Any, what: str) -> float:
    """A number, or the one number of a list, an array or a tensor. Raises RewardError, which names ``what``."""
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{what} is {value!r:.80}: it must be one finite number")
    return number


def own_logs(extra_logs: dict | None) -> dict[str, float]:
    """The ``extra_logs`` of the user's reward as floats, under keys that are not ours."""
    return {
        f"own_{key}" if key in OUR_KEYS else key: one_number(value, f"extra_logs[{key!r}] of the reward")
        for key, value in (extra_logs or {}).items()
    }


class Rules:
    """What holds for every response of a run, whatever agent and reward it has.

    Args:
        stop: strings at which generation ends; they stay in the response.
        gap_every: ask vLLM for the log-probs of every ``gap_every``-th response, to compare with the trainer's; 0:
            never.
        keep_cut: a response that is cut by length keeps its reward; else it earns at most 0.
    """

    def __init__(self, stop: Sequence[str] = STOP_STRINGS, gap_every: int = 0, keep_cut: bool = False):
        self.stop, self.gap_every, self.keep_cut = list(stop), gap_every, keep_cut
        self.responses = 0

    def params(self, sampling_params):
        """The sampling parameters of the next response: a copy of those given."""
        params = deepcopy(sampling_params)
        if self.stop:
            params.stop, params.include_stop_str_in_output = list(self.stop), True
        if params.logprobs is None and self.gap_every > 0 and self.responses % self.gap_every == 0:
            params.logprobs = 0  # only those of the sampled tokens
        self.responses += 1
        return params

    def finish(self, output: dict, sampling_params, cut: bool) -> dict:
        """Complete a response that was asked for with ``sampling_params`` before ``params`` changed them.

        ``rollout_log_probs`` are nan where vLLM was asked only for those of other responses, or an agent has kept
        too few of them.
        """
        tokens, log_probs = len(output["observation_tokens"]), output.get("rollout_log_probs")
        if log_probs is None or len(log_probs) != tokens:
            if sampling_params.logprobs:  # OpenRLHF trains on them
                raise RewardError(f"an agent returned {len(log_probs or ())} rollout_log_probs for {tokens} tokens")
            if self.gap_every > 0 or sampling_params.logprobs == 0:
                output["rollout_log_probs"] = [math.nan] * tokens
        if cut and not self.keep_cut:
            for key in ("reward", "scores"):
                output[key] = min(0.0, output[key])
        return output


class _Recorder:
    """Stands in for the engine and keeps its output: OpenRLHF's executor returns neither its text nor why it ended."""

    def __init__(self, engine):
        self.engine = engine

    async def generate(self, *args, **kwargs):
        self.output = await self.engine.generate(*args, **kwargs)
        return self.output


class AgentExecutor(SingleTurnAgentExecutor):
    """Generates one response, then has it rewarded: by a verifier, unless the user has a reward.

    Args:
        rules: as for ``Rules``, by name.
        verifier: the verifier of rows that name none.
        workers: grading processes, shared by all engines of this machine; None for the number of cores, at most 8.
        plain: grade by Math-Verify alone.
        reward: an object of the user's with ``grade(response, label, stopped)`` (docs/extending.md).
        remote: OpenRLHF's executor with the ``--reward.remote_url`` of the run.
    """

    def __init__(
        self,
        verifier: str = "math",
        workers: int | None = None,
        plain: bool = False,
        reward: Any = None,
        remote: SingleTurnAgentExecutor | None = None,
        **rules: Any,
    ):
        super().__init__(remote_rm_url=None)
        self.rules, self.reward, self.remote = Rules(**rules), reward, remote
        self.verifiers: VerifierSet | None = None
        if reward is None and remote is None:
            workers = workers or min(8, len(os.sched_getaffinity(0)))
            self.verifiers = VerifierSet(verifier, workers=workers, plain=plain, shared=True)
        # These threads only wait. asyncio's own are few, and a slow answer must not hold up the others.
        self.threads = ThreadPoolExecutor(64, thread_name_prefix="grade")

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None) -> dict:
        """Return OpenRLHF's response to ``prompt`` with its reward, and in ``extra_logs`` format and ended, with a
        verifier also verdict, rule and grade_ms, all as floats.
        """
        params, recorder = self.rules.params(sampling_params), _Recorder(llm_engine)
        output = await super().execute(prompt, label, params, max_length, hf_tokenizer, recorder, images)
        completion = recorder.output.outputs[0]
        stopped = completion.finish_reason == "stop"
        if self.remote is not None:
            query = hf_tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
            reward, scores, logs = await self._remote_reward(query, prompt, unpack_label(label)[0])
        else:
            reward, scores, logs = await asyncio.get_running_loop().run_in_executor(
                self.threads, self._grade, completion.text, label, stopped
            )
        logs |= {"format": float(has_format(completion.text)), "ended": float(self._ended(completion))}
        output.update(reward=reward, scores=scores, extra_logs=logs)
        return self.rules.finish(output, sampling_params, cut=not stopped)

    def _ended(self, completion) -> int:
        if completion.finish_reason != "stop":
            return CUT_BY_LENGTH
        by_string = isinstance(completion.stop_reason, str)
        return self.rules.stop.index(completion.stop_reason) if by_string else STOPPED_AT_EOS

    def _grade(self, response: str, label: Any, stopped: bool) -> tuple[float, float, dict[str, float]]:
        """(reward, score, logs) by the row's verifier or the user's object; in a thread."""
        label, name = unpack_label(label)
        if self.verifiers is not None:
            grade: Any = self.verifiers.named(name).grade(response, label, stopped or self.rules.keep_cut)
        else:
            grade = self.reward.grade(response, label, stopped)
        if isinstance(grade, dict):
            return _of_dict(grade, f"{type(self.reward).__name__}.grade")
        if not isinstance(grade, Grade):
            number = one_number(grade, f"the reward of {type(self.reward).__name__}.grade")
            return number, number, {}
        logs = {"verdict": float(grade.verdict), "rule": float(rule_number(grade.rule)), "grade_ms": float(grade.ms)}
        return grade.reward, grade.reward, logs

    async def _remote_reward(self, query: str, prompt: str, label: Any) -> tuple[float, float, dict[str, float]]:
        """(reward, score, logs) by ``--reward.remote_url``. OpenRLHF would log an error and go on without a reward."""
        function = self.remote.reward_func is not None
        fetch = self.remote._fetch_rewards_via_func if function else self.remote._fetch_rewards_via_http
        where = self.remote.reward_endpoints[0]
        try:
            (found,) = await fetch([query], [prompt], [label])
        except Exception as error:
            raise RewardError(f"--reward.remote_url {where}: {type(error).__name__}: {error}") from error
        return _of_dict(found, f"--reward.remote_url {where}")

    def close(self) -> None:
        """End the graders' processes that are this executor's."""
        if self.verifiers is not None:
            self.verifiers.close()


def _of_dict(found: Any, what: str) -> tuple[float, float, dict[str, float]]:
    """(reward, score, logs) of what OpenRLHF's reward functions return."""
    if not isinstance(found, dict) or "rewards" not in found:
        raise RewardError(f"{what} gave {found!r:.80}: an object with rewards is expected")
    reward = one_number(found["rewards"], f"rewards of {what}")
    scores = found.get("scores")
    return (
        reward,
        reward if scores is None else one_number(scores, f"scores of {what}"),
        own_logs(found.get("extra_logs")),
    )


class OwnAgent(AgentExecutorBase):
    """An executor of the user's, with the run's rules: it may change the sampling parameters that it gets.

    Its response is cut if it says ``truncated``.
    """

    def __init__(self, executor: AgentExecutorBase, **rules: Any):
        self.executor, self.rules = executor, Rules(**rules)

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None) -> dict:
        """Return the executor's response; its label is what the row had."""
        output = await self.executor.execute(
            prompt=prompt,
            label=unpack_label(label)[0],
            sampling_params=self.rules.params(sampling_params),
            max_length=max_length,
            hf_tokenizer=hf_tokenizer,
            llm_engine=llm_engine,
            images=images,
        )
        what = f"reward of {type(self.executor).__name__} (--train.agent_func_path, --orz.agent_cls)"
        reward = one_number(output.get("reward"), what)
        scores = output.get("scores")
        output = {
            **output,
            "label": label,
            "reward": reward,
            "scores": reward if scores is None else one_number(scores, what.replace("reward", "scores", 1)),
            "extra_logs": own_logs(output.get("extra_logs")),
        }
        return self.rules.finish(output, sampling_params, cut=bool(output.get("truncated")))


def make_executor(loaded: Any, agent: type | None = None, reward: type | None = None, **options: Any):
    """The executor of an engine.

    Args:
        loaded: what OpenRLHF has made of ``--train.agent_func_path`` or ``--reward.remote_url``.
        agent, reward: classes of the user's (``--orz.agent_cls``, ``--orz.reward_cls``).
        options: arguments of AgentExecutor; ``own`` says that the user has a reward, in ``loaded`` or as a class.
    """
    own = options.pop("own", False)
    rules = {name: options[name] for name in ("stop", "gap_every", "keep_cut") if name in options}
    if isinstance(loaded, AgentExecutor):  # of a file of the user's, who calls our constructor without arguments
        loaded.rules = Rules(**rules)
        return loaded
    if agent is not None and not issubclass(agent, AgentExecutor):
        return OwnAgent(agent(), **rules)
    if agent is None and type(loaded) is not SingleTurnAgentExecutor:
        return OwnAgent(loaded, **rules)
    return (agent or AgentExecutor)(
        **options, reward=reward and reward(), remote=loaded if own and reward is None else None
    )
