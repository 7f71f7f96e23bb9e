"""Writes the evaluation sets that curation is decontaminated against by default, as hashes of their N-grams.

    python tools/eval_sets.py math500=FILE aime2024=FILE ...

Each file has questions with answers, in any form that the pipeline reads. No question's text is kept.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrlhf_orz.data.curate.collect import read_input
from openrlhf_orz.data.curate.decontaminate import BUILTIN, save_builtin
from openrlhf_orz.data.curate.inputs import parse_inputs
from openrlhf_orz.data.curate.normalise import clean_question


def questions(arguments: list[str]):
    for argument in arguments:
        name, _, path = argument.partition("=")
        (item,) = parse_inputs([{"name": name, "path": path}])
        for row, refused in read_input(item):
            if refused is None:
                yield f"{name}#{row['meta']['row']}", clean_question(row["question"])[0]


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=" in argument for argument in sys.argv[1:]):
        sys.exit("usage: python tools/eval_sets.py NAME=FILE ...")
    print(f"{save_builtin(questions(sys.argv[1:]))} questions in {BUILTIN}")
