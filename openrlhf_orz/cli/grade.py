"""Grade a file of responses.

    python -m openrlhf_orz.cli.grade --input cases.jsonl --output verdicts.jsonl

Each input row is a JSON object with ``gold`` and ``response`` (and optionally ``stop_reason``;
"length" means cut, so reward 0). Each output row is the input row with ``verdict``, ``reward``,
``extracted``, ``rule`` and ``ms``, in input order; a row that is no such object has the verdict
"unparsable" and says why in ``error``. The summary is one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor

from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Grade, Verdict
from openrlhf_orz.reward.verifiers import VERIFIERS, Verifier, make_verifier

IN_FLIGHT = 512  # rows read ahead of the one to be written


def grade_row(line: str, verifier: Verifier, plain: Grader | None) -> tuple[dict, Verdict]:
    """The output row of one input line, and its verdict. Never raises for a line's content."""
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("the row is not a JSON object")
        gold, response = row["gold"], row["response"]
        if isinstance(gold, (int, float)) and not isinstance(gold, bool):
            gold = str(gold)
        if not isinstance(gold, str) or not isinstance(response, str):
            raise ValueError("gold and response must be strings")
    except (ValueError, RecursionError, KeyError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        row = row if "row" in locals() and isinstance(row, dict) else {"line": line[:200]}
        return {
            **row,
            **_fields(Grade(Verdict.UNPARSABLE, 0.0, None, "row", 0.0)),
            "error": reason,
        }, Verdict.UNPARSABLE
    stopped = row.get("stop_reason") != "length"
    grade = verifier.grade(response, gold, stopped)
    row.update(_fields(grade))
    if plain is not None:
        row["plain"] = plain.grade(response, gold, stopped).verdict.label
    return row, grade.verdict


def _fields(grade: Grade) -> dict:
    return {
        "verdict": grade.verdict.label,
        "reward": grade.reward,
        "extracted": grade.extracted,
        "rule": grade.rule,
        "ms": round(grade.ms, 3),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="JSON lines with gold and response")
    parser.add_argument("--output", required=True, help="where the rows with verdicts go")
    parser.add_argument("--verifier", default="math", choices=sorted(VERIFIERS))
    parser.add_argument("--workers", type=int, default=None, help="answers parsed at a time; default: usable cores")
    parser.add_argument("--memory-mib", type=int, default=512, help="address-space limit of a worker")
    parser.add_argument("--plain", action="store_true", help="bare Math-Verify, without the rules")
    parser.add_argument("--compare-plain", action="store_true", help="add what bare Math-Verify says, as `plain`")
    parser.add_argument("--require-agreement", action="store_true", help="several different boxes are wrong")
    options = parser.parse_args(arguments)
    common = {"workers": options.workers, "memory_mib": options.memory_mib}
    verifier = make_verifier(
        options.verifier, **common, plain=options.plain, require_agreement=options.require_agreement
    )
    plain = Grader(**common, plain=True) if options.compare_plain else None
    counts: Counter[str] = Counter()
    rows = disagreements = 0
    rewards = 0.0
    begin = time.monotonic()
    # surrogateescape keeps bytes that are no UTF-8, and lone surrogates are written as JSON escapes
    with (
        open(options.input, encoding="utf-8", errors="surrogateescape", newline="\n") as source,
        open(options.output, "w", encoding="utf-8") as target,
        ThreadPoolExecutor(64) as threads,
    ):
        pending: deque[Future] = deque()

        def write() -> None:
            nonlocal rows, rewards, disagreements
            row, verdict = pending.popleft().result()
            target.write(json.dumps(row) + "\n")
            counts[verdict.label] += 1
            rows += 1
            rewards += row["reward"]
            disagreements += "plain" in row and (row["plain"] == "right") != (row["verdict"] == "right")

        for line in source:
            if line.strip():
                pending.append(threads.submit(grade_row, line, verifier, plain))
                if len(pending) >= IN_FLIGHT:
                    write()
        while pending:
            write()
    seconds = time.monotonic() - begin
    verifier.close()
    summary = {
        "rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1) if seconds else 0.0,
        "reward": round(rewards / rows, 6) if rows else 0.0,
        "verdicts": {verdict.label: counts[verdict.label] for verdict in Verdict},
    }
    if plain is not None:
        plain.close()
        summary["disagreements_with_plain"] = disagreements
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
