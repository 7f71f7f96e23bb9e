"""How often a model answers a question rightly, for curation: vLLM in this process."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.evaluate.generate import Pace, default_dtype, sampling_params
from openrlhf_orz.reward.verifiers import VerifierSet
from openrlhf_orz.settings.derive import detect_device

if TYPE_CHECKING:
    from openrlhf_orz.data.curate.config import PassRate
    from openrlhf_orz.data.curate.pass_rate import Sampler

_GRADED_AT_ONCE = 64


class PaceBar:
    """What vLLM takes in the place of tqdm's bar: it calls ``update`` once for each prompt that is answered."""

    n, postfix = 0, ""

    def __init__(self, answered: Callable[[], object]):
        self.answered, self.start = answered, time.monotonic()

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": max(time.monotonic() - self.start, 1e-9)}

    def update(self, n: int = 1) -> None:
        self.answered()

    def refresh(self) -> None: ...

    def close(self) -> None: ...


def pass_rate_sampler(options: PassRate, questions: int = 0, log: Callable[[str], object] | None = None) -> Sampler:
    """Load the model of the pass-rate stage; the result answers each prompt n times and counts the right answers.

    ``log`` is told now and then how many of all ``questions`` are answered.

    Raises DataError if vLLM is not installed or does not load the model.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # an engine in a process of its own is given up where a step takes five minutes, as on cores that others use, too
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # read on CPU only. GiB: with one there were 180 blocks of 128 tokens, fewer than 256 answers take at once
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # vLLM's own choice leaves one core idle
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # vLLM's own on a CPU is bfloat16 even for a float32 model, and many a CPU emulates it
    dtype = default_dtype("cpu") if options.dtype == "auto" and detect_device() == "cpu" else options.dtype
    try:
        from vllm import LLM, TokensPrompt

        from openrlhf_orz.models.cpu_ops import allow_tiles

        allow_tiles()
        model = LLM(
            options.model, dtype=dtype, max_model_len=options.max_model_len or None, seed=0, enforce_eager=True
        )
    except Exception as error:
        raise DataError(f"pass_rate.model {options.model}: vLLM did not load it: {error}") from error
    # the engine has a seed, the requests have none: chunked prefill is on, with which seeds fail on a CPU (above)
    params = sampling_params(options.temperature, options.top_p, options.max_new_tokens, n=options.n)
    tokenizer = model.get_tokenizer()
    verifiers = VerifierSet(shared=True)
    threads = ThreadPoolExecutor(_GRADED_AT_ONCE)
    pace, done = Pace(questions, "questions", log or (lambda line: None)), itertools.count(1)

    def bar(iterable: Any = None, **_: Any) -> Any:
        """Of all that vLLM would show a bar for, that of the answers; it hands the others an iterable."""
        return PaceBar(lambda: pace.tell(next(done))) if iterable is None else iterable

    def reward(answer: Any, reference: str, name: str) -> float:
        return verifiers.named(name).grade(answer.text, reference, answer.finish_reason == "stop").reward

    def sample(prompts: list[str], references: list[str], names: list[str]) -> list[int]:
        # as in training no token is put in front, which vLLM would do with a text where the tokenizer does
        tokens = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        asked_for = [TokensPrompt(prompt_token_ids=ids) for ids in tokens]
        outputs = model.generate(asked_for, params, use_tqdm=bar)
        asked = [
            threads.submit(reward, answer, reference, name)
            for output, reference, name in zip(outputs, references, names)
            for answer in output.outputs
        ]
        rewards = [future.result() for future in asked]
        return [int(sum(rewards[i : i + options.n])) for i in range(0, len(rewards), options.n)]

    return sample
