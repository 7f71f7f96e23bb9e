"""Responses from vLLM: engines in processes for an evaluation, and one in this process for pass rates.

Both sample as training does: with its stop strings, which stay in the response, and with special tokens in the text.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue as queues
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

import psutil

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.evaluate.questions import EvaluationError
from openrlhf_orz.reward.verifiers import VerifierSet
from openrlhf_orz.settings.flags import STOP_STRINGS

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams

    from openrlhf_orz.data.curate.config import PassRate
    from openrlhf_orz.data.curate.pass_rate import Sampler

PROGRESS_S = 15
_GRADED_AT_ONCE = 64


@dataclass(frozen=True)
class Request:
    """One response to generate. ``key`` is (benchmark, question, sample)."""

    key: tuple[str, str, int]
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class EngineSettings:
    """The settings that all requests of an evaluation share."""

    model: str
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...]
    batch_size: int
    device: str
    dtype: str
    tensor_parallel: int = 1
    cores: int = 1
    kvcache_mib: int = 512
    gpu_memory: float = 0.9
    max_len: int | None = None
    trust_remote_code: bool = False
    engine_args: dict = field(default_factory=dict)


def sampling_params(
    temperature: float, top_p: float, max_tokens: int, stop: Sequence[str] = STOP_STRINGS, **more: Any
) -> SamplingParams:
    """vLLM's sampling parameters as in training; ``more`` are further arguments of ``SamplingParams``."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop=list(stop), include_stop_str_in_output=True,
        skip_special_tokens=False, **more,
    )  # fmt: skip


def make_engine(settings: EngineSettings) -> LLMEngine:
    """vLLM's engine on GPUs or a CPU."""
    from vllm import EngineArgs, LLMEngine

    extra = dict(settings.engine_args)
    if settings.device == "cpu":
        extra.setdefault("kv_cache_memory_bytes", settings.kvcache_mib * 2**20)
        extra.setdefault("enforce_eager", True)
        # where a prompt is cut into parts, vLLM rewinds a seeded request's generator, which a CPU generator cannot do
        extra.setdefault("enable_chunked_prefill", False)
    else:
        extra.setdefault("gpu_memory_utilization", settings.gpu_memory)
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=settings.model, dtype=settings.dtype, tensor_parallel_size=settings.tensor_parallel,
            max_model_len=settings.max_len, max_num_seqs=settings.batch_size, enable_prefix_caching=True,
            trust_remote_code=settings.trust_remote_code, disable_log_stats=True, **extra,
        )
    )  # fmt: skip


