"""A dumped rollout becomes the experiences that it was made of; a row of another run is refused with file and line."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from transformers import AutoTokenizer

from openrlhf_orz.data.prompts import PromptLoader
from openrlhf_orz.rollout.generation import OrzSamplesGenerator
from openrlhf_orz.rollout.replay import ReplayedSamples, samples_generator
from openrlhf_orz.rollout.replay_rows import last_replayable, read_rollout
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.trainer.rollout_rows import rollout_row

TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[3] / "examples" / "tiny_base")
STOP = ["User:", "</answer>"]
QUESTIONS = ["What is 1+2?", "What is 3+4?"]


def encode(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def response(prompt, text, label, reward, ended=1.0, gap=False):
    """As an engine returns it; with ``gap`` the agent has put two of its tokens there itself."""
    first, ids = len(encode(prompt)), encode(text)
    ranges = [(first, first + 3), (first + 5, first + len(ids))] if gap else [(first, first + len(ids))]
    logs = {"verdict": 1.0 - reward, "rule": 0.0, "format": 1.0, "ended": ended}
    return {"prompt": prompt, "label": label, "observation_tokens": encode(prompt) + ids, "action_ranges": ranges,
            "rollout_log_probs": None, "truncated": ended == -2, "reward": reward, "scores": reward,
            "extra_logs": logs}  # fmt: skip


def collate(items):
    return None, [item[0] for item in items], [item[1] for item in items], [None] * len(items)


@pytest.fixture
def make(tmp_path):
    """A run's settings, its dumped rollout of two responses to each of two prompts, and these experiences."""
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    args = SimpleNamespace(
        orz=SimpleNamespace(replay=str(run), stop=STOP, run_dir=str(tmp_path)),
        run=SimpleNamespace(start_step=0, last_step=2, scratch=f"{tmp_path}/"), train=SimpleNamespace(seed=0),
        rollout=SimpleNamespace(batch_size=2, n_samples_per_prompt=2), vllm=SimpleNamespace(enable_sleep=False),
        data=SimpleNamespace(max_len=64, disable_fast_tokenizer=False), actor=SimpleNamespace(model_name_or_path="m"),
        algo=SimpleNamespace(dynamic_filtering_enable=False),
    )  # fmt: skip
    loader = PromptLoader([(text, str(3 + 4 * i)) for i, text in enumerate(QUESTIONS)], collate, seed=0)
    generator = samples_generator(
        SimpleNamespace(args=args), prompts_dataloader=loader, eval_dataloader=None, tokenizer=TOKENIZER,
        vllm_engines=None,
    )  # fmt: skip
    assert isinstance(generator, ReplayedSamples)
    made = []
    for index in loader.order(0):
        prompt, label = loader.dataset[index]
        for text, reward, ended, gap in (
            (" so \\boxed{3} </answer>", 1.0, 1.0, False),
            (" no 7 8 9 1", 0.0, -2.0, True),
        ):
            made.append(response(prompt, text, label, reward, ended, gap))
    samples = [SamplesGenerator._process_response_into_experience(generator, each, max_len=64) for each in made]
    rows = [rollout_row(sample, TOKENIZER, STOP) for sample in samples]

    def dump(change=lambda rows: rows, step=1):
        lines = change([dict(row) for row in rows])
        (run / "rollouts" / f"step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    dump()
    return SimpleNamespace(generator=generator, samples=samples, dump=dump, run=run, args=args, loader=loader)


def same(a, b):
    for name in ("sequences", "attention_mask", "action_mask", "rewards", "truncated", "response_length"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.prompts, a.labels) == (b.prompts, b.labels) and a.rollout_log_probs is b.rollout_log_probs is None
    assert {key: float(value) for key, value in a.info.items()} == {key: float(value) for key, value in b.info.items()}


def test_experiences_are_those_that_were_dumped(make):
    samples, _, drawn, exhausted = make.generator.generate_samples(max_len=64)
    assert len(samples) == 4 and drawn == 2 and not exhausted and make.loader.drawn == 2
    for replayed, sample in zip(samples, make.samples):
        sample.info["format"] = torch.tensor([float(replayed.info["format"])])  # the dump has the text, not the number
        same(replayed, sample)


def test_it_ends_with_the_dumps(make):
    make.args.run.last_step = make.generator.last = 1
    assert make.generator.generate_samples(max_len=64)[3] is True
    assert make.generator.generate_samples(max_len=64) == ([], None, 0, True)  # of a later episode


def test_rows_of_before_have_no_token_ids(make):
    """Their texts are tokenised, where that gives the recorded number of tokens and the text back."""
    bare = ("token_ids", "prompt_tokens", "between")
    make.dump(
        lambda rows: [{k: v for k, v in row.items() if k not in bare} for row in (rows[0], rows[0], rows[2], rows[2])]
    )
    samples = make.generator.generate_samples(max_len=64)[0]
    assert torch.equal(samples[0].sequences, make.samples[0].sequences)


def first(**changes):
    return lambda rows: [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:3], "holds 3 responses, this run's rollout has 4"),
        (lambda rows: [rows[0], rows[2], rows[1], rows[3]], "step_1.jsonl:2 answers another prompt"),
        (first(reference="9"), "step_1.jsonl:1 was graded against another answer"),
        (first(stop_reason="STOP"), "stopped at 'STOP': give the --orz.stop"),
        (first(prompt_tokens=3), "its prompt had 3 tokens"),
        (first(tokens=2), "token_ids are not the 2 tokens"),
        (first(token_ids=None, tokens=2), "does not give back its 2 tokens"),
        (first(token_ids=["a"]), "token_ids are no list of numbers"),
        (first(reward=None), "step_1.jsonl:1 is no response"),
        (lambda rows: [[1], *rows[1:]], "step_1.jsonl:1 is no response"),
    ],
)
def test_other_rows_are_refused(make, change, words):
    make.dump(change)
    with pytest.raises(ConfigError, match="--orz.replay: ") as refused:
        make.generator.generate_samples(max_len=64)
    assert words in str(refused.value)


def test_a_response_that_does_not_fit(make):
    vars(make.generator.args.data)["max_len"] = 8
    with pytest.raises(ConfigError, match="give --data.max_len at least that"):
        make.generator.generate_samples(max_len=8)


def test_steps_that_are_there(make):
    make.dump(step=2), make.dump(step=4)
    assert last_replayable(make.run, 1) == 2 and last_replayable(make.run, 4) == 4
    with pytest.raises(ConfigError, match="step_3.jsonl is not there"):
        last_replayable(make.run, 3)
    assert read_rollout(make.run, 1)[0][0] == f"{make.run}/rollouts/step_1.jsonl:1"


def test_without_the_flag_it_is_generation(make):
    make.args.orz.replay = None
    parts = {"prompts_dataloader": None, "eval_dataloader": None, "tokenizer": TOKENIZER, "vllm_engines": []}
    assert type(samples_generator(SimpleNamespace(args=make.args), **parts)) is OrzSamplesGenerator
