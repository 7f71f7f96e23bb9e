"""The curation pipeline end to end on small files: every row accounted for, equal bytes, resumption, selection."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_orz.cli.curate import configuration
from openrlhf_orz.data.curate.collect import Taken, read_input
from openrlhf_orz.data.curate.config import load_config
from openrlhf_orz.data.curate.inputs import parse_inputs
from openrlhf_orz.data.curate.pipeline import run_pipeline
from openrlhf_orz.data.rows import read_dataset
from openrlhf_orz.data.sources import DataError

ROOT = Path(__file__).resolve().parents[3]
THINGS = (
    "apples",
    "pears",
    "plums",
    "books",
    "coins",
    "stamps",
    "boxes",
    "trees",
    "chairs",
    "tables",
    "lamps",
    "doors",
)


def words(i):
    """Distinct questions with distinct numbers."""
    one, other = THINGS[i % 12], THINGS[i // 12 % 12]
    return f"Sam the {one} seller has {i + 3} {other} and sells {2 * i + 5} more. How many in all?"


def pool(path, n=60):
    lines = [json.dumps({"question": words(i), "answer": str(3 * i + 8), "source": "sam"}) for i in range(n)]
    lines += [
        json.dumps({"question": words(3).replace("  ", " ").replace(". ", ".\n"), "answer": "17"}),  # exact, again
        json.dumps({"question": "Please solve: " + words(5).replace("more", "furthermore"), "answer": "23"}),  # near
        json.dumps({"question": words(7), "answer": "9"}),  # exact, another answer
        json.dumps({"question": "Prove that 7 is prime.", "answer": "proof"}),
        json.dumps({"question": "Pick one:\n(A) 1 (B) 2 (C) 3", "answer": "A"}),
        json.dumps({"question": "Calculer la somme des nombres premiers plus petits que vingt.", "answer": "77"}),
        json.dumps({"question": "a\x00b is what", "answer": "1"}),
        json.dumps({"question": "x" * 1_000_000, "answer": "1"}),
        json.dumps({"question": "How many?", "answer": ")) (("}),
        json.dumps({"question": 5, "answer": "1"}),
        json.dumps({"question": "no answer"}),
        json.dumps({"question": "lone \ud800 surrogate", "answer": "1"}),
        json.dumps(["a list"]),
        '{"question": "broken',
        "",
        '{"question": "raw \x00 byte", "answer": "1"}',
    ]
    data = "\n".join(lines).encode() + b"\n" + '{"question": "caf\xe9 latin", "answer": "1"}\n'.encode("latin-1")
    path.write_bytes(data)
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curate(folder, file, *settings):
    config = load_config(None, [f"inputs=[{{path: {file}, name: sam}}]", f"output={folder}", "processes=1", *settings])
    return run_pipeline(config, lambda line: None)


def outputs(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "work" not in path.relative_to(folder).parts
    }


def test_every_row_is_kept_or_rejected_with_its_reason(tmp_path):
    n = pool(tmp_path / "pool.jsonl")
    summary = curate(tmp_path / "out", tmp_path / "pool.jsonl", "heldout=0.2")
    kept = [row for name in ("train", "test") for row in rows(tmp_path / f"out/kept/{name}.jsonl")]
    rejected = rows(tmp_path / "out/rejected.jsonl")
    ids = [row["id"] for row in kept + rejected]
    assert len(ids) == len(set(ids)) == n and len(kept) == 60
    assert summary["train"] + summary["heldout"] == 60 and 0 < summary["heldout"] < 30
    reasons = {row["row"]: (row["stage"], row["reason"]) for row in rejected}
    assert reasons == {
        61: ("dedup", "duplicate_exact"),
        62: ("dedup", "duplicate_ngram"),
        63: ("dedup", "duplicate_exact"),
        64: ("exclude", "proof"),
        65: ("exclude", "multiple_choice"),
        66: ("language", "other"),
        67: ("clean", "unshowable_characters"),
        68: ("clean", "question_too_long"),
        69: ("clean", "answer_unparsable"),
        70: ("collect", "question_not_text"),
        71: ("collect", "no_answer"),
        72: ("collect", "not_utf8"),
        73: ("collect", "not_an_object"),
        74: ("collect", "broken_json"),
        76: ("collect", "broken_json"),
        77: ("collect", "not_utf8"),
    }
    assert {row["file"] for row in rejected} == {"pool.jsonl"}
    duplicate = {row["row"]: row["duplicate_of"] for row in rejected if row["stage"] == "dedup"}
    assert duplicate[61] == "sam#4" and duplicate[62] == "sam#6"
    clusters = rows(tmp_path / "out/clusters.jsonl")
    assert [cluster["conflict"] for cluster in clusters] == [False, False, True]
    for stage, before in zip(summary["stages"][1:], summary["stages"]):
        assert stage["rows_in"] == before["kept"] and stage["kept"] + stage["rejected"] == stage["rows_in"]
    # the trainer's own reader takes the result as it is
    read, bad = read_dataset(str(tmp_path / "out/kept"), "question", "answer", "train")
    assert len(read) == summary["train"] and not bad
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out/parquet/train.parquet").num_rows == summary["train"]
    card = (tmp_path / "out/README.md").read_text()
    assert "| collect | 76 | 69 |" in card and "![length](pictures/length.svg)" in card


def test_equal_bytes_whatever_the_processes_and_a_second_run_does_nothing(tmp_path):
    pool(tmp_path / "pool.jsonl")
    curate(tmp_path / "one", tmp_path / "pool.jsonl", "shuffle=true", "heldout=0.1")
    settings = ("shuffle=true", "heldout=0.1", "processes=2", "shard_rows=20000")
    curate(tmp_path / "two", tmp_path / "pool.jsonl", *settings)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "two/work").rglob("*.done")}
    curate(tmp_path / "two", tmp_path / "pool.jsonl", *settings)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "two/work").rglob("*.done")}
    curate(tmp_path / "two", tmp_path / "pool.jsonl", *settings, "exclude.proof=false")
    changed = {
        path.parent.name for path, stamp in stamps.items() if not path.exists() or path.stat().st_mtime_ns != stamp
    }
    assert changed == {"2_exclude", "3_language", "4_dedup", "5_decontaminate"}
    curate(tmp_path / "two", tmp_path / "pool.jsonl", *settings, "seed=1")
    assert outputs(tmp_path / "one")["kept/train.jsonl"] != outputs(tmp_path / "two")["kept/train.jsonl"]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"question": words(i), "answer": str(i)}) + "\n" for i in range(3000)))
    settings = [
        f"--set=inputs=[{{path: {file}, name: sam}}]",
        "--set=shard_rows=100",
        "--set=processes=1",
        "--set=language=false",
    ]
    command = [sys.executable, "-m", "openrlhf_orz.cli.curate", *settings, "--output"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.Popen([*command, str(tmp_path / "killed")], env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/work/2_exclude/*.done"))) < 5 and time.monotonic() < until:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/work").rglob("*.done")}
    partway = [path for path in done if path.parent.name == "2_exclude"]
    assert 5 <= len(partway) < 30, "it was not killed within the stage"
    again = subprocess.run([*command, str(tmp_path / "killed")], env=env, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"exclude: going on after {len(partway)} shards" in again.stdout
    assert done == {path: path.stat().st_mtime_ns for path in done}, "a finished shard was done again"
    config = configuration([*settings, "--output", str(tmp_path / "whole")])[1]
    run_pipeline(config, lambda line: None)
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def test_collecting_goes_on_after_whole_shards(tmp_path):
    pool(tmp_path / "pool.jsonl")
    curate(tmp_path / "one", tmp_path / "pool.jsonl", "shard_rows=10")
    for name in ("00004.done", "00005.done", "00006.done", "00007.done", "stage.json"):
        (tmp_path / "one/work/0_collect" / name).write_text(
            (tmp_path / "one/work/0_collect/stage.json").read_text().replace('"done": true', '"done": false')
        ) if name == "stage.json" else (tmp_path / "one/work/0_collect" / name).unlink()
    before = outputs(tmp_path / "one")
    curate(tmp_path / "one", tmp_path / "pool.jsonl", "shard_rows=10")
    assert outputs(tmp_path / "one") == before


QUICK = ("clean.check_answers=false", "language=false")


def test_what_changed_on_disk_is_done_again(tmp_path):
    file, known = tmp_path / "pool.jsonl", tmp_path / "known.jsonl"

    def run():
        settings = [*QUICK, f"decontaminate.against=[{known}]", "exclude=false"]
        summary = curate(tmp_path / "out", file, *settings)
        return summary["train"], summary["stages"][-1]["reasons"]

    file.write_text("".join(json.dumps({"question": words(i), "answer": str(i)}) + "\n" for i in range(3)))
    known.write_text(json.dumps({"question": words(7), "answer": "1"}) + "\n")
    assert run() == (3, {})
    known.write_text(json.dumps({"question": words(1), "answer": "1"}) + "\n")
    assert run() == (2, {"eval_exact": 1})
    with file.open("a") as more:
        more.write(json.dumps({"question": words(4), "answer": "4"}) + "\n")
    assert run() == (3, {"eval_exact": 1})


def test_the_held_out_split_takes_whole_families(tmp_path):
    file = tmp_path / "pool.jsonl"
    numbers = [(i, word, i * k + 5) for k, word in enumerate(THINGS, 2) for i in (3, 7, 11, 19)]
    question = "A {0} maker of old Rome packs {1} {0} and then {2} more {0}. How many {0} are packed by the {0} maker?"
    lines = [{"question": question.format(word, i, n), "answer": str(i + n)} for i, word, n in numbers]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curate(tmp_path / "out", file, *QUICK, "heldout=0.5")
    families = [
        {row["meta"]["family"] for row in rows(tmp_path / f"out/kept/{name}.jsonl")} for name in ("train", "test")
    ]
    assert families[0] and families[1] and not families[0] & families[1]
    assert len(families[0] | families[1]) < len(lines)


REAL_SHAPES = {
    "aime": [
        {
            "ID": "2023-I-1",
            "Year": 2023,
            "Problem Number": 1,
            "Question": "Five men and nine women stand.",
            "Answer": "191",
            "Part": "I",
        },
        {
            "ID": "2024-I-1",
            "Year": 2024,
            "Problem Number": 1,
            "Question": "Every morning Aya walks.",
            "Answer": "204",
            "Part": "I",
        },
    ],
    "math": [
        {
            "problem": "What is $1+1$?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "It is $\\boxed{2}$, so \\boxed{\\frac{4}{2}}.",
        }
    ],
    "numina_cot": [
        {
            "source": "olympiads",
            "problem": "Find $x$.",
            "solution": "So $x = \\boxed{5}$.",
            "messages": [{"role": "user", "content": "?"}],
        }
    ],
    "numina_1.5": [
        {
            "problem": "Find $x$.",
            "solution": "...",
            "answer": "5",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "problem_is_valid": "Yes",
            "source": "amc_aime",
            "synthetic": False,
        }
    ],
    "tulu3_math": [
        {
            "messages": [
                {"role": "user", "content": "Question: What is 1+1?\nAnswer: 2\n\nQuestion: Find $x$.\nAnswer:"}
            ],
            "ground_truth": "5",
            "dataset": "MATH",
        }
    ],
    "openr1_math": [
        {
            "problem": "Find $x$.",
            "solution": "...",
            "answer": "5",
            "problem_type": "Algebra",
            "question_type": "MCQ",
            "source": "aops_forum",
            "uuid": "u",
            "generations": ["a"],
            "correctness_count": 2,
        }
    ],
    "gsm8k": [{"question": "How many?", "answer": "2+3=<<2+3=5>>5\n#### 5"}],
    "orz": [[{"from": "human", "value": "Find $x$."}, {"from": "assistant", "ground_truth": {"value": "5"}}]],
}


@pytest.mark.parametrize("name", REAL_SHAPES)
def test_source_entries_read_the_real_shapes(tmp_path, name):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(REAL_SHAPES[name]))
    (item,) = parse_inputs([{"path": str(file), "entry": name}])
    found = list(read_input(item))
    row, refused = found[0]
    assert refused is None
    expected = {
        "aime": ("Five men and nine women stand.", "191"),
        "math": ("What is $1+1$?", "\\frac{4}{2}"),
        "gsm8k": ("How many?", " 5".strip()),
    }
    assert (row["question"], row["answer"]) == expected.get(name, ("Find $x$.", "5"))
    sources = {"numina_cot": "olympiads", "numina_1.5": "amc_aime", "openr1_math": "aops_forum"}
    assert row["source"] == sources.get(name, name)
    if name == "aime":
        assert found[1][1] == ("not_selected", "Year: 2024") and row["meta"]["ID"] == "2023-I-1"
    if name == "math":
        assert row["difficulty"] == "Level 1" and row["meta"]["type"] == "Algebra"


def test_rows_that_their_data_set_marks_are_refused_by_name(tmp_path):
    sound = {"problem": "Sum?", "answer": "5", "question_type": "math-word-problem", "problem_is_valid": "Yes"}
    marks = [{}, {"question_type": "proof"}, {"problem_is_valid": "Incomplete"}, {"solution_is_valid": "Incomplete"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(sound | mark) + "\n" for mark in marks))
    (item,) = parse_inputs([{"path": str(file), "entry": "numina_1.5"}])
    reasons = [refused and refused[0] for _, refused in read_input(item)]
    assert reasons == [None, "marked_proof", "marked_incomplete", "marked_incomplete"]


def test_rows_keep_their_own_id_unless_it_repeats(tmp_path):
    file = tmp_path / "pool.jsonl"
    own = ["a", 0, "a", None, "pool#4", {"no": "id"}]
    file.write_text("".join(json.dumps({"id": i, "question": "q", "answer": "1", "source": "s"}) + "\n" for i in own))
    taken = Taken()
    (item,) = parse_inputs([{"path": str(file)}])
    found = [row for row, _ in read_input(item, taken)]
    assert [row["id"] for row in found] == ["a", "0", "pool#3", "pool#4", "pool#5", "pool#6"]
    assert taken.repeated == 2 and found[2]["meta"]["own_id"] == "a" and found[0]["source"] == "s"


def test_selection_by_source_and_difficulty(tmp_path):
    file = tmp_path / "rows.jsonl"
    made = [
        {"question": f"q{i}", "answer": "1", "source": s, "level": v}
        for i, (s, v) in enumerate([("amc", 5), ("cn_k12", 5), ("AMC", 2)])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    (item,) = parse_inputs([{"path": str(file), "select": {"source": ["amc", "aime"], "difficulty": {"min": 3}}}])
    assert [refused and refused[0] for _, refused in read_input(item)] == [None, "not_selected", "not_selected"]


@pytest.mark.parametrize(
    "settings, words",
    [
        (["inputs=[{path: nowhere.jsonl}]"], ["nowhere.jsonl", "Check the path"]),
        (["inputs=[{path: x, entry: mth}]"], ["inputs.0.entry", "'mth'", "numina_cot"]),
        (["dedup.ngrams=true"], ["dedup.ngrams", "ngram"]),
        (["heldout=2"], ["heldout"]),
        (["language.keep=[klingon]"], ["language.keep", "klingon"]),
        (["pass_rate={n: 4}"], ["pass_rate", "model or rollouts"]),
        (["seed"], ["--set seed", "KEY=VALUE"]),
        (["inputs=[{reasoning_gym: {task: rush_hour, size: 3}}]"], ["rush_hour", "no answer"]),
        (
            ["inputs=[{reasoning_gym: {task: countdown, size: 3, verifier: reasoning_gym}}]"],
            ["countdown", "run an answer as code", "another task"],
        ),
        (["inputs=[{path: README.md, colour: red}]"], ["inputs.0.colour"]),
        (["inputs=[{path: README.md, answer_from: boxd}]"], ["inputs.0.answer_from", "boxed", "'boxd'"]),
        (["inputs=[{path: README.md, question_from: fewshot}]"], ["inputs.0.question_from", "few_shot"]),
        (["inputs=[{path: README.md, limit: -1}]"], ["inputs.0.limit", "1 or more"]),
        (["inputs=[{path: README.md, limit: true}]"], ["inputs.0.limit", "1 or more"]),
        (["inputs=[{path: README.md, where: 5}]"], ["inputs.0.where"]),
        (["inputs=[{path: README.md, meta: 5}]"], ["inputs.0.meta"]),
        (["inputs=[{path: README.md, answer: [gold, 5]}]"], ["inputs.0.answer"]),
        (["inputs=[{path: README.md, entry: [a]}]"], ["inputs.0.entry", "text"]),
    ],
)
def test_errors_name_key_and_remedy(tmp_path, settings, words):
    with pytest.raises(DataError) as error:
        run_pipeline(
            load_config(None, [f"output={tmp_path}", "inputs=[{path: also_nowhere.json}]", *settings]),
            lambda line: None,
        )
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["runs #1", "2024-10-01", "1234", "yes", "a: b"])
def test_folders_of_flags_are_taken_as_they_are(name):
    """They are no YAML, which would cut one at a #, or make a date of it."""
    _, config = configuration(["--input", name, "--output", name, "--rollouts", name])
    assert config.output == name and config.inputs == [{"path": name}] and config.pass_rate.rollouts == [name]


