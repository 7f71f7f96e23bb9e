"""Stage 3: leaves out what a 0/1 reward on one final answer cannot judge. Each rule has a name; the first that fires.

multiple_choice, multi_part, proof, proof_and_answer, open_ended, guessable: the kinds, each a switch of the
configuration; the detail in rejected.jsonl names the rule within the kind.
"""

from __future__ import annotations

from collections.abc import Iterable

from openrlhf_orz.data.curate.choices import flatten, labelled
from openrlhf_orz.data.curate.config import Exclude
from openrlhf_orz.data.curate.rules_shape import ASKS, choice, multi_part
from openrlhf_orz.data.curate.rules_task import guessable, open_ended, proof
from openrlhf_orz.data.curate.shards import rejection


def excluded(question: str, answer: str, options: Exclude) -> tuple[str, str] | None:
    """(kind, rule) when a question with this answer is left out; None when it is kept."""
    flat = flatten(question)
    lists = labelled(flat)
    if options.multi_part:
        rule = multi_part(flat, lists, answer)
        if rule:
            return "multi_part", rule
    if options.multiple_choice:
        rule = choice(flat, lists, answer)
        if rule:
            return "multiple_choice", rule
    rule = proof(flat, answer)
    if rule:
        mixed = bool(ASKS.search(flat)) and rule != "the answer is a proof"
        if options.proof_and_answer if mixed else options.proof:
            return ("proof_and_answer" if mixed else "proof"), rule
    if options.guessable:
        rule = guessable(flat, answer)
        if rule:
            return "guessable", rule
    if options.open_ended:
        rule = open_ended(flat, answer)
        if rule:
            return "open_ended", rule
    return None


def exclude(rows: Iterable[dict], options: Exclude) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections; generated rows are kept."""
    kept, rejected = [], []
    for row in rows:
        found = None if row["meta"].get("generated") else excluded(row["question"], row["answer"], options)
        if found:
            rejected.append(rejection(row, "exclude", *found))
        else:
            kept.append(row)
    return kept, rejected
