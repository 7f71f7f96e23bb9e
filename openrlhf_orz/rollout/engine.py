"""The vLLM engine actor: stop strings and grading by our executor, weights in buckets, given sequences' log-probs."""

import contextlib
import os

import psutil
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from vllm import SamplingParams

from openrlhf_orz.rollout.agent import AgentExecutor


class OrzRolloutActor(RolloutRayActor):
    async def __init__(self, *args, orz=None, **kwargs):
        await super().__init__(*args, **kwargs)
        if isinstance(orz, dict):  # None: the user's own agent
            self.executor = AgentExecutor(**orz)

    def _configure_vllm_env(self, *args, **kwargs):
        super()._configure_vllm_env(*args, **kwargs)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

    async def load_weights(self, source: tuple, slots: list, last: bool, check: bool = False):
        """Load the tensors in ``slots`` of the trainer's buffer ``source``; after the ``last`` ones forget what was
        computed with the old weights. ``check``: keep their checksums for ``weight_report``.
        """
        await self.llm.collective_rpc("load_synced_weights", args=(source, slots, check))
        if last:
            await self.llm.reset_prefix_cache()

    async def weight_report(self, names: list[str], dtype: str) -> list[tuple]:
        """The EngineReport of each worker for the trainer's parameters ``names``, sent as ``dtype``."""
        return await self.llm.collective_rpc("weight_report", args=(names, dtype))

    async def sequence_log_probs(self, sequences: list[list[int]]) -> list[list[float]]:
        """The engine's log-prob of each token but the first, for each sequence of token ids."""
        result = []
        for token_ids in sequences:
            output = await self.generate(token_ids, SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0))
            result.append([step[token].logprob for token, step in zip(token_ids[1:], output.prompt_logprobs[1:])])
        return result

    def memory_mib(self) -> float:
        """Resident memory of the engine and the processes it has started (graders among them), in MiB."""
        process = psutil.Process()
        total = 0
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # ended in the meantime
                total += member.memory_info().rss
        return total / 2**20

    async def shutdown(self):
        """End the engine's processes and the graders."""
        self.llm.shutdown()
        if isinstance(self.executor, AgentExecutor):
            self.executor.grader.close()
