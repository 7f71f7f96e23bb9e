"""Responses from vLLM: engines in processes for an evaluation. pass_rates.py has one in its own process.

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
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

import psutil

from openrlhf_orz.evaluate.questions import EvaluationError
from openrlhf_orz.settings.derive import cpu_dtype
from openrlhf_orz.settings.flags import STOP_STRINGS

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams

PROGRESS_S = 15


def default_dtype(device: str) -> str:
    """The dtype in which a model answers on ``device``; "cpu" for what is quick there."""
    return {"bf16": "bfloat16", "fp32": "float32"}[cpu_dtype()] if device == "cpu" else "bfloat16"


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
    log: str | None = None  # where the engines' processes print to; None: where the command does


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

    from openrlhf_orz.models.cpu_ops import allow_tiles

    extra = dict(settings.engine_args)
    if settings.device == "cpu":
        allow_tiles()
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
    if settings.log:
        handle = os.open(settings.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for fd in (1, 2):
            os.dup2(handle, fd)
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
    log(f"loading {settings.model} in {len(processes)} engines" + (f" (log: {settings.log})" if settings.log else ""))
    for process in processes.values():
        process.start()
    working, received, pace = set(processes), 0, Pace(len(requests), "responses", log)
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
                        + (f"; what it printed: {settings.log}" if settings.log else "")
                    ) from None
                continue
            if kind == "row":
                accept(content)
                received += 1
                pace.tell(received)
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


class Pace:
    """Says now and then how far the work is: "120 of 613 questions, 0.85/s, 10 min left"."""

    def __init__(self, total: int, what: str, log: Callable[[str], object]):
        self.total, self.what, self.log = total, what, log
        self.start = self.told_at = time.monotonic()

    def tell(self, done: int) -> None:
        """So many are done. Silent for PROGRESS_S after a line, but for the last one."""
        now = time.monotonic()
        if now - self.told_at < PROGRESS_S and done < self.total:
            return
        self.told_at, rate = now, done / max(now - self.start, 1e-9)
        left = (self.total - done) / rate if rate else 0.0
        time_left = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
        self.log(
            f"{done} of {self.total} {self.what}, {rate:.2g}/s" + (f", {time_left} left" if rate and left else "")
        )
