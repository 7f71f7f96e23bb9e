"""Rows from engines, from training's samples and from files, and an evaluation's numbers over them."""

import contextlib
import io
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from openrlhf_orz.cli.evaluate import check_options, evaluate_parser
from openrlhf_orz.evaluate import grading
from openrlhf_orz.evaluate.critic import add_values, response_values
from openrlhf_orz.evaluate.grading import evaluate_samples, grade_lines, graded_response
from openrlhf_orz.evaluate.questions import EvaluationError, Question, sample_seed
from openrlhf_orz.evaluate.results import Responses
from openrlhf_orz.evaluate.run import (
    answer_questions,
    benchmark_numbers,
    engine_settings,
    prompt_renderer,
    response_identity,
    take_run_settings,
    weights_fingerprint,
)
from openrlhf_orz.reward.verifiers import VerifierSet, pack_label
from openrlhf_orz.settings.flags import STOP_STRINGS

RIGHT = "wait, </think> <answer>\\boxed{4}</answer>"
QUESTION = Question("b", "1", "2+2?", "4")


@pytest.fixture(scope="module")
def verifiers():
    found = VerifierSet(workers=1)
    yield found
    found.close()


def engine_row(response=RIGHT, stop="</answer>", sample=0):
    return {
        "key": ("b", "1", sample),
        "response": response,
        "stop_reason": stop,
        "token_ids": [5, 6, 7],
        "seconds": 2.0,
    }


def test_a_response_becomes_a_row(verifiers):
    row = graded_response(engine_row(sample=3), QUESTION, "the prompt", 99, verifiers)
    assert row.pop("rule")
    assert row == {
        "bench": "b", "id": "1", "sample": 3, "seed": 99, "prompt": "the prompt", "response": RIGHT, "extracted": "4",
        "reference": "4", "verdict": "right", "reward": 1.0, "stop_reason": "</answer>", "tokens": 3,
        "token_ids": [5, 6, 7], "format": True, "reflection": True, "seconds": 2.0,
    }  # fmt: skip


def test_a_cut_response_earns_nothing(verifiers):
    assert graded_response(engine_row(stop="length"), QUESTION, "p", 0, verifiers)["reward"] == 0
    assert graded_response(engine_row(stop="eos"), QUESTION, "p", 0, verifiers)["reward"] == 1


def sample(prompt, tokens, reward, cut=False):
    """OpenRLHF's experience of one response: two prompt tokens, then ``tokens``."""
    return SimpleNamespace(
        prompts=[prompt], labels=["4"], rewards=torch.tensor([reward]), truncated=torch.tensor([cut]),
        sequences=torch.tensor([[1, 2, *tokens]]), action_mask=torch.tensor([[0] + [1] * len(tokens)]),
    )  # fmt: skip


class Tokenizer:
    """Token 9 is a right answer, 8 a wrong one, 7 a word."""

    words = {9: RIGHT, 8: "<answer>\\boxed{5}</answer>", 7: "hm "}

    def batch_decode(self, rows):
        return ["".join(self.words[int(token)] for token in row) for row in rows]


def test_samples_of_training_by_set():
    loader = [(["x", "y"], ["p", "q"], None), (["x"], ["r"], None)]
    samples = [
        sample("p", [7, 9], 1.0), sample("p", [8], 0.0), sample("q", [8], 0.0), sample("q", [7, 7, 8], 0.0, cut=True),
        sample("r", [9], 1.0), sample("r", [9], 1.0),
    ]  # fmt: skip
    logs = evaluate_samples(
        loader, samples, 2, Tokenizer(), Namespace(orz=Namespace(verifier_grades=False, right_reward=1.0))
    )
    assert logs["eval_x_pass1"] == 0.75 and logs["eval_x_pass2"] == 1.0 and logs["eval_y_pass2"] == 0.0
    assert logs["eval_x_response_length_mean"] == 5 / 4 and logs["eval_y_response_length_mean"] == 2
    assert logs["eval_y_truncated_rate"] == 0.5 and logs["eval_truncated_rate"] == 1 / 6
    assert logs["eval_response_length_mean"] == 9 / 6 and logs["eval_num_samples"] == 6
    assert logs["eval_x_format_rate"] == 0.75 and logs["eval_y_format_rate"] == 0  # RIGHT closes </think>
    assert "eval_x_maj2" not in logs


