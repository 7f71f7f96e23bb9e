"""An evaluation from questions to numbers: engines generate, responses are graded and kept, statistics follow."""

from __future__ import annotations

import hashlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_orz.data.prompts import render
from openrlhf_orz.evaluate.generate import EngineSettings, Request, default_dtype, run_engines
from openrlhf_orz.evaluate.grading import graded_response, same_for
from openrlhf_orz.evaluate.harness import check_harness, run_harness
from openrlhf_orz.evaluate.questions import HARNESS, EvaluationError, Question, load_questions, sample_seed
from openrlhf_orz.evaluate.results import Responses, check_settings
from openrlhf_orz.evaluate.statistics import summarise
from openrlhf_orz.reward.verifiers import VerifierSet
from openrlhf_orz.settings.derive import detect_device
from openrlhf_orz.settings.flags import STOP_STRINGS


def missing_requests(
    questions: list[Question],
    n: int,
    seed: int,
    encode: Callable[[Question], list[int]],
    done: Container[tuple[str, str, int]],
) -> list[Request]:
    """A request for every (question, sample) that is not ``done``, in the order of questions."""
    requests = []
    for question in questions:
        tokens = encode(question)
        for sample in range(n):
            key = (question.bench, question.id, sample)
            if key not in done:
                requests.append(Request(key, tokens, sample_seed(seed, *key)))
    return requests


def answer_questions(
    questions: list[Question],
    responses: Responses,
    settings: EngineSettings,
    *,
    n: int,
    seed: int,
    engines: int,
    prompt: Callable[[Question], str],
    encode: Callable[[str], list[int]],
    verifiers: VerifierSet,
    log: Callable[[str], Any] = print,
) -> None:
    """Generate and grade the missing ones of ``n`` samples of each question, and add them to ``responses``."""
    by_key = {(question.bench, question.id): question for question in questions}
    questions = [question for question in questions if (question.bench, question.id) not in responses.left_out]
    requests = missing_requests(questions, n, seed, lambda question: encode(prompt(question)), responses.done)
    log(
        f"{len(questions)} questions x {n} samples: {len(requests)} responses to generate"
        f" ({len(questions) * n - len(requests)} are there)"
    )
    if not requests:
        return
    with ThreadPoolExecutor(32) as threads:
        pending = []

        def grade(row: dict) -> None:
            question = by_key[row["key"][:2]]
            if "prompt_tokens" in row:
                responses.leave_out(question.bench, question.id, row["prompt_tokens"], row["limit"])
                return
            responses.add(graded_response(row, question, prompt(question), sample_seed(seed, *row["key"]), verifiers))

        try:
            run_engines(settings, requests, engines, lambda row: pending.append(threads.submit(grade, row)), log)
        finally:
            for future in pending:
                future.result()


def benchmark_numbers(
    questions: list[Question],
    responses: Responses,
    n: int,
    seed: int,
    verifiers: VerifierSet,
    log: Callable[[str], Any] = print,
) -> dict[str, dict]:
    """The summary of each benchmark over the first ``n`` samples of those of its questions that fit the context.

    Raises EvaluationError if none of a benchmark's does.
    """
    results = {}
    named = {(question.bench, question.id): question.verifier for question in questions}
    for bench in dict.fromkeys(question.bench for question in questions):
        every = [question for question in questions if question.bench == bench]
        own = [question for question in every if (bench, question.id) not in responses.left_out]
        if not own:
            limit = responses.left_out[bench, every[0].id]["limit"]
            raise EvaluationError(f"no prompt of {bench} fits into the context of {limit} tokens: raise --max_len")
        rows = [responses.done[bench, question.id, sample] for question in own for sample in range(n)]
        results[bench] = summarise(rows, lambda row: same_for(verifiers.named(named[row["bench"], row["id"]])), seed)
        results[bench]["left_out"] = len(every) - len(own)
        if len(every) > len(own):
            log(f"note: {len(every) - len(own)} of {len(every)} prompts of {bench} do not fit into the context: see"
                " left_out.jsonl")  # fmt: skip
        seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
        results[bench]["seconds"] = (
            float(np.mean(seconds)) if seconds else None
        )  # wall time of a response in its batch
    return results


def weights_fingerprint(model: str) -> dict[str, str] | None:
    """Size and hash of each weights file of a local model, read whole; None for a hub name.

    A part would not do: files begin with the embeddings, which adapters leave as they are.
    """
    if not Path(model).is_dir():
        return None

    def hashed(file: Path) -> str:
        digest = hashlib.sha256()
        with open(file, "rb") as weights:
            while chunk := weights.read(2**22):
                digest.update(chunk)
        return f"{file.stat().st_size}-{digest.hexdigest()[:16]}"

    files = sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*.bin")])
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(hashed, files)))


