"""One vLLM engine in a process of its own: takes requests, hands back each response as soon as it is finished."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import traceback
from dataclasses import dataclass, field

import psutil


@dataclass(frozen=True)
class Request:
    """One response to generate: ``key`` names it, the rest is what the engine needs."""

    key: tuple[str, str, int]  # benchmark, question, sample
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class EngineSettings:
    """What all requests of an evaluation share."""

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


def make_engine(settings: EngineSettings):
    """vLLM's engine, with what its CPU build needs."""
    from vllm import EngineArgs, LLMEngine

    extra = dict(settings.engine_args)
    if settings.device == "cpu":
        extra.setdefault("kv_cache_memory_bytes", settings.kvcache_mib * 2**20)
        extra.setdefault("enforce_eager", True)
        # of a seeded request whose prompt is cut into parts vLLM rewinds the generator, which a CPU's cannot do
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


def generate(engine, settings: EngineSettings, requests, hand_over) -> None:
    """Run all ``requests``, at most ``batch_size`` at a time; ``hand_over(row)`` gets each response when it ends."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    waiting, running = list(reversed(requests)), {}
    limit = engine.model_config.max_model_len
    while waiting or running:
        while waiting and len(running) < settings.batch_size:
            request = waiting.pop()
            params = SamplingParams(
                temperature=settings.temperature, top_p=settings.top_p, seed=request.seed,
                max_tokens=max(1, min(settings.max_new_tokens, limit - len(request.prompt))),
                stop=list(settings.stop), include_stop_str_in_output=True, skip_special_tokens=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            name = "|".join(map(str, request.key))
            running[name] = request, time.monotonic()
            engine.add_request(name, TokensPrompt(prompt_token_ids=request.prompt), params)
        for output in engine.step():
            if output.finished:
                completion, (request, began) = output.outputs[0], running.pop(output.request_id)
                reason = completion.stop_reason if isinstance(completion.stop_reason, str) else "eos"
                hand_over({
                    "key": request.key, "response": completion.text, "token_ids": list(completion.token_ids),
                    "stop_reason": reason if completion.finish_reason == "stop" else "length",
                    "seconds": round(time.monotonic() - began, 3),
                })  # fmt: skip


def end_with_parent() -> None:
    """A thread that ends this process and all it has started as soon as the command is gone, even if by SIGKILL."""

    def watch():
        multiprocessing.parent_process().join()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(number: int, settings: EngineSettings, requests: list[Request], queue) -> None:
    """The process: puts (number, "row", dict) for each response, at the end "done", or "failed" with the error."""
    end_with_parent()
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # the engine in this process, not in a further one, which would not notice that this one was killed
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(settings.cores)
    if settings.device == "cpu":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not spin
        os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else None
        first = number * settings.tensor_parallel
        chosen = range(first, first + settings.tensor_parallel)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i] if devices else str(i) for i in chosen)
    try:
        generate(make_engine(settings), settings, requests, lambda row: queue.put((number, "row", row)))
    except BaseException:
        queue.put((number, "failed", traceback.format_exc()))
        raise
    queue.put((number, "done", None))