def test_a_question_of_two_sets_counts_once_in_each():
    loader = [(["x", "x"], ["p", "q"], None), (["y"], ["q"], None)]
    samples = [sample("p", [9], 1.0), sample("q", [9], 1.0), sample("q", [8], 0.0)]
    orz = Namespace(verifier_grades=False, right_reward=1.0)
    logs = evaluate_samples(loader, samples, 1, Tokenizer(), Namespace(orz=orz))
    assert logs["eval_x_pass1"] == 1.0 and logs["eval_y_pass1"] == 0.0 and logs["eval_num_samples"] == 3


class Named(SimpleNamespace):
    """A set of verifiers that has one for all names."""

    def __init__(self, verifier):
        super().__init__(named=lambda name: verifier)


def test_the_majority_in_training_asks_the_grader(monkeypatch):
    """Two samples say 5 and are cut, so the one that says 4 is the majority."""
    asked = {}

    def grader(default, **given):
        asked.update(given)
        return contextlib.nullcontext(Named(lambda first, second: False))

    monkeypatch.setattr(grading, "VerifierSet", grader)
    monkeypatch.setattr(grading, "same_for", lambda verifier: verifier)
    samples = [sample("p", [9], 1.0), sample("p", [8], 0.0, cut=True), sample("p", [8], 0.0, cut=True)]
    orz = Namespace(verifier_grades=True, grader_workers=3, plain_math_verify=True, verifier="math", right_reward=1.0)
    logs = evaluate_samples([(["x"], ["p"], None)], samples, 3, Tokenizer(), Namespace(orz=orz))
    assert logs["eval_x_maj3"] == 1.0
    assert asked == {"workers": 3, "plain": True, "shared": True}


def test_the_first_of_equal_answers_is_the_reference(monkeypatch):
    compared = []

    def compare(self, answer, gold):
        compared.append((answer, gold))
        return grading.Verdict.RIGHT, "rule"

    monkeypatch.setattr(grading.Grader, "compare", compare)
    samples = [sample("p", [9], 1.0), sample("p", [8], 0.0)]
    given = dict(grader_workers=None, plain_math_verify=False, verifier="math", right_reward=1)
    orz = Namespace(verifier_grades=True, **given)
    logs = evaluate_samples([(["x"], ["p"], None)], samples, 2, Tokenizer(), Namespace(orz=orz))
    assert compared == [("5", "4")] and logs["eval_x_maj2"] == 1.0


class Verifiers:
    """Right if the response is the reference; stands for a set of verifiers and for one of them."""

    def named(self, name):
        return self

    def read_reference(self, value):
        return str(value)

    def grade(self, response, gold, stopped=True):
        verdict = grading.Verdict.RIGHT if response == gold else grading.Verdict.WRONG
        return grading.Grade(verdict, float(response == gold and stopped), response, "same", 0.12345)


class Plain(Verifiers):
    def grade(self, response, gold, stopped=True):
        return super().grade("1", gold, stopped)


def test_lines_keep_their_order_and_are_counted(monkeypatch):
    monkeypatch.setattr(grading, "IN_FLIGHT", 3)
    lines = [json.dumps({"gold": str(i % 2), "response": "1", "n": i}) + "\n" for i in range(20)]
    lines[3:3] = ["\n"]
    lines.append(json.dumps({"gold": 1, "response": "1", "stop_reason": "length"}))
    target = io.StringIO()
    counts = grade_lines(lines, target, Verifiers())
    rows = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [row.get("n") for row in rows] == [*range(20), None]
    assert rows[1] == {"gold": "1", "response": "1", "n": 1, "verdict": "right", "reward": 1.0, "extracted": "1",
                       "rule": "same", "ms": 0.123}  # fmt: skip
    assert rows[-1]["verdict"] == "right" and rows[-1]["reward"] == 0
    assert counts["rows"] == 21 and counts["reward"] == pytest.approx(10 / 21, abs=1e-6)
    assert counts["verdicts"]["right"] == 11 and counts["verdicts"]["wrong"] == 10
    assert "disagreements_with_plain" not in counts
    target = io.StringIO()
    wrong = [json.dumps({"gold": "2", "response": "2"}), *[json.dumps({"gold": "1", "response": "1"})] * 2]
    assert grade_lines(wrong, target, Verifiers(), Plain())["disagreements_with_plain"] == 1
    assert [json.loads(line)["plain"] for line in target.getvalue().splitlines()] == ["wrong", "right", "right"]
    assert grade_lines([], io.StringIO(), Verifiers())["reward"] == 0