def test_settings_change_the_inputs_of_flags():
    _, config = configuration(["--input", "a.jsonl", "--output", "b", "--set", "inputs.0.answer=gold"])
    assert config.inputs == [{"path": "a.jsonl", "answer": "gold"}]
    with pytest.raises(DataError, match="--entry math is about --input"):
        configuration(["--entry", "math", "--output", "b"])


def test_a_folder_of_something_else_is_not_written_into(tmp_path):
    (tmp_path / "parquet").mkdir()
    pool(tmp_path / "parquet" / "mine.jsonl")
    with pytest.raises(DataError, match="holds parquet and is no curation's"):
        curate(tmp_path, tmp_path / "parquet" / "mine.jsonl")
    assert (tmp_path / "parquet" / "mine.jsonl").exists()
    curate(tmp_path / "new", tmp_path / "parquet" / "mine.jsonl")
    with pytest.raises(DataError, match="is where results are written"):
        curate(tmp_path / "new", tmp_path / "new" / "kept" / "train.jsonl")
    assert curate(tmp_path / "new", tmp_path / "parquet" / "mine.jsonl")["train"] > 0, "a curation's own is"


def test_pass_rates_are_those_of_the_weights_that_are_there(tmp_path):
    """Another model at the same place is sampled, and the same one is not sampled again."""
    pool(tmp_path / "pool.jsonl")
    model, asked = tmp_path / "model", []
    model.mkdir()
    settings = [f"inputs=[{{path: {tmp_path}/pool.jsonl}}]", f"output={tmp_path}/out", "processes=1",
                f"pass_rate={{model: {model}, n: 2}}"]  # fmt: skip

    def make(options, questions):
        asked.append((model / "model.safetensors").read_text())
        return lambda questions, *_: [1 for _ in questions]

    for weights in ("one", "one", "two"):
        (model / "model.safetensors").write_text(weights)
        run_pipeline(load_config(None, settings), lambda line: None, make)
    assert asked == ["one", "two"]
