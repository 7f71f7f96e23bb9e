"""Writes the prompts of a run as the JSONL that OpenRLHF's PromptDataset loads, and reports bad rows.

Runs on the driver before Ray starts, so that a run never starts on data it can't use.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.json_lines import write_records
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.rows import AnswerRules, BadRow, Row, read_dataset
from openrlhf_orz.data.sources import EVAL_FLAGS, TRAIN_FLAGS, DataError
from openrlhf_orz.reward.verifiers import pack_label, reference_problem

TOKENIZER_BATCH = 1024  # prompts
HUGE_PROMPT = 200_000  # characters: tokens of a longer prompt are not counted if they must be too many
BAD_ROWS_SHOWN = 5  # of a dataset; the file has all


@dataclass(frozen=True)
class PromptRules:
    """How rows become prompts, and which rows can.

    `template` is as in `prompts.render`; with `apply_chat_template` the tokenizer's chat template renders the
    question, which may then be a dialogue of several turns. A row is bad if its prompt has more than `max_prompt_len`
    tokens, or if its verifier, one of `answers.verifiers`, cannot use its reference.
    """

    tokenizer: Any
    template: str
    input_key: str
    label_key: str | None
    max_prompt_len: int
    answers: AnswerRules = AnswerRules()
    apply_chat_template: bool = False


@dataclass(frozen=True)
class Prepared:
    """What was written: of each dataset a file of prompts (absolute path) and their count; bad rows of all of them."""

    paths: list[Path]
    counts: list[int]
    n_bad: int
    bad_by_reason: dict[str, int]


def prepare_prompts(
    specs: str,
    out_dir: Path,
    name: str,
    rules: PromptRules,
    *,
    split: str,
    max_rows: int | None = None,
    log: Callable[[str], None] = print,
) -> Prepared:
    """Read, render and check every dataset of `specs` (comma-separated) and write the good rows.

    Writes `out_dir/prompts_<name>.jsonl`, or `prompts_<name>_<i>.jsonl` when there are several datasets, with keys
    prompt (rendered), label (as `pack_label` makes it), datasource, question, file, row; and
    `out_dir/bad_rows_<name>.jsonl` when there are bad rows. OpenRLHF loads the former with input key "prompt", label
    key "label" and split "train", whatever `split` was, and without a template.

    `name` is "train" or "eval". `max_rows` bounds the rows read per dataset. Raises DataError when a dataset can't be
    read or has no good row left.
    """
    out_dir = Path(out_dir).resolve()
    if set(",@") & set(str(out_dir)):
        raise DataError(
            f"--ckpt.output_dir: OpenRLHF splits the paths of datasets at ',' and '@', and {out_dir} has one. "
            "Choose another folder."
        )
    flags = EVAL_FLAGS if name == "eval" else TRAIN_FLAGS
    spec_list = [spec.strip() for spec in specs.split(",")]
    checker = _RowChecker(rules)
    paths, all_bad, empty, counts = [], [], [], []
    out_dir.mkdir(parents=True, exist_ok=True)
    for i, spec in enumerate(spec_list):
        rows, bad = read_dataset(
            spec, rules.input_key, rules.label_key, split, max_rows, flags=flags, answers=rules.answers, log=log
        )
        good, refused = checker.split(rows)
        bad = sorted(bad + refused, key=lambda row: (row.file, row.row))
        path = out_dir / (f"prompts_{name}_{i}.jsonl" if len(spec_list) > 1 else f"prompts_{name}.jsonl")
        write_records(path, good)
        _report(spec, name, len(good), bad, log)
        paths.append(path)
        all_bad += bad
        counts.append(len(good))
        empty += [] if good else [spec]

    bad_path = out_dir / f"bad_rows_{name}.jsonl"
    bad_path.unlink(missing_ok=True)  # one of an earlier run here would mislead
    if all_bad:
        write_records(bad_path, map(asdict, all_bad))
        log(f"{name} data: every bad row is in {bad_path}")
    reasons = dict(Counter(row.reason for row in all_bad).most_common())
    if empty:
        raise DataError(
            f"{flags.dataset}: no row of {', '.join(empty)} can be used ({_counts(reasons) or 'no rows'}). "
            + (f"Mend the rows listed in {bad_path}." if all_bad else "Give a dataset with rows.")
        )
    return Prepared(paths, counts, len(all_bad), reasons)


class _RowChecker:
    """Renders rows and tells good from bad ones. Each distinct reference is checked once, over all datasets."""

    def __init__(self, rules: PromptRules):
        self.rules = rules
        self.render = renderer(rules)
        self.problems: dict[tuple[str | None, str], str | None] = {}

    def split(self, rows: list[Row]) -> tuple[list[dict[str, Any]], list[BadRow]]:
        """(rows as OpenRLHF reads them, bad rows)."""
        limit = self.rules.max_prompt_len
        prompts = [self.render(row.question) for row in rows]
        too_long = _too_long(self.rules.tokenizer, prompts, limit)
        good, bad = [], []
        for i, (row, prompt) in enumerate(zip(rows, prompts)):
            if not prompt:
                roles = ", ".join(turn["role"] for turn in row.question if isinstance(turn, dict))
                detail = (
                    f"messages of {roles}: only the tokenizer's template renders them (--data.apply_chat_template)"
                )
                bad.append(BadRow(row.file, row.row, "several_turns", detail))
            elif i in too_long:
                detail = f"{too_long[i]} tokens > {limit} (--orz.max_prompt_len, --data.max_len)"
                bad.append(BadRow(row.file, row.row, "prompt_too_long", detail))
            elif problem := self._reference_problem(row):
                bad.append(BadRow(row.file, row.row, "reference_unparsable", problem))
            else:
                good.append(_as_openrlhf(row, prompt))
        return good, bad

    def _reference_problem(self, row: Row) -> str | None:
        verifiers = self.rules.answers.verifiers
        if verifiers is None:
            return None
        key = row.verifier, row.answer
        if key not in self.problems:
            self.problems[key] = reference_problem(verifiers.named(row.verifier), row.answer)
        return self.problems[key]


def renderer(rules: PromptRules) -> Callable[[str | list[dict[str, str]]], str]:
    """What renders a question by the rules; "" for messages, which a template of ours cannot render."""
    if rules.apply_chat_template:
        return chat_renderer(rules.tokenizer)
    return lambda question: render(rules.template, question) if isinstance(question, str) else ""


def mean_tokens(rules: PromptRules, rows: list[Row]) -> float | None:
    """Mean tokens of the prompts that a run keeps, from at most ``TOKENIZER_BATCH`` rows evenly spread; None of none.

    For a plan, which does not wait until all are tokenized.
    """
    rendered = map(renderer(rules), (row.question for row in rows[:: 1 + len(rows) // TOKENIZER_BATCH]))
    prompts = [prompt for prompt in rendered if 0 < len(prompt) <= HUGE_PROMPT]
    if not prompts:
        return None
    encoded = rules.tokenizer(prompts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    kept = [len(ids) for ids in encoded if len(ids) <= rules.max_prompt_len]
    return sum(kept) / len(kept) if kept else None


def chat_renderer(tokenizer: Any) -> Callable[[str | list[dict[str, str]]], str]:
    """What renders a question, or messages, by the tokenizer's chat template. Raises DataError if it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("--data.apply_chat_template: the tokenizer has no chat template. Leave the flag out.")
    from jinja2 import TemplateError

    def rendered(question: str | list[dict[str, str]]) -> str:
        turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(
                f"--data.apply_chat_template: the tokenizer's chat template fails: {error}. Mend it, or leave the flag"
                " out."
            ) from None

    return rendered


