"""Decontamination, pass rates, synthetic tasks and the drawing of duplicates, each on a handful of rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from openrlhf_orz.data.curate import pass_rate
from openrlhf_orz.data.curate.config import Decontaminate, PassRate, load_config
from openrlhf_orz.data.curate.decontaminate import BUILTIN, EvalSets, decontaminate, load_builtin
from openrlhf_orz.data.curate.normalise import clean_question
from openrlhf_orz.data.curate.pipeline import run_pipeline
from openrlhf_orz.data.curate.signature import signature
from openrlhf_orz.data.curate.similarity import DisjointSets, bands, candidate_pairs, runs
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.sources import DataError


def row(i, question="q", answer="1", **meta):
    return {
        "id": f"r#{i}",
        "question": question,
        "answer": answer,
        "source": "s",
        "difficulty": None,
        "pass_rate": None,
        "meta": meta,
    }


EVAL = (
    "Let $n$ be the number of ways to colour the faces of a cube with 7 colours up to rotation. "
    "Find the remainder of $n$ modulo 1000."
)


def test_decontamination_finds_copies_and_large_parts():
    sets = EvalSets(8)
    sets.add("made#1", EVAL)
    sets.add("made#2", "Compute $3^5$.")
    inside = "Warm-up. " + EVAL.replace("Let $n$ be", "Here $n$ is") + " Write it in words."
    other_number = EVAL.replace("1000", "100")  # another question, though nearly all of its words are the same
    texts = [EVAL.replace(" ", "  "), inside, other_number, "Compute $3^5$", "Compute $3^6$."]
    rows = [row(i, text) for i, text in enumerate(texts)] + [row(5, EVAL, generated="x")]
    kept, rejected = decontaminate(rows, sets, Decontaminate())
    assert [r["id"] for r in kept] == ["r#2", "r#4", "r#5"]
    assert [(r["reason"], r["detail"].split(":")[0]) for r in rejected] == [
        ("eval_exact", "made#1"),
        ("eval_ngram", "made#1"),
        ("eval_exact", "made#2"),
    ]
    assert decontaminate(rows, sets, Decontaminate(overlap=1.0))[0][0]["id"] == "r#1"


WRAPPERS = {
    "before": lambda q: "Here is a problem from a contest of 2024. " + q,
    "behind": lambda q: q + " Think it through and put the final answer in a box.",
    "both": lambda q: f'The very last line must look like "Result: X".\n\n{q}\n\nWrite 1 line after "Result:".',
    "bold": lambda q: f"**{q}**",
    "latex": lambda q: rf"\textbf{{{q}}}",
    "capitals": str.upper,
    "json": lambda q: json.dumps({"id": 7, "question": q}),
    "json in json": lambda q: json.dumps(json.dumps([q])),
    "program": lambda q: repr({"question": q + "'"}),
    "quotation": lambda q: "> " + q.replace("\n", "\n> "),
}
ASKED = [
    EVAL,
    "Evaluate $(3+4i)5-7i$.",
    "Compute $3^5$.",
    "If $n \\equiv 4 \\pmod{9}$, find the remainder when\n\\[(n + 1)(n + 3)\\]\nis divided by 9.",
    "In right triangle $KLM$ with $\\angle L = 90^\\circ$, we have $\\sin K = 3\\cos K$. What is $\\tan K$?",
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_evaluation_question_is_found_in_any_wrapper(wrapper):
    sets = EvalSets(8)
    for number, question in enumerate(ASKED):
        sets.add(f"made#{number}", question)
    found = [sets.overlap(clean_question(WRAPPERS[wrapper](question))[0], 0.6) for question in ASKED]
    assert [name and name[0] for name in found] == [f"made#{number}" for number in range(len(ASKED))]


def test_packaged_evaluation_sets_are_hashes():
    sets = EvalSets(8)
    load_builtin(sets)
    names = {found.name.split("#")[0] for found in sets.questions}
    assert names == {"math500", "aime2024", "aime2025", "amc"} and len(sets.questions) == 643
    assert set(np.load(BUILTIN).files) == {"names", "n", "tokens", "sizes", "numbers", "maths", "grams"}
    # a question of AIME 2025, from which the sets would be useless if they did not find it
    found = sets.overlap("Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b.$", 0.6)
    assert found == ("aime2025#1", 1.0, True)


def run_dir(path, rewards):
    (path / "rollouts").mkdir(parents=True)
    (path / "data").mkdir()
    prompts = {question: render("paper", question) for question in rewards}
    for step in (1, 2):
        lines = [
            {"prompt": prompts[q], "response": "", "reference": "1", "reward": r}
            for q, rs in rewards.items()
            for r in rs
        ]
        (path / f"rollouts/step_{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prompts


def test_pass_rates_are_mined_from_rollouts(tmp_path):
    rewards = {"Problem 1. What is 2+2?": [1.0, 0.0, 0.0, 0.0], "What is 2+3?": [0.0] * 4, "What is 2+4?": [1.0] * 4}
    prompts = run_dir(tmp_path / "run", rewards)
    found = pass_rate.mine_rollouts([str(tmp_path / "run")], "paper")  # by taking the template off
    assert found[pass_rate.question_key("What is 2+2?")] == (2, 8)
    (tmp_path / "run/data/prompts_train.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "question": q}) + "\n" for q, p in prompts.items())
    )
    assert pass_rate.mine_rollouts([str(tmp_path / "run")], "none") == found  # by the run's own prompts
    rows = [row(i, f"What is 2+{i}?") for i in (2, 3, 4, 5)]
    kept, rejected = pass_rate.filter_rows(rows, PassRate(max_right=3), found, mined=True)
    assert [(r["id"], r["pass_rate"], r["meta"]) for r in kept] == [
        ("r#2", 0.25, {"pass_right": 2, "pass_n": 8}),
        ("r#5", None, {}),
    ]
    assert [(r["id"], r["reason"], r["detail"]) for r in rejected] == [
        ("r#3", "never_right", "0 of 8"),
        ("r#4", "too_easy", "8 of 8"),
    ]
    few = PassRate(min_n=8, missing="drop")
    assert [r["id"] for r in pass_rate.filter_rows([row(2, "What is 2+2?")], few, found, mined=True)[0]] == ["r#2"]
    few.min_n = 9
    dropped = pass_rate.filter_rows([row(2, "What is 2+2?")], few, found, mined=True)[1]
    assert [(r["reason"], r["detail"]) for r in dropped] == [("no_estimate", "8 answers")]
    assert pass_rate.pass_rate_reason(4, 64, PassRate(max_right=3)) == ("too_often_right", "4 of 64")
    assert pass_rate.pass_rate_reason(0, 64, PassRate(max_right=3, exclude_zero=False)) is None
    assert pass_rate.pass_rate_reason(6, 8, PassRate(max_rate=0.7))[0] == "too_easy"
    with pytest.raises(DataError, match="no rollouts"):
        pass_rate.mine_rollouts([str(tmp_path)], "paper")
    (tmp_path / "run/rollouts/step_3.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="step_3.jsonl:1"):
        pass_rate.mine_rollouts([str(tmp_path / "run")], "paper")


def test_estimates_of_a_model_go_on_after_a_kill(tmp_path):
    asked = []

    def sample(prompts, references, verifiers):
        asked.extend(prompts)
        return [int(reference) for reference in references]

    rows = [row(i, f"q{i}", str(i)) for i in range(4)]
    file = tmp_path / "estimates.jsonl"
    options = PassRate(model="m", n=3, template="none")
    file.write_text('{"id": "r#0", "right": 0, "n": 3}\n{"id": "r#1", "ri')
    found = pass_rate.estimate(rows, options, sample, file)
    assert asked == ["q1", "q2", "q3"] and found["r#2"] == (2, 3)
    assert len(file.read_text().splitlines()) == 4
    pass_rate.estimate(rows, options, sample, file)
    assert len(asked) == 3
    kept, rejected = pass_rate.filter_rows(rows, options, found, mined=False)
    assert [r["id"] for r in kept] == ["r#1", "r#2"] and [r["reason"] for r in rejected] == ["never_right", "too_easy"]


def test_union_and_candidate_pairs():
    union = DisjointSets(5)
    union.join(4, 2)
    union.join(2, 1)
    assert union.roots().tolist() == [0, 1, 1, 3, 1]
    assert [group.tolist() for group in runs(np.array([5, 7, 5, 7, 9]), np.arange(5))] == [[0, 2], [1, 3]]
    texts = ["the cat sat on the mat by the door", "the cat sat on a mat by the door", "stocks fell again today"]
    band, family = bands([signature(text) for text in texts])
    assert band.shape == (3, 21) and family.shape == (3, 7)
    many = np.tile(band, (20, 1))  # too many with one guard for each to be compared
    pairs = {tuple(p) for ps in candidate_pairs(many, np.ones(60, np.uint64), np.arange(60)) for p in ps.tolist()}
    assert {(i % 3, j % 3) for i, j in pairs} == {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}
    assert [p.tolist() for p in candidate_pairs(band, np.array([1, 2, 1], np.uint64), np.arange(3))][0] == [[0, 2]]
    assert not list(candidate_pairs(band, np.array([1, 2, 3], np.uint64), np.arange(3)))


def test_synthetic_additions_are_the_quickstart_s(tmp_path):
    """The same questions in the same order as the generator alone gives."""
    from openrlhf_orz.data.arithmetic import generate_additions

    config = load_config(
        Path(__file__).parents[3] / "examples/curate_arithmetic.yaml",
        [f"output={tmp_path}", "inputs.0.additions.rows=64", "processes=1"],
    )
    run_pipeline(config, lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "kept/train.jsonl").read_text().splitlines()]
    expected = [(r["question"], r["answer"]) for r in generate_additions(64, (3, 3), 0)]
    assert [(r["question"], r["answer"]) for r in rows] == expected


def test_synthetic_reasoning_tasks(tmp_path):
    pytest.importorskip("reasoning_gym")
    inputs = [
        {"reasoning_gym": {"task": "gcd", "size": 5, "seed": 3}},
        {"name": "own", "reasoning_gym": {"task": "jugs", "size": 3, "seed": 1, "verifier": "reasoning_gym"}},
    ]
    for name in ("one", "two"):
        run_pipeline(
            load_config(None, [f"inputs={inputs}", f"output={tmp_path / name}", "processes=1"]), lambda line: None
        )
    rows = [json.loads(line) for line in (tmp_path / "one/kept/train.jsonl").read_text().splitlines()]
    assert [r["source"] for r in rows] == ["reasoning_gym/gcd"] * 5 + ["reasoning_gym/jugs"] * 3
    assert json.loads(rows[-1]["answer"])["metadata"]["source_dataset"] == "jugs"
    assert rows[-1]["meta"]["verifier"] == "reasoning_gym" and rows[0]["difficulty"]
    assert (tmp_path / "one/kept/train.jsonl").read_bytes() == (tmp_path / "two/kept/train.jsonl").read_bytes()


def test_the_verifier_of_a_row_stays_with_it(tmp_path):
    pool = tmp_path / "pool.jsonl"
    rows = [
        {"question": "Which colour has the sky on a clear day?", "answer": "(B)", "verifier": "letter"},
        {"question": "How many legs have seven horses together?", "answer": "28"},
        {"question": "What is written on the oldest stone?", "answer": "12", "meta": {"verifier": "letter"}},
        {"question": "Who has built the tallest of the towers?", "answer": "x", "verifier": "lettre"},
    ]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"inputs=[{{path: {pool}}}]", f"output={tmp_path / 'out'}", "processes=1", "decontaminate=false"]
    run_pipeline(load_config(None, settings), lambda line: None)
    kept = [json.loads(line) for line in (tmp_path / "out/kept/train.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["meta"].get("verifier")) for row in kept] == [("(B)", "letter"), ("28", None)]
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(row["row"], row["reason"]) for row in rejected] == [(3, "answer_unparsable"), (4, "unknown_verifier")]
