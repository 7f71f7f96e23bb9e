"""The curation pipeline's quality on a labelled pool, and its speed and memory; one JSON line.

    python benchmarks/curate.py --quality --data rows.jsonl [--data more.jsonl] [--size 3000] [--seed 0] [--misses 5]
    python benchmarks/curate.py --contamination EVAL.jsonl [EVAL.jsonl ...] --data rows.jsonl
    python benchmarks/curate.py --speed [--rows 100000 1000000] [--data rows.jsonl]

`--data` files have rows with `prompt` (or `question`) and `answer`; use ones without multiple choice and proofs. A
pool of them with planted choices, proofs, parts, yes/no questions, other languages, duplicates and near misses is
made (curate_pool.py), curated, and precision and recall of each stage are counted against the labels.
`--contamination` counts the questions of evaluation sets that are missed in each of several wrappers, and the rows of
`--data` in which one of the packaged sets is found. `--speed`
curates synthetic short rows in a separate process and reports rows a second of each stage and the peak memory of
all processes together. Give it an idle machine; the load stands in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import curate_pool

from openrlhf_orz.data.curate.config import Decontaminate, load_config
from openrlhf_orz.data.curate.decontaminate import BUILTIN_NGRAM, EvalSets, load_builtin
from openrlhf_orz.data.curate.normalise import clean_question
from openrlhf_orz.data.curate.pipeline import run_pipeline

EXCLUDED = {
    "choice": "multiple_choice",
    "proof": ("proof", "proof_and_answer"),
    "parts": "multi_part",
    "guessable": "guessable",
}


def quality(paths: list[str], size: int, seed: int, misses: int, overrides: list[str]) -> dict:
    """Precision and recall for each planted kind, from rejected.jsonl against the labels."""
    pool = curate_pool.build(curate_pool.load(paths), size, seed)
    labels = {row["id"]: row for row in pool}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pool.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pool), encoding="utf-8")
        settings = [f"inputs=[{{path: {file}}}]", f"output={folder}/out", "decontaminate=false", *overrides]
        run_pipeline(load_config(None, settings), lambda line: None)
        lines = (Path(folder) / "out/rejected.jsonl").read_text(encoding="utf-8").splitlines()
        rejected = {row["id"]: row for row in map(json.loads, lines)}
        clusters = [json.loads(line) for line in (Path(folder) / "out/clusters.jsonl").read_text().splitlines()]
    result: dict = {"pool": dict(Counter(row["label"] for row in pool)), "seed": seed}
    shown = defaultdict(list)
    for kind, reasons in [*EXCLUDED.items(), ("language", ("chinese", "other"))]:
        reasons = (reasons,) if isinstance(reasons, str) else reasons
        planted = ("chinese", "other") if kind == "language" else (kind,)
        # A stage is measured on the rows that reached it; every exclusion counts as found.
        wanted = {n for n, row in labels.items() if row["label"] in planted}
        if kind == "language":
            wanted -= {n for n in wanted if rejected.get(n, {}).get("stage") in ("clean", "exclude")}
            found = {n for n, row in rejected.items() if row["stage"] == "language"}
            chinese = {n for n in wanted if labels[n]["label"] == "chinese"}
            kept = {n for n in wanted if n not in rejected or rejected[n]["stage"] == "dedup"}
            result["chinese_kept"] = len(chinese & kept) / max(1, len(chinese))
            wanted, found = wanted - chinese, found
        else:
            found = {n for n, row in rejected.items() if row["reason"] in reasons}
            hit = {n for n in wanted if rejected.get(n, {}).get("stage") == "exclude"}
            result[f"{kind}_excluded"] = round(len(hit) / len(wanted), 4)
            found = {
                n
                for n in found
                if labels[n]["label"] in (*planted, *curate_pool.DUPLICATES, "keep", "differs", "chinese", "other")
            } | hit
        result[kind] = _score(wanted, found)
        shown[f"{kind} missed"] = [labels[n]["question"][:300] for n in sorted(wanted - found)]
        shown[f"{kind} wrong"] = [(labels[n]["label"], labels[n]["question"][:300]) for n in sorted(found - wanted)]
    _duplicates(labels, rejected, clusters, result, shown)
    for name, texts in shown.items():
        for text in texts[:misses]:
            print(f"{name}: {text!r}", file=sys.stderr)
    wrong = [
        n for n, row in labels.items() if row["label"] in ("keep", "differs") and n in rejected and not row.get("of")
    ]
    result["kept_rows_lost"] = dict(Counter(f"{rejected[n]['stage']}/{rejected[n]['reason']}" for n in wrong))
    return result


def _score(wanted: set, found: set) -> dict:
    hit = len(wanted & found)
    return {
        "n": len(wanted),
        "precision": round(hit / max(1, len(found)), 4),
        "recall": round(hit / max(1, len(wanted)), 4),
    }


def _duplicates(labels, rejected, clusters, result, shown) -> None:
    """A planted duplicate is found when it shares a cluster with its original; a pair of other rows is wrong."""
    group = {member["id"]: i for i, cluster in enumerate(clusters) for member in cluster["members"]}
    gone = {n for n, row in rejected.items() if row["stage"] != "dedup"}
    origin = {n: row.get("of") or n for n, row in labels.items()}
    for kind in curate_pool.DUPLICATES:
        planted = [n for n, row in labels.items() if row["label"] == kind and n not in gone and origin[n] not in gone]
        found = [n for n in planted if n in group and group.get(origin[n]) == group[n]]
        result[f"{kind}_duplicates"] = {"n": len(planted), "recall": round(len(found) / max(1, len(planted)), 4)}
        shown[f"{kind} missed"] = [
            (labels[n]["question"][:250], labels[origin[n]]["question"][:250]) for n in planted if n not in set(found)
        ]
    right = wrong = 0
    for cluster in clusters:
        origins = Counter(origin[member["id"]] for member in cluster["members"])
        ((_, most),) = origins.most_common(1)
        right += most - 1
        wrong += sum(origins.values()) - most
        if len(origins) > 1:
            shown["pairs wrong"].append([labels[name]["question"][:250] for name in origins])
    result["duplicates_precision"] = round(right / max(1, right + wrong), 4)
    changed = [n for n, row in labels.items() if row["label"] == "differs" and n not in gone]
    result["differs_kept"] = round(
        sum(n not in rejected and n not in group for n in changed) / max(1, len(changed)), 4
    )


def contamination(evals: list[str], paths: list[str]) -> dict:
    """Evaluation questions missed in each wrapper, and the rows that are taken for one of the packaged sets."""
    own, packaged = EvalSets(BUILTIN_NGRAM), EvalSets(BUILTIN_NGRAM)
    load_builtin(packaged)
    questions = [row["question"] for row in curate_pool.load(evals)]
    for number, question in enumerate(questions):
        own.add(f"eval#{number}", clean_question(question)[0])
    least = Decontaminate().overlap
    missed = {
        name: sum(own.overlap(clean_question(wrap(question))[0], least) is None for question in questions)
        for name, wrap in curate_pool.WRAPPERS.items()
    }
    rows = [row["question"] for row in curate_pool.load(paths)]
    hits = [question for question in rows if packaged.overlap(clean_question(question)[0], least)]
    return {"questions": len(questions), "missed": missed, "rows": len(rows), "hits": len(hits), "found": hits[:5]}


def speed(rows: int, paths: list[str], processes: int) -> dict:
    """Rows a second of each stage, and peak memory, for a pool of `rows` short rows (or of copies of real ones)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pool.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for row in _short_rows(rows, paths):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        settings = [f"inputs=[{{path: {file}}}]", f"output={folder}/out", f"processes={processes}"]
        command = [sys.executable, "-m", "openrlhf_orz.cli.curate", *(part for s in settings for part in ("--set", s))]
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": _path()}
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        peak, lines = 0, []
        os.set_blocking(run.stdout.fileno(), False)
        try:
            while run.poll() is None:
                peak = max(peak, _memory(run.pid))
                lines += run.stdout.readlines()
                time.sleep(0.2)
        finally:
            run.kill()
        lines += run.stdout.readlines()
        seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if run.returncode:
            raise SystemExit(f"the run failed: {''.join(lines)[-1000:]}")
    found = dict(re.findall(r"^(\w+): \d+ rows in [\d.]+ s, (\d+) rows/s", "".join(lines), re.M))
    return {"rows": rows, "seconds": round(seconds, 1),
            "rows_per_s": {name: int(value) for name, value in found.items()},
            "cpu_seconds": round(sum(after[:2]) - sum(before[:2]), 1), "peak_mib": round(peak / 2**20),
            "load_average": os.getloadavg()[0]}  # fmt: skip


