"""vLLM engines: the Ray actor (grading, weight sync in buckets, log-probs of given sequences), its arguments, and the
handle that starts all engines of a run and ends them.
"""

import asyncio
import contextlib
import os
import re
import signal
import tempfile
import threading
import time
import uuid
from multiprocessing import resource_tracker

import numpy as np
import psutil
import ray
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from ray.exceptions import RayError, RayTaskError
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from openrlhf_orz.rollout.agent import AgentExecutor, make_executor
from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.runtime.console import tell_stage
from openrlhf_orz.runtime.fork_server import SPARE, spawned_in_spare
from openrlhf_orz.runtime.private import compile_cache, require_private
from openrlhf_orz.runtime.processes import ProcessRecord
from openrlhf_orz.runtime.stopping import STOP_SIGNALS
from openrlhf_orz.runtime.watchdog import RunFailed


def engine_args(args, agent: type | None = None, reward: type | None = None) -> dict:
    """Return our changes to OpenRLHF's vLLM engine arguments; ``agent`` and ``reward`` are classes of the user's."""
    extra = {
        "worker_extension_cls": "openrlhf_orz.rollout.worker.OrzWorkerExtension",
        "dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[args.ds.param_dtype],
        "trust_remote_code": args.orz.trust_remote_code,
    }
    extra["orz"] = {
        "stop": tuple(args.orz.stop),
        "workers": args.orz.grader_workers,
        "plain": args.orz.plain_math_verify,
        "gap_every": args.orz.logprob_gap_every,
        "verifier": args.orz.verifier,
        "keep_cut": args.orz.keep_cut_rewards,
        "own": not args.orz.verifier_grades,
        "agent": agent,
        "reward": reward,
    }
    extra["logprobs_mode"] = "processed_logprobs"  # of the distribution that was sampled from, as the trainer's
    if args.orz.fp32_head:
        extra["hf_overrides"] = {"head_dtype": "float32"}
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if getattr(args.orz, name) is not None:
            extra[name] = getattr(args.orz, name)
    if args.orz.device == "cpu":
        extra["kv_cache_memory_bytes"] = args.orz.cpu_kvcache_mib * 2**20
        if args.train.full_determinism_enable:
            # If a seeded request's prompt is cut in parts, vLLM rewinds its generator, which a generator on a CPU
            # cannot do. The engine would die whenever all prompts of a rollout come at once.
            extra["enable_chunked_prefill"] = False
    return extra


class EngineLost(RunFailed):
    """An engine cannot be started, or cannot be brought back; the message says which and why."""


class EngineNotStarted(RuntimeError):
    """The engine has no vLLM; the message says why its start has failed, or that it waits to be started again."""


def reason(error: Exception) -> str:
    """What an engine's call raised, in few words: the text of its own error, without Ray's frame."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and isinstance(cause, Exception):
        return str(cause) if isinstance(cause, EngineNotStarted) else f"{type(cause).__name__}: {cause}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def logged_cause(log: str) -> str:
    """The last error in a log of vLLM's processes that says more than that another process has failed, or ""."""
    errors = re.findall(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:Error|Exception): \S.*)$", log, re.MULTILINE)
    told = [line for line in errors if not re.search(r"initialization failed|See (root|stack)", line)]
    return told[-1] if told else ""


def as_arrays(response: dict) -> dict:
    """An agent's response with its tokens (int32) and log-probs (float32) as arrays: lists take long to pickle."""
    log_probs = response["rollout_log_probs"]
    return response | {
        "observation_tokens": np.asarray(response["observation_tokens"], np.int32),
        "rollout_log_probs": None if log_probs is None else np.asarray(log_probs, np.float32),
    }


