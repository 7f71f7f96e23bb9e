"""The agent executor: generates one response to a prompt, up to a stop string, and has it graded in other processes.

OpenRLHF can also load this file by its path (``--train.agent_func_path``); it then uses the paper's settings.
"""

import asyncio
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_orz.reward.extract import has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.settings.flags import STOP_STRINGS

# How a response ended, as a number, since OpenRLHF's extra_logs hold only numbers. 0 and up: index of the stop string.
STOPPED_AT_EOS, CUT_BY_LENGTH = -1, -2


def stop_reason(ended: int, stop: list[str]) -> str:
    """Turn the number for how a response ended into "length", "eos" or the stop string."""
    return {STOPPED_AT_EOS: "eos", CUT_BY_LENGTH: "length"}.get(ended) or stop[ended]


class _Recorder:
    """Stands in for the engine and keeps its output: OpenRLHF's executor returns neither its text nor why it ended."""

    def __init__(self, engine):
        self.engine = engine

    async def generate(self, *args, **kwargs):
        self.output = await self.engine.generate(*args, **kwargs)
        return self.output


class AgentExecutor(SingleTurnAgentExecutor):
    """Generates one response, then grades it: reward 1 only for a right answer that was not cut by length.

    Args:
        stop: strings at which generation ends; they stay in the response.
        workers: grading processes, shared by all engines of this machine; None for the number of cores, at most 8.
        plain: grade by Math-Verify alone.
        gap_every: ask vLLM for the log-probs of every ``gap_every``-th response, to compare with the trainer's; 0:
            never.
    """

    def __init__(
        self, stop: Sequence[str] = STOP_STRINGS, workers: int | None = None, plain: bool = False, gap_every: int = 0
    ):
        super().__init__(remote_rm_url=None)
        self.stop = list(stop)
        self.gap_every, self.responses = gap_every, 0
        workers = workers or min(8, len(os.sched_getaffinity(0)))
        self.grader = Grader(workers=workers, plain=plain, shared=True)
        # These threads only wait. asyncio's own are few, and a slow answer must not hold up the others.
        self.threads = ThreadPoolExecutor(64, thread_name_prefix="grade")

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None) -> dict:
        """Return OpenRLHF's response to ``prompt`` with its reward, and in ``extra_logs`` verdict, rule, format, ended
        and grade_ms, all as floats. ``rollout_log_probs`` are nan if vLLM was asked only for those of other responses.
        """
        params = deepcopy(sampling_params)
        if self.stop:
            params.stop, params.include_stop_str_in_output = self.stop, True
        asked = params.logprobs is None and self.gap_every > 0
        if asked and self.responses % self.gap_every == 0:
            params.logprobs = 0  # only those of the sampled tokens
        self.responses += 1
        recorder = _Recorder(llm_engine)
        output = await super().execute(prompt, label, params, max_length, hf_tokenizer, recorder, images)
        if asked and output["rollout_log_probs"] is None:
            output["rollout_log_probs"] = [math.nan] * len(output["observation_tokens"])
        completion = recorder.output.outputs[0]
        stopped = completion.finish_reason == "stop"
        if not stopped:
            ended = CUT_BY_LENGTH
        elif isinstance(completion.stop_reason, str):
            ended = self.stop.index(completion.stop_reason)
        else:
            ended = STOPPED_AT_EOS
        grade = await asyncio.get_running_loop().run_in_executor(
            self.threads, self.grader.grade, completion.text, label, stopped
        )
        output.update(
            reward=grade.reward,
            scores=grade.reward,
            extra_logs={
                "verdict": float(grade.verdict),
                "rule": float(rule_number(grade.rule)),
                "format": float(has_format(completion.text)),
                "ended": float(ended),
                "grade_ms": float(grade.ms),
            },
        )
        return output
