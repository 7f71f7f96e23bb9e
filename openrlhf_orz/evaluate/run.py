"""An evaluation from questions to numbers: engines generate, responses are graded and kept, statistics follow."""

from __future__ import annotations

import json
import multiprocessing
import queue as queues
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from openrlhf_orz.algo.text_stats import reflects
from openrlhf_orz.evaluate import engine_process
from openrlhf_orz.evaluate.engine_process import EngineSettings, Request
from openrlhf_orz.evaluate.questions import EvaluationError, Question, sample_seed
from openrlhf_orz.evaluate.responses import Responses
from openrlhf_orz.evaluate.statistics import summarise
from openrlhf_orz.reward.extract import has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import make_verifier

PROGRESS_S = 15


def plan(questions: list[Question], n: int, seed: int, encode: Callable[[Question], list[int]], done) -> list[Request]:
    """A request for every (question, sample) that is not ``done``, in the order of questions."""
    requests = []
    for question in questions:
        tokens = encode(question)
        for sample in range(n):
            key = (question.bench, question.id, sample)
            if key not in done:
                requests.append(Request(key, tokens, sample_seed(seed, *key)))
    return requests


class Graders:
    """The verifiers that the questions ask for, each made once."""

    def __init__(self, names: set[str], workers: int | None, plain: bool):
        self.by_name = {name: make_verifier(name, workers=workers, plain=plain) for name in names | {"math"}}

    def grade(self, question: Question, response: str, stopped: bool):
        return self.by_name[question.verifier].grade(response, question.reference, stopped)

    def same(self, verifier: str) -> Callable[[str, str], bool]:
        """Whether two answers are equal, as that verifier sees it."""
        grader = self.by_name[verifier]
        if isinstance(grader, Grader):
            return lambda first, second: grader.compare(second, first)[0] is Verdict.RIGHT

        def same(first, second):
            boxed = f"<answer>\\boxed{{{second}}}</answer>"
            return grader.grade(boxed, first).verdict is Verdict.RIGHT

        return same

    def close(self):
        for verifier in self.by_name.values():
            verifier.close()


def graded(row: dict, question: Question, prompt: str, seed: int, graders: Graders) -> dict:
    """The line of responses.jsonl for what an engine handed back."""
    text = row["response"]
    grade = graders.grade(question, text, row["stop_reason"] != "length")
    return {
        "bench": question.bench,
        "id": question.id,
        "sample": row["key"][2],
        "seed": seed,
        "prompt": prompt,
        "response": text,
        "extracted": grade.extracted,
        "reference": question.reference,
        "verdict": grade.verdict.label,
        "rule": grade.rule or "",
        "reward": grade.reward,
        "stop_reason": row["stop_reason"],
        "tokens": len(row["token_ids"]),
        "token_ids": row["token_ids"],
        "format": has_format(text),
        "reflection": reflects(text),
        "seconds": row["seconds"],
    }


def drive(settings: EngineSettings, requests: list[Request], engines: int, accept, log=print) -> None:
    """Start ``engines`` processes, share the requests out, and give each response to ``accept`` as it comes.

    Raises EvaluationError with an engine's error if one fails or dies; what came before has been accepted.
    """
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    shares = [requests[i::engines] for i in range(engines)]
    processes = {
        i: context.Process(target=engine_process.main, args=(i, settings, share, channel))
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
                    raise EvaluationError(f"engine {dead[0]} died (exit code {code}): run the same command to go on")
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


def evaluate(
    questions: list[Question],
    responses: Responses,
    settings: EngineSettings,
    *,
    n: int,
    seed: int,
    engines: int,
    render: Callable[[Question], str],
    encode: Callable[[str], list[int]],
    graders: Graders,
    log=print,
) -> None:
    """Generate and grade what is missing in ``responses``: ``n`` samples of each question."""  # fmt: skip
    by_key = {(question.bench, question.id): question for question in questions}
    requests = plan(questions, n, seed, lambda question: encode(render(question)), responses.done)
    log(f"{len(questions)} questions x {n} samples: {len(requests)} responses to generate"
        f" ({len(questions) * n - len(requests)} are there)")  # fmt: skip
    if not requests:
        return
    with ThreadPoolExecutor(32) as threads:
        pending = []

        def grade(row):
            question = by_key[row["key"][:2]]
            responses.add(graded(row, question, render(question), sample_seed(seed, *row["key"]), graders))

        try:
            drive(settings, requests, engines, lambda row: pending.append(threads.submit(grade, row)), log)
        finally:
            for future in pending:
                future.result()


def numbers(questions: list[Question], responses: Responses, n: int, seed: int, graders: Graders) -> dict[str, dict]:
    """The summary of each benchmark over the first ``n`` samples of its questions."""
    results = {}
    for bench in dict.fromkeys(question.bench for question in questions):
        own = [question for question in questions if question.bench == bench]
        rows = [responses.done[bench, question.id, sample] for question in own for sample in range(n)]
        results[bench] = summarise(rows, graders.same(own[0].verifier), seed)
        seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
        results[bench]["seconds"] = float(np.mean(seconds)) if seconds else None  # of a response, in its batch
    return results


def write_results(folder: Path, content: dict) -> None:
    """results.json, and the table of it as results.md."""
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "results.md").write_text(table(content["results"]) + "\n")


def table(results: dict[str, dict]) -> str:
    """Benchmarks as a Markdown table; None and what a harness does not give as a dash."""

    def cell(result: dict, key: str, percent: bool = True) -> str:
        value = result.get(key)
        return "-" if value is None else f"{100 * value:.1f}" if percent else f"{value:,.0f}"

    lines = [
        "| benchmark | questions | n | avg@n % | 95 % interval | pass@n % | maj@n % | tokens | cut % |"
        " format % | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bench, result in results.items():
        n = result.get("n")
        interval = f"{cell(result, 'low')} to {cell(result, 'high')}" if result.get("low") is not None else "-"
        shares = [cell(result, key) for key in (f"pass_at_{n}", "maj_at_n")]
        rest = [cell(result, "response_length", percent=False), cell(result, "truncated"), cell(result, "format")]
        seconds = result.get("seconds")
        rest.append("-" if seconds is None else f"{seconds:.1f}")
        counts = [str(result.get("questions") or "-"), str(n or "-")]
        lines.append("| " + " | ".join([bench, *counts, cell(result, "avg_at_n"), interval, *shares, *rest]) + " |")
    return "\n".join(lines)