def _path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def _short_rows(rows: int, paths: list[str]):
    """Half sums and word problems by template, half real or made-up sentences; one in fifty is a copy of another."""
    chance = random.Random(0)
    real = curate_pool.load(paths)
    nouns = ("apples", "books", "coins", "stamps", "marbles", "tickets", "letters", "boxes", "trees", "chairs")
    verbs = ("buys", "sells", "finds", "loses", "gives", "counts", "packs", "reads", "draws", "plants")
    made: list[dict] = []
    for i in range(rows):
        if made and chance.random() < 0.02:
            row = chance.choice(made)
        elif real:
            source = real[i % len(real)]
            row = {
                "question": re.sub(r"\d+", lambda m: str(chance.randint(2, 999)), source["question"]),
                "answer": source["answer"],
            }
        else:
            a, b, c = (chance.randint(2, 9999) for _ in range(3))
            noun, verb = chance.choice(nouns), chance.choice(verbs)
            row = chance.choice([
                {"question": f"What is ${a} + {b} \\cdot {c}$?", "answer": str(a + b * c)},
                {"question": f"Sam has {a} {noun} and {verb} {b} more each day. How many {noun} after "
                             f"{c} days?", "answer": str(a + b * c)},
                {"question": f"Let $f(x) = {a}x + {b}$. Find $f({c})$ as a number.", "answer": str(a * c + b)},
                {"question": f"Express ${a}/{b + 9000}$ as a decimal times {c}, and keep the "
                             f"fraction.", "answer": f"{a * c}/{b + 9000}"},
            ])  # fmt: skip
        if len(made) < 10_000:
            made.append(row)
        yield row


def _memory(pid: int) -> int:
    """Proportional memory of a process and all its descendants, bytes."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)
            total += int(found.group(1)) * 1024 if found else 0
            todo += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            pass
    return total


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--contamination", nargs="+", default=[], metavar="FILE", help="evaluation sets")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--data", action="append", default=[], help="JSON lines with prompt (or question) and answer")
    parser.add_argument("--size", type=int, default=3000, help="real rows in the labelled pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--misses", type=int, default=0, help="show so many mistakes of each kind")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="sizes for --speed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="a key of the configuration for --quality")
    options = parser.parse_args(arguments)
    result: dict = {}
    if options.quality:
        result["quality"] = quality(options.data, options.size, options.seed, options.misses, options.set)
    if options.contamination:
        result["contamination"] = contamination(options.contamination, options.data)
    if options.speed:
        result["speed"] = [speed(rows, options.data, options.processes) for rows in options.rows]
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