class Engines:
    """Stands in for the engine's Ray class where OpenRLHF starts engines, and keeps their handles.

    An engine that shuts down by itself releases shared memory and ends its processes; killed with Ray it does not. If
    an engine dies, Ray starts its process again, which then waits for ``start``.

    Args:
        scratch: folder of the run's temporary files, with a slash at its end.
        step: changes the engines' seeds, as a resumed run must not draw the random numbers of its start again.
        run_dir: where an engine tells that it is ready.
    """

    SHUTDOWN_S, LOOK_S = 15, 0.5

    def __init__(self, engine_cls: type, scratch: str, step: int = 0, run_dir: str | None = None):
        self.remote_cls, self.scratch, self.step = ray.remote(engine_cls), scratch, step
        self.run_dir = run_dir
        self.handles: list = []
        self.starts: list = []  # the reference of each engine's first start

    def options(self, **options) -> "Engines":
        """As Ray's: ``remote`` starts an engine with these options."""
        spare = {"env_vars": {SPARE: "1"}}  # where its process is a fork: another one for vLLM
        self.with_options = self.remote_cls.options(**options, max_restarts=-1, max_task_retries=0, runtime_env=spare)
        return self

    def remote(self, *args, seed: int, **kwargs):
        """Start an engine and return its handle."""
        seed += 1_000_003 * self.step
        told = {"run_dir": self.run_dir, "number": len(self.handles) + 1}
        self.handles.append(self.with_options.remote(*args, seed=seed, scratch=self.scratch, **told, **kwargs))
        self.starts.append(self.handles[-1].start.remote())
        return self.handles[-1]

    def failed_start(self, done: threading.Event, limit_s: float) -> EngineLost | None:
        """Wait until ``done``. Returns the error of an engine whose first start fails, or takes above ``limit_s``."""
        begin, seen, waiting = time.monotonic(), 0, dict[object, int]()
        while not done.wait(self.LOOK_S):
            while seen < len(self.starts):
                waiting[self.starts[seen]], seen = seen, seen + 1
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0) if waiting else ([], [])
            for ref in ready:
                index = waiting.pop(ref)
                try:
                    ray.get(ref)
                except RayError as error:
                    return EngineLost(f"engine {index} cannot start: {reason(error)}")
            if waiting and limit_s and time.monotonic() - begin > limit_s:
                slow = ", ".join(map(str, waiting.values()))
                return EngineLost(f"engine {slow} has not started within {limit_s:g} s (--orz.start_timeout_s)")
        return None

    def shutdown(self) -> None:
        """Ask all engines to end and wait at most SHUTDOWN_S. Dead engines are no error."""
        refs = [engine.shutdown.remote() for engine in self.handles]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=self.SHUTDOWN_S)