def test_an_evaluation_goes_on_and_takes_the_first_samples(tmp_path, monkeypatch, verifiers):
    """The engines get what is missing, with its own seed; numbers are over the first n samples."""
    from openrlhf_orz.evaluate import run

    given = []

    def engines(settings, requests, engines, accept, log):
        given.extend(requests)
        for request in requests:
            right = request.key[2] == 0
            accept({**engine_row(RIGHT if right else "no"), "key": request.key, "seconds": 3.0 if right else 1.0})

    monkeypatch.setattr(run, "run_engines", engines)
    responses = Responses(tmp_path / "responses.jsonl")
    call = {"settings": None, "seed": 5, "engines": 1, "prompt": lambda question: f"<{question.text}>",
            "encode": lambda text: [len(text)], "verifiers": verifiers, "log": lambda line: None}  # fmt: skip
    answer_questions([QUESTION], responses, n=2, **call)
    assert [request.key for request in given] == [("b", "1", 0), ("b", "1", 1)]
    assert given[1].seed == sample_seed(5, "b", "1", 1) and given[0].prompt == [6]
    assert responses.done["b", "1", 1]["seed"] == given[1].seed and responses.done["b", "1", 0]["prompt"] == "<2+2?>"
    answer_questions([QUESTION], responses, n=4, **call)
    assert [request.key[2] for request in given] == [0, 1, 2, 3]
    found = benchmark_numbers([QUESTION], responses, 2, 5, verifiers)["b"]
    assert found["n"] == 2 and found["avg_at_n"] == 0.5 and found["seconds"] == 2.0 and found["maj_at_n"] == 1.0
    responses.close()


def options(*more):
    given = evaluate_parser().parse_args(["--model", "m", "--out", "o", "--data", "d", *map(str, more)])
    take_run_settings(given, lambda line: None)
    return given


def test_template_and_stops_are_those_of_the_models_run(tmp_path):
    """``options`` takes them from RUN_DIR/config.json; what is given wins; without a run they are the paper's."""
    (tmp_path / "hf").mkdir()
    model = ("--model", tmp_path / "hf")
    assert (options(*model).prompt_template, options(*model).stop) == ("paper", list(STOP_STRINGS))

    def config(**flags):
        known = {"data": {"input_template": None, "apply_chat_template": False},
                 "orz": {"prompt_template": "released", "stop": ["#"], "verifier": "math",
                         "plain_math_verify": False}}  # fmt: skip
        content = {name: {**known[name], **flags.get(name, {})} for name in known}
        (tmp_path / "config.json").write_text(json.dumps({"flags": content}))

    config()
    assert (options(*model).prompt_template, options(*model).stop) == ("released", ["#"])
    given = options(*model, "--prompt_template", "none", "--stop")
    assert (given.prompt_template, given.stop) == ("none", [])
    config(data={"input_template": "Q: {}"})
    assert options(*model).prompt_template == "Q: {}"
    config(data={"apply_chat_template": True})
    assert options(*model).prompt_template == "chat"
    config(orz={"verifier": "exact"})
    assert (options(*model).verifier, options(*model, "--verifier", "letter").verifier) == ("exact", "letter")
    config(orz={"plain_math_verify": True})
    assert options(*model).plain_math_verify is True and options(*model).verifier == "math"
    assert options(*model, "--no-plain_math_verify").plain_math_verify is False
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')  # a model's, beside a folder of it
    assert (options(*model).verifier, options(*model).plain_math_verify) == ("math", False)
    assert options(*model).prompt_template == "paper"


