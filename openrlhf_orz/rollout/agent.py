"""The agent executor: one answer per prompt, cut at the stop strings, graded in separate processes.

OpenRLHF can also load this file by path (``--train.agent_func_path``); it then has the paper's settings.
"""

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_orz.reward.extract import has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.settings.flags import STOP_STRINGS

# how a response ended, as numbers for OpenRLHF's extra_logs
STOPPED_AT_EOS, CUT_BY_LENGTH = -1, -2  # else the index of the stop string


def stop_reason(ended: int, stop: list[str]) -> str:
    """The name of such a number: "length", "eos" or the stop string itself."""
    return {STOPPED_AT_EOS: "eos", CUT_BY_LENGTH: "length"}.get(ended) or stop[ended]


class _Recorder:
    """Passes generation on to the engine and keeps its output, which the executor above does not return."""

    def __init__(self, engine):
        self.engine = engine

    async def generate(self, *args, **kwargs):
        self.output = await self.engine.generate(*args, **kwargs)
        return self.output


class AgentExecutor(SingleTurnAgentExecutor):
    """Generates one response, then grades it: reward 1 only for a right answer that stopped by itself.

    Args:
        stop: strings at which generation ends; they stay in the response.
        workers: grading processes, shared by all engines of this machine; None for the number of cores, at most 8.
        plain: grade by Math-Verify alone.
        gap_every: ask vLLM for the log-probs of one response in so many, to compare the trainer's with; 0: never.
    """

    def __init__(self, stop=STOP_STRINGS, workers: int | None = None, plain: bool = False, gap_every: int = 0):
        super().__init__(remote_rm_url=None)
        self.stop = list(stop)
        self.gap_every, self.responses = gap_every, 0
        workers = workers or min(8, len(os.sched_getaffinity(0)))
        self.grader = Grader(workers=workers, plain=plain, shared=True)
        # threads of our own only wait: asyncio's shared ones are few, and a slow answer must not hold up the rest
        self.threads = ThreadPoolExecutor(64, thread_name_prefix="grade")

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        params = deepcopy(sampling_params)
        if self.stop:
            params.stop, params.include_stop_str_in_output = self.stop, True
        asked = params.logprobs is None and self.gap_every > 0
        if asked and self.responses % self.gap_every == 0:
            params.logprobs = 0  # of the sampled tokens alone
        self.responses += 1
        recorder = _Recorder(llm_engine)
        output = await super().execute(prompt, label, params, max_length, hf_tokenizer, recorder, images)
        if asked and output["rollout_log_probs"] is None:
            output["rollout_log_probs"] = [math.nan] * len(output["observation_tokens"])
        completion = recorder.output.outputs[0]
        stopped = completion.finish_reason == "stop"
        grade = await asyncio.get_running_loop().run_in_executor(
            self.threads, self.grader.grade, completion.text, label, stopped
        )
        if not stopped:
            ended = CUT_BY_LENGTH
        elif isinstance(completion.stop_reason, str):
            ended = self.stop.index(completion.stop_reason)
        else:
            ended = STOPPED_AT_EOS
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