class OrzRolloutActor(RolloutRayActor):
    """OpenRLHF's engine with our executor. Its process comes first, and vLLM with ``start``.

    Ray starts the process of an engine that has died again at once, perhaps while trainers fill its GPU, and never
    again an actor whose constructor raises. So the constructor does nothing that can fail, and whoever knows that the
    GPU is free calls ``start``, which tells why it fails.

    Args:
        orz: arguments of make_executor.
        scratch: folder of the run's temporary files, with a slash at its end.
        run_dir, number: where it tells that it is ready, and as which engine; None: nowhere.
    """

    END_S = 0.5  # then vLLM kills its process, which has nothing to save and takes seconds to end

    def __init__(
        self, *args, orz: dict | None = None, scratch: str = "", run_dir: str | None = None, number: int = 1, **kwargs
    ):
        self.arguments = args, kwargs
        self.orz, self.scratch, self.run_dir, self.number = orz, scratch, run_dir, number
        self.lock, self.first_start = asyncio.Lock(), asyncio.Event()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.first_start.set()  # it was before, and nobody has asked for another one yet
        self.failure: str | None = None

    def __getattr__(self, name: str):
        if name in ("llm", "executor", "born"):
            raise EngineNotStarted(self.failure or "its process has died, and waits to be started again")
        raise AttributeError(name)

    async def start(self) -> str:
        """Start vLLM, unless that is done, and return ``incarnation``. Raises EngineNotStarted with the cause."""
        async with self.lock:
            if "born" not in vars(self) and self.failure is None:
                log = os.path.realpath("/proc/self/fd/2")  # vLLM's own process writes there, too
                size = os.path.getsize(log) if os.path.isfile(log) else 0
                try:
                    await self._start()
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    if os.path.isfile(log):
                        with open(log, errors="replace") as stream:
                            stream.seek(size)
                            cause = logged_cause(stream.read())
                        self.failure += f" ({cause})" if cause and cause not in self.failure else ""
                    raise EngineNotStarted(self.failure) from error
                finally:
                    self.first_start.set()
        return await self.incarnation()

    async def _start(self) -> None:
        scratch = require_private(self.scratch) if self.scratch else f"{tempfile.gettempdir()}/"
        self.record = ProcessRecord(f"{scratch}engine-{ray.get_runtime_context().get_actor_id()}")
        self.record.kill_leftovers()
        args, kwargs = self.arguments
        # Python unblocks the signals that stop a run where it starts this helper of multiprocessing, and so in vLLM's
        # processes. They would end by a signal to the whole process group, which is the driver's to answer.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        with spawned_in_spare():
            await super().__init__(*args, **kwargs)
        self.record.write()
        if self.orz is not None:
            self.executor = make_executor(self.executor, **self.orz)
        self.born = uuid.uuid4().hex
        if self.run_dir is not None:
            tell_stage(self.run_dir, f"engine {self.number} is ready")

    async def init_process_group(self, *args, **kwargs):
        await self.first_start.wait()  # a rank of the trainer may be sooner
        return await super().init_process_group(*args, **kwargs)

    def _configure_vllm_env(self, *args, **kwargs):
        super()._configure_vllm_env(*args, **kwargs)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        cache = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compile_cache(default_cache_dir()))
        if base := os.environ.get("VLLM_RPC_BASE_PATH"):
            # vLLM leaves sockets and rendezvous files behind. This directory is removed with the run.
            require_private(os.path.dirname(base))
            os.makedirs(base, exist_ok=True)
            if os.environ.get("DS_ACCELERATOR") == "cpu":  # on a GPU compilers would fill the memory with their files
                # Compiled C++ headers always lie below TMPDIR. To compile them takes seconds at each start.
                with contextlib.suppress(FileExistsError):
                    os.symlink(cache, os.path.join(base, os.path.basename(default_cache_dir())))
                os.environ["TMPDIR"] = tempfile.tempdir = base

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        """Ask vLLM only for the last output, as only that is used: upstream gets all tokens so far at each step."""
        await self.first_start.wait()
        params = sampling_params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return await super().generate(prompt_token_ids, params, multi_modal_data)

    async def load_weights(self, source: tuple, places: list, last: bool, check: bool = False) -> list[str]:
        """Load the tensors at ``places`` in the trainer's buffer ``source``. After the ``last`` bucket, drop the
        prefix cache, which the old weights computed. ``check``: keep the tensors' checksums for ``weight_report``.
        Returns the devices of the workers, which have opened the buffer.

        Raises SyncError, with their names, if there are parameters that the sync has not loaded.
        """
        await self.first_start.wait()
        found = await self.llm.collective_rpc("load_synced_weights", args=(source, places, last, check))
        lost = sorted({name for _, missing in found for name in missing})
        if lost:
            more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
            raise SyncError(
                f"a weight sync has not reached {', '.join(lost[:4])}{more}: vLLM takes other"
                " names than those of a checkpoint that transformers writes, so that this model cannot be trained here"
            )
        if last:
            # of requests that are still running, too, as an agent of one's own may leave: vLLM would keep the cache
            await self.llm.reset_prefix_cache(reset_running_requests=True)
        return [device for device, _ in found]

    async def weight_report(self, names: list[str], dtype: str) -> list[tuple]:
        """Return each worker's EngineReport for the trainer's parameters ``names``, sent as ``dtype``."""
        return await self.llm.collective_rpc("weight_report", args=(names, dtype))

    async def generate_responses(self, *args, sampling_params, num_samples: int = 1, **kwargs) -> list[dict]:
        """Return ``num_samples`` responses to a prompt. With a seed, each sample gets another one derived from it."""
        if sampling_params.seed is None:
            responses = await super().generate_responses(
                *args, sampling_params=sampling_params, num_samples=num_samples, **kwargs
            )
            return [as_arrays(response) for response in responses]
        parts = []
        for i in range(num_samples):  # with one seed all samples would be equal
            params = sampling_params.clone()
            params.seed = (sampling_params.seed + i * 0x9E3779B97F4A7C15) % 2**63
            parts.append(super().generate_responses(*args, sampling_params=params, num_samples=1, **kwargs))
        return [as_arrays(response) for part in await asyncio.gather(*parts) for response in part]

    async def incarnation(self) -> str:
        """Return an id that changes when the engine is started again. Raises if vLLM's own process is dead."""
        await self.first_start.wait()
        born = self.born
        await self.llm.check_health()
        return born

    async def sequence_log_probs(self, sequences: list[list[int]]) -> list[list[float]]:
        """Return, for each sequence of token ids, the engine's log-prob of each token but the first."""
        result = []
        # greedy: the token that is sampled at the end must not take a random number from the rollouts
        for token_ids in sequences:
            output = await self.generate(token_ids, SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0))
            result.append([step[token].logprob for token, step in zip(token_ids[1:], output.prompt_logprobs[1:])])
        return result

    def memory_mib(self) -> float:
        """Return the resident memory of the engine and its child processes, graders included, in MiB."""
        process = psutil.Process()
        total = 0
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # ended in the meantime
                total += member.memory_info().rss
        return total / 2**20

    async def gpu_memory_mib(self) -> float | None:
        """Return the memory in use on its GPUs, the largest of them, in MiB; None on a CPU."""
        return max((mib for mib in await self.llm.collective_rpc("gpu_memory_mib") if mib is not None), default=None)

    async def shutdown(self) -> None:
        """End the engine's processes and the graders."""
        self.llm.shutdown(timeout=self.END_S)
        self.record.delete()
        if isinstance(self.executor, AgentExecutor):
            self.executor.close()
