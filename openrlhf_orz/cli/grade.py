"""Grade a file of responses.

    python -m openrlhf_orz.cli.grade --input cases.jsonl --output verdicts.jsonl

Each input row is a JSON object with ``gold`` (or ``answer``, as in training) and ``response`` (and optionally
``verifier``, and ``stop_reason``; "length" means cut, so reward 0). Each output row is the input row with ``verdict``,
``reward``, ``extracted``, ``rule`` and ``ms``, in input order; a row that is no such object has the verdict
"unparsable" and says why in ``error``. The summary is one JSON line on standard output. The exit status is 2 where no
row can be used; --output is whole or is not there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from openrlhf_orz.evaluate.grading import grade_lines
from openrlhf_orz.report.run_data import open_file
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verifiers import VERIFIERS, VerifierSet
from openrlhf_orz.runtime.files import write_aside
from openrlhf_orz.settings.redact import printable


def output_file(path: str) -> AbstractContextManager[TextIO]:
    """The file to write, which appears when it is whole; a pipe, a terminal or a link as it is."""
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        return open(path, "w", encoding="utf-8")
    return write_aside(Path(path))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="JSON lines with gold and response")
    parser.add_argument("--output", required=True, help="where the rows with verdicts go")
    parser.add_argument("--verifier", default="math", choices=sorted(VERIFIERS), help="of rows that name none")
    parser.add_argument("--workers", type=int, default=None, help="answers parsed at a time; default: usable cores")
    parser.add_argument("--memory-mib", type=int, default=512, help="address-space limit of a worker")
    parser.add_argument("--plain", action="store_true", help="Math-Verify behind the guards, without our rules")
    parser.add_argument("--compare-plain", action="store_true", help="add what bare Math-Verify says, as `plain`")
    parser.add_argument("--require-agreement", action="store_true", help="several different boxes are wrong")
    options = parser.parse_args(arguments)
    if all(map(os.path.exists, (options.input, options.output))) and os.path.samefile(options.input, options.output):
        print("error: --output is --input, whose responses would be lost: name another file", file=sys.stderr)
        return 2
    common = {"workers": options.workers, "memory_mib": options.memory_mib}
    verifiers = VerifierSet(
        options.verifier, **common, plain=options.plain, require_agreement=options.require_agreement
    )
    plain = Grader(**common, plain=True) if options.compare_plain else None
    begin = time.monotonic()
    try:
        # surrogateescape keeps bytes that are not UTF-8; lone surrogates are written as JSON escapes
        with (
            io.TextIOWrapper(open_file(options.input), "utf-8", errors="surrogateescape", newline="\n") as source,
            output_file(options.output) as target,
        ):
            counts = grade_lines(source, target, verifiers, plain)
            if not counts["rows"]:
                raise OSError("there are no rows")
    except OSError as error:
        print(printable(f"error: {error}: --input must be a file of JSON lines, --output a new one"), file=sys.stderr)
        return 2
    finally:
        verifiers.close()
        if plain is not None:
            plain.close()
    seconds = time.monotonic() - begin
    rows = counts.pop("rows")
    speed = round(rows / seconds, 1) if seconds else 0.0
    summary = {"rows": rows, "seconds": round(seconds, 3), "rows_per_second": speed, **counts}
    print(json.dumps(summary))
    if counts["verdicts"]["unparsable"] == rows:
        print(f"error: no row of --input can be used: see error in {printable(options.output)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
