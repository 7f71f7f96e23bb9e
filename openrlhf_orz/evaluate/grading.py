"""Responses become graded rows: an engine's, those of an evaluation during training, and those of a file."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from openrlhf_orz.algo.text_stats import reflects
from openrlhf_orz.evaluate.questions import Question
from openrlhf_orz.evaluate.statistics import Same, evaluation_logs
from openrlhf_orz.reward.extract import extract_answer, has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.verifiers import ReasoningGym, Verifier, VerifierSet, unpack_label

IN_FLIGHT = 512  # rows of a file that are read ahead of the one to be written


def same_for(verifier: Verifier) -> Same:
    """A function that says whether two answers are equal for the verifier: the first is the reference."""
    if isinstance(verifier, ReasoningGym):
        return lambda first, second: first == second  # its references are entries, not answers
    if isinstance(verifier, Grader):
        return lambda first, second: verifier.compare(second, first)[0] is Verdict.RIGHT

    def same(first: str, second: str) -> bool:
        boxed = f"<answer>\\boxed{{{second}}}</answer>"
        return verifier.grade(boxed, first).verdict is Verdict.RIGHT

    return same


def graded_response(row: dict, question: Question, prompt: str, seed: int, verifiers: VerifierSet) -> dict:
    """The line of responses.jsonl for an engine's row (generate.py)."""
    text = row["response"]
    grade = verifiers.named(question.verifier).grade(text, question.reference, row["stop_reason"] != "length")
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


def sample_row(number: int, sample: Any, text: str, right_reward: float) -> dict:
    """The row for the statistics of one graded sample to question ``number``.

    ``sample`` is OpenRLHF's experience of one response, ``text`` the decoded response.
    """
    return {
        "id": number,
        "reward": float(float(sample.rewards) >= right_reward),  # the statistics are about right answers
        "tokens": int(sample.action_mask.sum()),
        "stop_reason": "length" if bool(sample.truncated) else "stop",
        "format": has_format(text),
        "extracted": extract_answer(text),
    }


def evaluate_samples(
    eval_dataloader: Iterable, samples: list, n: int, tokenizer: Any, args: Namespace
) -> dict[str, float]:
    """The logs of an evaluation during training, from its samples; the ``n`` samples of a prompt are adjacent."""
    import torch  # not above: the grade command needs no torch

    sets_of: dict[str, deque[str]] = defaultdict(deque)  # of a prompt: each takes its own samples
    for names, prompts, *_ in eval_dataloader:
        for name, prompt in zip(names, prompts):
            sets_of[prompt].append(str(name))
    left = [sets_of[sample.prompts[0]] for sample in samples[::n]]
    sets = [names.popleft() if names else "unknown" for names in left]
    masks = [torch.nn.functional.pad(sample.action_mask[0], (1, 0)).bool() for sample in samples]
    texts = tokenizer.batch_decode([sample.sequences[0][mask] for sample, mask in zip(samples, masks)])
    rows = [
        sample_row(i // n, sample, text, args.orz.right_reward) for i, (sample, text) in enumerate(zip(samples, texts))
    ]
    if n == 1 or not args.orz.verifier_grades:
        return evaluation_logs(sets, rows, n)
    workers = args.orz.grader_workers or min(8, len(os.sched_getaffinity(0)))
    # shared: the workers of the engines on this machine are used, if there are any
    names = [unpack_label(sample.labels[0])[1] for sample in samples[::n]]
    with VerifierSet(args.orz.verifier, workers=workers, plain=args.orz.plain_math_verify, shared=True) as verifiers:
        return evaluation_logs(sets, rows, n, lambda row: same_for(verifiers.named(names[row["id"]])))


def grade_line(line: str, verifiers: VerifierSet, plain: Grader | None) -> dict:
    """The output row of one line of a file of responses; never raises for a line's content.

    The row's ``verifier`` grades it, else the default one. ``plain`` adds the verdict of Math-Verify alone.
    """
    row: Any = None
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("the row is not a JSON object")
        response, name = row["response"], row.get("verifier")
        if not isinstance(response, str) or not isinstance(name, (str, type(None))):
            raise ValueError("response and verifier must be strings")
        verifier = verifiers.named(name)
        gold = verifier.read_reference(row["answer"] if "answer" in row and "gold" not in row else row["gold"])
    except (ValueError, TypeError, RecursionError, KeyError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        row = row if isinstance(row, dict) else {"line": line[:200]}
        return {**row, **_fields(Grade(Verdict.UNPARSABLE, 0.0, None, "row", 0.0)), "error": reason}
    stopped = row.get("stop_reason") != "length"
    row.update(_fields(verifier.grade(response, gold, stopped)))
    if plain is not None:
        row["plain"] = plain.grade(response, gold, stopped).verdict.label
    return row


def _fields(grade: Grade) -> dict:
    return {
        "verdict": grade.verdict.label,
        "reward": grade.reward,
        "extracted": grade.extracted,
        "rule": grade.rule,
        "ms": round(grade.ms, 3),
    }


def grade_lines(source: Iterable[str], target: IO[str], verifiers: VerifierSet, plain: Grader | None = None) -> dict:
    """Grade the lines of ``source`` into ``target``, in their order, and return counts: rows, reward, verdicts.

    With ``plain`` the counts have ``disagreements_with_plain``: rows that only one of the two calls right.
    """
    counts: Counter[str] = Counter()
    rows = disagreements = 0
    rewards = 0.0
    pending: deque[Future[dict]] = deque()

    def write() -> None:
        nonlocal rows, rewards, disagreements
        row = pending.popleft().result()
        target.write(json.dumps(row) + "\n")
        counts[row["verdict"]] += 1
        rows += 1
        rewards += row["reward"]
        disagreements += "plain" in row and (row["plain"] == "right") != (row["verdict"] == "right")

    with ThreadPoolExecutor(64) as threads:
        for line in source:
            if line.strip():
                pending.append(threads.submit(grade_line, line, verifiers, plain))
                if len(pending) >= IN_FLIGHT:
                    write()
        while pending:
            write()
    summary = {
        "rows": rows,
        "reward": round(rewards / rows, 6) if rows else 0.0,
        "verdicts": {verdict.label: counts[verdict.label] for verdict in Verdict},
    }
    return summary | ({"disagreements_with_plain": disagreements} if plain is not None else {})
