"""Writes the prompts a run trains on, as the JSONL that OpenRLHF's PromptDataset loads, and reports bad rows.

Runs on the driver before Ray starts, so that a run never starts on data it can't use.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.rows import BadRow, DataError, Row, read_rows
from openrlhf_orz.data.sources import Flags

TOKENIZER_BATCH = 1024  # prompts
HUGE_PROMPT = 200_000  # characters: tokens of a longer prompt are not counted if they must be too many
BAD_ROWS_SHOWN = 5  # a dataset; the file has all


@dataclass(frozen=True)
class Prepared:
    """What was written: one file of prompts (absolute path) per dataset, and counts over all of them."""

    paths: list[Path]
    n_rows: int
    n_bad: int
    bad_by_reason: dict[str, int]


def prepare_prompts(
    specs: str,
    out_dir: Path,
    name: str,
    tokenizer: Any,
    *,
    template: str,
    input_key: str,
    label_key: str | None,
    split: str,
    max_prompt_len: int,
    check_reference: Callable[[str], bool] | None = None,
    max_rows: int | None = None,
    apply_chat_template: bool = False,
    log: Callable[[str], None] = print,
) -> Prepared:
    """Read, render and check every dataset of `specs` (comma-separated) and write what is good.

    Writes `out_dir/prompts_<name>.jsonl`, or `prompts_<name>_<i>.jsonl` when there are several datasets, with keys
    prompt, label, datasource, question, file, row; and `out_dir/bad_rows_<name>.jsonl` when there are bad rows.
    OpenRLHF loads the former with input key "prompt", label key "label" and split "train", whatever `split` was.

    `name` is "train" or "eval"; `template` as in `prompts.render`. Rows whose prompt exceeds `max_prompt_len`
    tokens, or whose reference `check_reference` refuses (asked once per distinct reference), are bad. With
    `apply_chat_template` the prompt is the bare question, which OpenRLHF renders with the tokenizer's chat template;
    the length is that of the rendered text. `max_rows` bounds the rows read per dataset.

    Raises DataError when a dataset can't be read or has no good row left.
    """
    out_dir = Path(out_dir).resolve()
    if set(",@") & set(str(out_dir)):
        raise DataError(
            f"--ckpt.output_dir: OpenRLHF splits the paths of datasets at ',' and '@', and {out_dir} has one. "
            "Choose another folder."
        )
    flags = Flags("--eval.dataset", "--eval.split") if name == "eval" else Flags()
    prompt_of = _chat_renderer(tokenizer) if apply_chat_template else lambda question: render(template, question)
    checked: dict[str, bool] = {}
    spec_list = [spec.strip() for spec in specs.split(",")]
    paths, all_bad, empty, n_rows = [], [], [], 0
    out_dir.mkdir(parents=True, exist_ok=True)
    for i, spec in enumerate(spec_list):
        rows, bad = read_rows(spec, input_key, label_key, split, max_rows, flags=flags)
        prompts = [prompt_of(row.question) for row in rows]
        too_long = _too_long(tokenizer, prompts, max_prompt_len)
        good = []
        for index, (row, prompt) in enumerate(zip(rows, prompts)):
            if index in too_long:
                detail = f"{too_long[index]} tokens > {max_prompt_len} (--orz.max_prompt_len, --data.max_len)"
                bad.append(_refuse(row, "prompt_too_long", detail))
            elif check_reference is not None and not _check_once(check_reference, row.answer, checked):
                bad.append(_refuse(row, "reference_unparsable", f"reference {row.answer[:80]!r}"))
            else:
                good.append(_as_openrlhf(row, row.question if apply_chat_template else prompt))
        path = out_dir / (f"prompts_{name}_{i}.jsonl" if len(spec_list) > 1 else f"prompts_{name}.jsonl")
        _write_json_lines(path, good)
        bad.sort(key=lambda row: (row.file, row.row))
        _report(spec, name, len(good), bad, log)
        paths.append(path)
        all_bad += bad
        n_rows += len(good)
        empty += [] if good else [spec]

    bad_path = out_dir / f"bad_rows_{name}.jsonl"
    bad_path.unlink(missing_ok=True)  # one of an earlier run here would mislead
    if all_bad:
        _write_json_lines(bad_path, (asdict(row) for row in all_bad))
        log(f"{name} data: every bad row is in {bad_path}")
    reasons = dict(Counter(row.reason for row in all_bad).most_common())
    if empty:
        raise DataError(
            f"{flags.dataset}: no row of {', '.join(empty)} can be used ({_counts(reasons) or 'no rows'}). "
            + (f"Mend the rows listed in {bad_path}." if all_bad else "Give a dataset with rows.")
        )
    return Prepared(paths, n_rows, len(all_bad), reasons)


def _chat_renderer(tokenizer: Any) -> Callable[[str], str]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("--data.apply_chat_template: the tokenizer has no chat template. Leave the flag out.")

    def rendered(question: str) -> str:
        from jinja2 import TemplateError

        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
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


def _check_once(check: Callable[[str], bool], answer: str, checked: dict[str, bool]) -> bool:
    if answer not in checked:
        checked[answer] = check(answer)
    return checked[answer]


def _refuse(row: Row, reason: str, detail: str) -> BadRow:
    return BadRow(row.file, row.row, reason, detail)


def _as_openrlhf(row: Row, prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "label": _stay_text(row.answer),
        "datasource": _stay_text(row.source),
        "question": row.question,
        "file": row.file,
        "row": row.row,
    }


def _stay_text(value: str) -> str:
    # The JSON reader under `datasets` turns a column of ISO dates into timestamps; a blank at the end keeps it text.
    return value + " " if re.match(r"\d{4}-\d\d-\d\d", value) else value


def _write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")  # an interrupted run leaves no half file under the final name
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _report(spec: str, name: str, kept: int, bad: list[BadRow], log: Callable[[str], None]) -> None:
    reasons = dict(Counter(row.reason for row in bad).most_common())
    log(f"{name} data: {spec}: {kept} rows kept, {len(bad)} bad" + (f" ({_counts(reasons)})" if bad else ""))
    for row in bad[:BAD_ROWS_SHOWN]:
        log(f"  {row.file}:{row.row}: {row.reason}: {row.detail}")


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())
