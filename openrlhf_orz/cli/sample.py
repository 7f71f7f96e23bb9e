"""Samples a model with vLLM, outside training, and counts right answers: what the pass-rate stage asks for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from openrlhf_orz.data.curate.config import PassRate
from openrlhf_orz.data.curate.pass_rate import Sampler
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.reward.verifiers import make_verifier
from openrlhf_orz.settings.flags import STOP_STRINGS

_GRADED_AT_ONCE = 64


def sampler(options: PassRate) -> Sampler:
    """Loads the model; the result answers prompts n times each, as in training: template, stop strings, grader.

    Raises DataError when vLLM is not there or does not load the model.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read on CPU only
    try:
        from vllm import LLM, SamplingParams

        model = LLM(
            options.model, dtype=options.dtype, max_model_len=options.max_model_len or None, seed=0, enforce_eager=True
        )
    except Exception as error:
        raise DataError(f"pass_rate.model {options.model}: vLLM did not load it: {error}") from error
    # No seed for each request: vLLM's CPU build fails on it ("CPU Generator does not use offset"); the engine has one.
    params = SamplingParams(
        n=options.n, temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_new_tokens,
        stop=list(STOP_STRINGS), include_stop_str_in_output=True,
    )  # fmt: skip
    verifiers = {name: make_verifier(name, shared=True) for name in ("math", "reasoning_gym")}
    threads = ThreadPoolExecutor(_GRADED_AT_ONCE)

    def sample(prompts: list[str], references: list[str], names: list[str]) -> list[int]:
        outputs = model.generate(prompts, params, use_tqdm=False)
        asked = [
            threads.submit(
                lambda verifier, answer, reference: verifier.grade(
                    answer.text, reference, answer.finish_reason == "stop"
                ).reward,
                verifiers[name], answer, reference,
            )
            for output, reference, name in zip(outputs, references, names)
            for answer in output.outputs
        ]  # fmt: skip
        rewards = [future.result() for future in asked]
        return [int(sum(rewards[i : i + options.n])) for i in range(0, len(rewards), options.n)]

    return sample