def test_the_tokenizers_own_template():
    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=lambda turns, **_: f"[{turns[0]['content']}]")
    assert prompt_renderer("chat", tokenizer)(QUESTION) == "[2+2?]"
    assert prompt_renderer("Q {}", None)(QUESTION) == "Q 2+2?"
    with pytest.raises(EvaluationError, match="--prompt_template chat: .* no chat template"):
        prompt_renderer("chat", SimpleNamespace(chat_template=None))


def test_prompts_beyond_the_context_are_left_out_and_listed(tmp_path, monkeypatch, verifiers):
    from openrlhf_orz.evaluate import run

    asked, said = [], []

    def engines(settings, requests, engines, accept, log):
        for request in requests:
            asked.append(request.key)
            long = {"key": request.key, "prompt_tokens": 70, "limit": 60}
            accept(long if request.key[1] == "2" else {**engine_row(), "key": request.key})

    monkeypatch.setattr(run, "run_engines", engines)
    long = Question("b", "2", "a long one", "4")
    call = {"settings": None, "seed": 5, "engines": 1, "prompt": lambda question: question.text,
            "encode": lambda text: [1], "verifiers": verifiers, "log": lambda line: None}  # fmt: skip
    for _ in range(2):  # the second time nobody asks again
        responses = Responses(tmp_path / "responses.jsonl")
        answer_questions([QUESTION, long], responses, n=2, **call)
        found = benchmark_numbers([QUESTION, long], responses, 2, 5, verifiers, said.append)["b"]
        responses.close()
        assert (found["questions"], found["left_out"], found["avg_at_n"]) == (1, 1, 1.0)
    assert len(asked) == 4 and "1 of 2 prompts of b do not fit" in said[0]
    (line,) = (tmp_path / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line) == {"bench": "b", "id": "2", "prompt_tokens": 70, "limit": 60}
    with pytest.raises(EvaluationError, match="no prompt of b fits into the context of 60 tokens: raise --max_len"):
        benchmark_numbers([long], responses, 2, 5, verifiers)


def test_engines_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert [engine_settings(options("--engines", n)).cores for n in (1, 2, 3, 9)] == [8, 4, 2, 1]


def test_settings_of_the_engines():
    cpu = engine_settings(options("--device", "cpu", "--engines", 1, "--top_p", 0.5, "--max_len", 99, "--stop", "x"))
    assert (cpu.batch_size, cpu.top_p, cpu.temperature, cpu.max_len, cpu.stop) == (32, 0.5, 1.0, 99, ("x",))
    assert cpu.dtype in ("float32", "bfloat16") and cpu.cores >= 1 and cpu.kvcache_mib == 512
    gpu = engine_settings(options("--device", "cuda", "--tensor_parallel", 2, "--gpu_memory_utilization", 0.4))
    assert (gpu.batch_size, gpu.dtype, gpu.tensor_parallel, gpu.gpu_memory) == (256, "bfloat16", 2, 0.4)
    assert engine_settings(options("--device", "cuda", "--dtype", "float16", "--batch_size", 3)).dtype == "float16"


def test_every_setting_that_changes_responses_is_in_their_identity():
    def identity(*more, sources=None):
        given = options("--device", "cpu", *more)
        return response_identity(given, engine_settings(given), sources or {})

    base = identity()
    for flag, value in (("temperature", 0.5), ("top_p", 0.5), ("max_new_tokens", 5), ("max_len", 5), ("seed", 1),
                        ("prompt_template", "none"), ("dtype", "float16"), ("model", "n"), ("stop", "x"),
                        ("engine_args", '{"quantization": "fp8"}')):  # fmt: skip
        assert identity(f"--{flag}", value) != base, flag
    assert identity("--plain_math_verify") != base and identity(sources={"b": {"rows": 2}}) != base
    # these change the speed alone, or add to what is there
    assert identity("--batch_size", 3, "--engines", 2, "--n", 3, "--limit", 2, "--grader_workers", 5) == base


def test_other_weights_are_another_model(tmp_path):
    large = b"x" * 2**23  # begins as an adapter leaves it, with the embeddings
    (tmp_path / "a.safetensors").write_bytes(large)
    before = weights_fingerprint(str(tmp_path))
    assert before["a.safetensors"].startswith(f"{2**23}-") and weights_fingerprint("org/name") is None
    (tmp_path / "a.safetensors").write_bytes(large[:-1] + b"y")
    assert weights_fingerprint(str(tmp_path)).keys() == before.keys() and weights_fingerprint(str(tmp_path)) != before
    given = options("--device", "cpu", "--model", tmp_path)
    assert response_identity(given, engine_settings(given), {})["weights"] == weights_fingerprint(str(tmp_path))