def generate_responses(
    engine: LLMEngine, settings: EngineSettings, requests: Sequence[Request], accept: Callable[[dict], None]
) -> None:
    """Run all ``requests``, at most ``batch_size`` at a time; ``accept(row)`` gets each response when it ends.

    A prompt that leaves no room for a response gives a row with ``prompt_tokens`` and ``limit``, and no response.
    """
    from vllm import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    waiting = list(reversed(requests))
    running: dict[str, tuple[Request, float]] = {}
    limit = engine.model_config.max_model_len
    while waiting or running:
        while waiting and len(running) < settings.batch_size:
            request = waiting.pop()
            if len(request.prompt) >= limit:
                accept({"key": request.key, "prompt_tokens": len(request.prompt), "limit": limit})
                continue
            params = sampling_params(
                settings.temperature, settings.top_p,
                max(1, min(settings.max_new_tokens, limit - len(request.prompt))), settings.stop,
                seed=request.seed, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            name = "|".join(map(str, request.key))
            running[name] = request, time.monotonic()
            engine.add_request(name, TokensPrompt(prompt_token_ids=request.prompt), params)
        for output in engine.step():
            if output.finished:
                completion, (request, began) = output.outputs[0], running.pop(output.request_id)
                reason = completion.stop_reason if isinstance(completion.stop_reason, str) else "eos"
                accept({
                    "key": request.key, "response": completion.text, "token_ids": list(completion.token_ids),
                    "stop_reason": reason if completion.finish_reason == "stop" else "length",
                    "seconds": round(time.monotonic() - began, 3),
                })  # fmt: skip


def _end_with_parent() -> None:
    """Start a thread that ends this process and its children when the command is gone, even if by SIGKILL."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "not started by multiprocessing"
        parent.join()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def engine_process(number: int, settings: EngineSettings, requests: list[Request], channel: Queue) -> None:
    """Run engine ``number`` in this process.

    Puts (number, "row", response) on the channel for each response, and at the end (number, "done", None) or
    (number, "failed", traceback).
    """
    _end_with_parent()
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # the engine runs in this process: a further one would not notice that this one was killed
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(settings.cores)
    if settings.device == "cpu":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not spin
        os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
            engine_devices(number, settings.tensor_parallel, os.environ.get("CUDA_VISIBLE_DEVICES"))
        )
    try:
        engine = make_engine(settings)
        generate_responses(engine, settings, requests, lambda row: channel.put((number, "row", row)))
    except BaseException:
        channel.put((number, "failed", traceback.format_exc()))
        raise
    channel.put((number, "done", None))


def engine_devices(number: int, tensor_parallel: int, visible: str | None) -> list[str]:
    """The GPUs of engine ``number``, of those in ``visible`` (CUDA_VISIBLE_DEVICES) or of all."""
    chosen = range(number * tensor_parallel, (number + 1) * tensor_parallel)
    names = visible.split(",") if visible else None
    return [names[i] if names else str(i) for i in chosen]


def run_engines(
    settings: EngineSettings,
    requests: list[Request],
    engines: int,
    accept: Callable[[dict], object],
    log: Callable[[str], object] = print,
) -> None:
    """Start ``engines`` processes, share the requests among them, and give each response to ``accept`` as it comes.

    Raises EvaluationError with an engine's error if one fails or dies; the responses before that were accepted.
    """
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    shares = [requests[i::engines] for i in range(engines)]
    processes = {
        i: context.Process(target=engine_process, args=(i, settings, share, channel))
        for i, share in enumerate(shares)
        if share
    }
    for process in processes.values():
        process.start()
    working, received, last = set(processes), 0, time.monotonic()
    try:
        while working:
            try:
                number, kind, content = channel.get(timeout=1)
            except queues.Empty:
                dead = [i for i in working if not processes[i].is_alive()]
                if dead and channel.empty():
                    code = processes[dead[0]].exitcode
                    raise EvaluationError(
                        f"engine {dead[0]} died (exit code {code}): run the same command to go on"
                    ) from None
                continue
            if kind == "row":
                accept(content)
                received += 1
                if time.monotonic() - last > PROGRESS_S:
                    last = time.monotonic()
                    log(f"{received} of {len(requests)} responses")
            elif kind == "done":
                working.discard(number)
            else:
                raise EvaluationError(f"engine {number} failed; run the same command to go on:\n{content}")
    finally:
        for process in processes.values():
            if working:
                process.terminate()
            process.join(20)
            if process.is_alive():
                process.kill()


def pass_rate_sampler(options: PassRate) -> Sampler:
    """Load the model of the pass-rate stage; the result answers each prompt n times and counts the right answers.

    Raises DataError if vLLM is not installed or does not load the model.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read on CPU only
    try:
        from vllm import LLM

        model = LLM(
            options.model, dtype=options.dtype, max_model_len=options.max_model_len or None, seed=0, enforce_eager=True
        )
    except Exception as error:
        raise DataError(f"pass_rate.model {options.model}: vLLM did not load it: {error}") from error
    # the engine has a seed, the requests have none: chunked prefill is on, with which seeds fail on a CPU (above)
    params = sampling_params(options.temperature, options.top_p, options.max_new_tokens, n=options.n)
    verifiers = VerifierSet(shared=True)
    threads = ThreadPoolExecutor(_GRADED_AT_ONCE)

    def reward(answer: Any, reference: str, name: str) -> float:
        return verifiers.named(name).grade(answer.text, reference, answer.finish_reason == "stop").reward

    def sample(prompts: list[str], references: list[str], names: list[str]) -> list[int]:
        outputs = model.generate(prompts, params, use_tqdm=False)
        asked = [
            threads.submit(reward, answer, reference, name)
            for output, reference, name in zip(outputs, references, names)
            for answer in output.outputs
        ]
        rewards = [future.result() for future in asked]
        return [int(sum(rewards[i : i + options.n])) for i in range(0, len(rewards), options.n)]

    return sample
