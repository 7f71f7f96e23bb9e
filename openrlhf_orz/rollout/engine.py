"""The vLLM engine actor: stop strings and grading by our executor, weights in buckets, given sequences' log-probs."""

import asyncio
import contextlib
import getpass
import os
import tempfile
import uuid

import psutil
import ray
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from openrlhf_orz.rollout.agent import AgentExecutor
from openrlhf_orz.runtime.processes import ProcessRecord


class OrzRolloutActor(RolloutRayActor):
    async def __init__(self, *args, orz=None, scratch="", **kwargs):
        scratch = scratch or f"{tempfile.gettempdir()}/"
        self.record = ProcessRecord(f"{scratch}engine-{ray.get_runtime_context().get_actor_id()}")
        self.record.kill_leftovers()
        await super().__init__(*args, **kwargs)
        self.record.write()
        self.born = uuid.uuid4().hex
        if isinstance(orz, dict):  # None: the user's own agent
            self.executor = AgentExecutor(**orz)

    def _configure_vllm_env(self, *args, **kwargs):
        super()._configure_vllm_env(*args, **kwargs)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if base := os.environ.get("VLLM_RPC_BASE_PATH"):
            # vLLM leaves sockets and rendezvous files behind: in a directory that goes with the run
            cache = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
            os.makedirs(base, exist_ok=True)
            os.makedirs(cache, exist_ok=True)
            # compiled C++ headers lie below TMPDIR whatever that variable says, and take seconds at each start
            with contextlib.suppress(FileExistsError):
                os.symlink(cache, os.path.join(base, os.path.basename(cache)))
            os.environ["TMPDIR"] = tempfile.tempdir = base

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        """As upstream, which waits for the last output alone: vLLM is not asked for all those before it, each with all
        tokens so far."""
        params = sampling_params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return await super().generate(prompt_token_ids, params, multi_modal_data)

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

    async def generate_responses(self, *args, sampling_params, num_samples=1, **kwargs):
        if sampling_params.seed is None:
            return await super().generate_responses(
                *args, sampling_params=sampling_params, num_samples=num_samples, **kwargs
            )
        parts = []
        for i in range(num_samples):  # a seed for each sample, or all would be the same
            params = sampling_params.clone()
            params.seed = (sampling_params.seed + i * 0x9E3779B97F4A7C15) % 2**63
            parts.append(super().generate_responses(*args, sampling_params=params, num_samples=1, **kwargs))
        return [response for part in await asyncio.gather(*parts) for response in part]

    async def incarnation(self) -> str:
        """What tells this engine from one that was started in its place. Raises if vLLM's own process has died."""
        await self.llm.check_health()
        return self.born

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
        self.record.delete()
        if isinstance(self.executor, AgentExecutor):
            self.executor.grader.close()