def _too_long(tokenizer: Any, prompts: list[str], limit: int) -> dict[int, int | str]:
    """Index and tokens of each prompt of more than `limit` tokens, as OpenRLHF's agent encodes: no special tokens."""
    # A token stands for at least one ASCII character (one more may be put in front), so most prompts need no
    # tokenizer; 57k of them take a minute on one core.
    doubtful = [i for i, prompt in enumerate(prompts) if len(prompt) + 1 > limit or not prompt.isascii()]
    found: dict[int, int | str] = {}
    huge = {i for i in doubtful if len(prompts[i]) > HUGE_PROMPT}
    if huge:  # no token stands for more characters than the longest has; to count them would take minutes
        longest = max(map(len, tokenizer.get_vocab()))
        found |= {i: f"over {len(prompts[i]) // longest}" for i in huge if len(prompts[i]) > limit * longest}
        doubtful = [i for i in doubtful if i not in found]
    for start in range(0, len(doubtful), TOKENIZER_BATCH):
        batch = doubtful[start : start + TOKENIZER_BATCH]
        encoded = tokenizer([prompts[i] for i in batch], add_special_tokens=False, return_attention_mask=False)
        found |= {i: len(ids) for i, ids in zip(batch, encoded["input_ids"]) if len(ids) > limit}
    return found


def _as_openrlhf(row: Row, prompt: str) -> dict[str, Any]:
    question = row.question if isinstance(row.question, str) else json.dumps(row.question, ensure_ascii=False)
    return {
        "prompt": prompt,
        "label": _stay_text(pack_label(row.answer, row.verifier)),
        "datasource": _stay_text(row.source),
        "question": question,
        "file": row.file,
        "row": row.row,
    }


def _stay_text(value: str) -> str:
    # The JSON reader under `datasets` turns a column of ISO dates into timestamps; a blank at the end keeps it text.
    return value + " " if re.match(r"\d{4}-\d\d-\d\d", value) else value


def _report(spec: str, name: str, kept: int, bad: list[BadRow], log: Callable[[str], None]) -> None:
    reasons = dict(Counter(row.reason for row in bad).most_common())
    log(f"{name} data: {spec}: {kept} rows kept, {len(bad)} bad" + (f" ({_counts(reasons)})" if bad else ""))
    for row in bad[:BAD_ROWS_SHOWN]:
        log(f"  {row.file}:{row.row}: {row.reason}: {row.detail}")


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())