def engine_settings(options: Namespace) -> EngineSettings:
    """The engines' settings from the command's flags; what is "auto" is chosen by the device."""
    device = detect_device() if options.device == "auto" else options.device
    return EngineSettings(
        model=options.model, temperature=options.temperature, top_p=options.top_p, stop=tuple(options.stop),
        max_new_tokens=options.max_new_tokens, max_len=options.max_len, device=device,
        dtype=default_dtype(device) if options.dtype == "auto" else options.dtype,
        batch_size=options.batch_size or (32 if device == "cpu" else 256), tensor_parallel=options.tensor_parallel,
        cores=max(1, len(os.sched_getaffinity(0)) // options.engines), kvcache_mib=options.cpu_kvcache_mib,
        gpu_memory=options.gpu_memory_utilization, trust_remote_code=options.trust_remote_code,
        engine_args=options.engine_args, log=str(options.out / "engines.log"),
    )  # fmt: skip


def response_identity(options: Namespace, settings: EngineSettings, sources: dict[str, dict]) -> dict:
    """All that the responses depend on: responses of another identity must not be mixed with them."""
    names = ("model", "temperature", "top_p", "max_new_tokens", "max_len", "stop", "device", "dtype",
             "engine_args")  # fmt: skip
    return {name: getattr(settings, name) for name in names} | {
        "weights": weights_fingerprint(options.model),
        "template": options.prompt_template,
        "seed": options.seed,
        "verifier": options.verifier,
        "plain_math_verify": options.plain_math_verify,
        "data": sources,
    }


def take_run_settings(options: Namespace, log: Callable[[str], Any] = print) -> None:
    """Set template, stop strings and verifier that were not given: as the model's run was trained, else the paper's.

    The run's config.json lies beside the model's directory, ``RUN_DIR/hf``.
    """
    trained: dict[str, Any] = {
        "prompt_template": "paper",
        "stop": list(STOP_STRINGS),
        "verifier": "math",
        "plain_math_verify": False,
    }
    path = Path(options.model).resolve().parent / "config.json"
    try:
        flags = json.loads(path.read_text())["flags"]
        template = flags["data"]["input_template"]
        template = flags["orz"]["prompt_template"] if template is None else template
        trained = {
            "prompt_template": "chat" if flags["data"]["apply_chat_template"] else template,
            "stop": list(flags["orz"]["stop"]),
            "verifier": flags["orz"]["verifier"],
            "plain_math_verify": flags["orz"]["plain_math_verify"],
        }
        taken = [f"--{name}" for name in trained if getattr(options, name) is None]
        if taken:
            log(f"{' and '.join(taken)}: as in {path}")
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the model's directory is no run's
    for name, value in trained.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def prompt_renderer(template: str, tokenizer: Any) -> Callable[[Question], str]:
    """What makes a question's prompt; ``chat`` is the tokenizer's own template. Raises EvaluationError without one."""
    if template != "chat":
        return lambda question: render(template, question.text)
    if not tokenizer.chat_template:
        raise EvaluationError("--prompt_template chat: the tokenizer has no chat template. Name another one")

    def chat(question: Question) -> str:
        turns = [{"role": "user", "content": question.text}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    return chat


def evaluate_model(options: Namespace) -> dict:
    """The whole evaluation; returns the content of results.json. Raises EvaluationError.

    ``options`` are the flags of ``cli/evaluate.py``.
    """
    harnessed = [bench for bench in options.bench if bench in HARNESS]
    if harnessed:
        check_harness(harnessed, options.harness_python, options.allow_code_execution)
    own = [bench for bench in options.bench if bench not in HARNESS]
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"model": options.model, "seed": options.seed, "results": {}}
    if options.data or own:
        content |= evaluate_sets(options, own)
    if harnessed:
        engine = {"dtype": options.dtype if options.dtype != "auto" else "bfloat16", "seed": options.seed}
        if options.tensor_parallel > 1:
            engine["tensor_parallel_size"] = options.tensor_parallel
        folder = options.out / "lighteval"
        content["results"] |= run_harness(
            options.harness_python, options.model, harnessed, folder, engine, options.limit
        )
    content["seconds"] = round(time.monotonic() - began, 1)
    return content


def evaluate_sets(options: Namespace, benches: list[str]) -> dict:
    """The part that lighteval does not do: questions, responses, numbers, and the critic's values."""
    from transformers import AutoTokenizer

    take_run_settings(options)
    questions, sources = load_questions(options.data, benches, options.seed, options.limit)
    settings = engine_settings(options)
    identity = response_identity(options, settings, sources)
    check_settings(options.out, identity)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    responses = Responses(options.out / "responses.jsonl")
    verifiers = VerifierSet(options.verifier, workers=options.grader_workers, plain=options.plain_math_verify)
    try:
        began = time.monotonic()
        answer_questions(
            questions, responses, settings, n=options.n, seed=options.seed, engines=options.engines, encode=encode,
            prompt=prompt_renderer(options.prompt_template, tokenizer), verifiers=verifiers,
        )  # fmt: skip
        content = {"n": options.n, "settings": identity, "generation_seconds": round(time.monotonic() - began, 1)}
        content["results"] = benchmark_numbers(questions, responses, options.n, options.seed, verifiers)
    finally:
        responses.close()
        verifiers.close()
    if options.critic:
        from openrlhf_orz.evaluate.critic import critic_numbers  # needs OpenRLHF and torch

        asked = {(question.bench, question.id, sample) for question in questions for sample in range(options.n)}
        critic_numbers(options.critic, responses, asked, content["results"], encode, settings.device)
    return content
