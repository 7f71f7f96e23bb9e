"""The shipped base model of the quickstart: what the quickstart's run builds on."""

import importlib.util
import json
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

BASE = Path(__file__).resolve().parents[3] / "examples" / "tiny_base"


@pytest.fixture(scope="module")
def build():
    """The script that made the base, as a module."""
    spec = importlib.util.spec_from_file_location("tiny_base_build", BASE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16).eval()


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in BASE.iterdir() if path.is_file()) < 4_000_000


def test_model_is_a_small_qwen2_with_tied_embeddings(model):
    config = model.config
    assert config.architectures == ["Qwen2ForCausalLM"]
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (512, 128, 4)
    assert sum(p.numel() for p in model.parameters()) == 854_144
    assert config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_special_tokens_agree(model, tokenizer):
    assert len(tokenizer) == 512
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_digits_are_single_tokens(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2026+31")] == ["2", "0", "2", "6", "+", "3", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t x  ",
        "<think>a</think> <answer> \\boxed{-1/2}</answer>",
        "</answer</answer>>",
        "naïve 日本 🙂",
        "def f(x):\n    return x**2  # 1_000",
        "i.e., What is 1+1?\nAssistant: <think>",
        "{{prompt}} \\boxed{} \x00\x7f",
    ],
)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_prompt_is_few_tokens(build, tokenizer):
    prompt = build.prompts.render("paper", build.arithmetic.addition_question(123, 456))
    assert len(tokenizer.encode(prompt)) < 60
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_script_makes_the_shipped_tokenizer(build, tokenizer):
    shipped = json.loads(tokenizer.backend_tokenizer.to_str())
    rebuilt = json.loads(build.build_tokenizer().backend_tokenizer.to_str())
    assert shipped["model"]["vocab"] == rebuilt["model"]["vocab"]
    assert shipped["model"]["merges"] == rebuilt["model"]["merges"]
    assert shipped["added_tokens"] == rebuilt["added_tokens"]


@pytest.mark.parametrize("name", ["columns", "counting"])
def test_each_task_is_made_of_its_styles(build, name):
    """What the training cuts off is the template, and the measuring knows a style by how it begins."""
    task = build.TASKS[name]
    tokenizer = build.build_tokenizer(task)
    for style in task.styles:
        prompt, response = task.example(build.random.Random(1), {style: 1.0})
        assert "What is " in tokenizer.decode(tokenizer.encode(prompt)[-task.question_tokens :])
        assert response.startswith(tuple(task.beginnings.values()))
        assert style not in task.beginnings or response.startswith(task.beginnings[style])
    assert set(task.beginnings) == set(task.shares) <= set(task.early) == set(task.styles)
    assert sum(task.shares.values()) == pytest.approx(1) and sum(task.early.values()) == pytest.approx(1)


def test_worked_solution_is_right(build):
    assert build.worked(367, 285).startswith(" By columns: 7+5=12, 6+8+1=15, 3+2+1=6. ")
    assert build.worked(367, 285).endswith("<answer> \\boxed{652} </answer>")


def test_samples_end_well_and_only_work_pays(build, model, tokenizer):
    """At temperature 1: both styles occur, every response ends by itself, worked ones are right and longer."""
    report = build.measure(model, tokenizer, n=96)
    assert report["finished"] >= 0.97
    assert 0.15 < report["reward"] < 0.45
    guess, worked = report["guess"], report["worked"]
    assert 0.15 < worked["share"] < 0.45 and guess["share"] + worked["share"] >= 0.97
    assert worked["right"] >= 0.9 and guess["right"] <= 0.15
    assert worked["tokens"] > 2 * guess["tokens"]