def test_flags_that_contradict_each_other(tmp_path):
    check_options(options())
    for more, named in (
        (("--temperature", 0, "--n", 2), "--temperature 0"), (("--n", 0), "--n is 0"), (("--limit", 0), "--limit"),
        (("--model", str(tmp_path / "a" / "none")), "no directory"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=named):
            check_options(options(*more))
    check_options(options("--temperature", 0, "--n", 1))


def test_critics_values_by_hand():
    """A critic that returns the token that follows each position: the value before a token is the token."""

    def critic(sequences, action_mask, attention_mask):
        assert action_mask.tolist() == [[0, 0, 1, 1]] and attention_mask.tolist() == [[1] * 5]
        return sequences[:, 1:].double()

    assert response_values(critic, [1, 2, 3], [4, 5], "cpu").tolist() == [4.0, 5.0]
    rows = [{"prompt": "ab", "token_ids": [4, 5], "reward": 1.0}, {"prompt": "ab", "token_ids": [0, 0], "reward": 0.0}]
    fit = add_values(critic, rows, lambda text: [1, 2, 3], "cpu")
    assert [(row["value_first"], row["value_last"]) for row in rows] == [(4, 5), (0, 0)]
    assert rows[0]["values"] == [4, 5] and fit["value_fit"][0]["value_mean"] == 2.0
    # returns 1, 1, 0, 0; errors -3, -4, 0, 0: 1 - var(errors) / var(returns) = 1 - 3.1875 / 0.25
    assert fit["explained_variance"] == pytest.approx(1 - 3.1875 / 0.25)


def test_critics_values_go_into_the_files(tmp_path, monkeypatch):
    from openrlhf_orz.evaluate import critic

    monkeypatch.setattr(critic, "load_critic", lambda path, device, dtype: (path, device, dtype))
    monkeypatch.setattr(critic, "response_values", lambda *given: torch.tensor([given[0][2] is torch.float32, 0.25]))
    responses = Responses(tmp_path / "responses.jsonl")
    for bench, sample in (("a", 0), ("b", 0), ("a", 1)):  # the last of an earlier call with a larger --n
        row = {"bench": bench, "id": "1", "sample": sample, "prompt": "p", "token_ids": [1, 2], "reward": 1.0 - sample}
        responses.add(row | ({"value_first": 7.0} if sample else {}))  # of another critic
    responses.close()
    results = {"a": {"n": 1}}
    critic.critic_numbers("C", responses, {("a", "1", 0), ("b", "1", 0)}, results, lambda text: [1], "cpu")
    # all returns are 1: nothing to explain
    assert len(results["a"].pop("value_fit")) == 10
    assert results == {"a": {"n": 1, "explained_variance": None, "critic": "C"}}
    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [line.get("value_first") for line in lines] == [1.0, None, None] and lines[0]["value_last"] == 0.25


def test_the_majority_is_by_the_verifier_of_each_question():
    """In one set: (B) and B are one answer to the question of letters, and two to the other."""
    texts = {1: "<answer>\\boxed{(B)}</answer>", 2: "<answer>\\boxed{B}</answer>", 3: "<answer>\\boxed{C}</answer>"}
    tokenizer = SimpleNamespace(batch_decode=lambda rows: [texts[int(row[-1])] for row in rows])
    samples = [sample(prompt, [token], float(token < 3)) for prompt in "pq" for token in (1, 2, 3, 3, 1)]
    for each, verifier in zip(samples, ["letter"] * 5 + ["exact"] * 5):
        each.labels = [pack_label("B", verifier)]
    orz = Namespace(verifier_grades=True, grader_workers=1, plain_math_verify=False, verifier="math", right_reward=1)
    logs = evaluate_samples([(["x", "x"], ["p", "q"], None)], samples, 5, tokenizer, Namespace(orz=orz))
    assert logs["eval_x_maj5"] == 0.75  # p: three for B; q: two for (B), one for B, two for C, a tie
