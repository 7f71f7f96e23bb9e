"""What a run leaves, on data with bad rows and a partial last rollout; and the same with other algorithms."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENV, read_jsonl, succeed, train

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.data.prompts import render

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "tiny_base"
TINY = ("--orz.prompt_template", "paper", "--data.max_len", "160", "--rollout.max_new_tokens", "64")

LOAD_IN_VLLM = """
import sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=256)
output = llm.chat([{"role": "user", "content": "What is 123+456?"}], SamplingParams(temperature=0, max_tokens=64,
                  stop=["</answer>"], include_stop_str_in_output=True))
print("PROMPT", repr(output[0].prompt)); print("TEXT", repr(output[0].outputs[0].text))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ten good rows and three bad ones, four prompts a step: the third rollout is partial. ZeRO 0, packed."""
    folder = tmp_path_factory.mktemp("outputs")
    rows = [{"question": r["question"], "answer": r["answer"]} for r in generate_additions(10, (3, 3), seed=1)]
    bad = [{"question": "What is 1+1?"}, {"question": "", "answer": "2"}]
    lines = [json.dumps(row) for row in [*rows[:5], *bad, *rows[5:]]] + ['{"question": "broken']
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    metrics = succeed(
        folder / "run", BASE, folder / "rows.jsonl", *TINY, "--ds.zero_stage", "0", "--ds.packing_samples",
        "--train.max_tokens_per_gpu", "512", "--eval.dataset", folder / "rows.jsonl", "--eval.steps", "3",
        "--critic.save_value_network", "--orz.rollout_dump_max", "5", "--orz.report_every", "2",
    )  # fmt: skip
    return folder / "run", metrics


def test_metrics(run):
    path, metrics = run
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert [m["samples"] for m in metrics] == [16, 16, 8]  # the partial rollout trains like the others
    for m in metrics:
        assert m["policy_updates"] == 1 and m["critic_updates"] == 3 and m["actor_grad_norm"] > 0
        assert 0 <= m["reward"] <= 1 and m["reward"] == m["verdict_right"] / m["samples"]
        assert m["format"] > 0.9 and m["seconds_step"] > 0 and m["tokens_per_second"] > 0
        assert m["tokens"] > m["response_tokens"] == pytest.approx(m["response_length"] * m["samples"])
    assert any(0 < m["reward"] < 1 for m in metrics)
    for m in metrics:
        assert m["response_length_p10"] <= m["response_length_p50"] <= m["response_length_p90"]
        assert 0 <= m["repetition"] < 1 and m["reflection"] == 0 and m["reflection_length_right"] is None
        assert m["engine_memory_mib"] > 100 and m["driver_memory_mib"] > 100
        for key in ("actor_memory_mib_training", "actor_memory_mib_sync", "critic_memory_mib_experience"):
            assert 100 < m[key] <= m[f"{key.split('_')[0]}_memory_mib"], key
    # none where all rewards of a mini-batch are alike, as a partial rollout's may be
    fits = [m[f"explained_variance_minibatch_{i:02}"] for m in metrics for i in range(1, 4)]
    assert all(fit is None or fit <= 1 for fit in fits) and any(fit is not None for fit in fits)
    # of one response in 16: the third step, of 8, may have none
    assert all(m["logprob_gap_tokens"] > 0 and m["logprob_gap_mean"] < 0.05 for m in metrics[:2])
    # the tiny base's critic learns what the reward depends on
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    suffixes = [name for name in documented if name.startswith("_")]
    for key in metrics[0]:
        key = re.sub(r"_minibatch_\d\d$", "_minibatch_01", key)  # "and so on"
        assert key in documented or any(key.endswith(suffix) for suffix in suffixes), (
            f"{key} is not in docs/metrics.md"
        )


def test_bad_rows_are_reported(run):
    path, _ = run
    bad = read_jsonl(path / "data" / "bad_rows_train.jsonl")
    assert [(row["row"], row["reason"]) for row in bad] == [(6, "no_answer"), (7, "no_question"), (13, "broken_json")]
    assert len(read_jsonl(path / "data" / "prompts_train.jsonl")) == 10


def test_rollouts(run):
    path, metrics = run
    rows = read_jsonl(path / "rollouts" / "step_1.jsonl")
    assert len(rows) == 5  # --orz.rollout_dump_max
    for row in rows:
        assert row["prompt"].endswith("\nAssistant: <think>") and row["stop_reason"] == "</answer>"
        assert row["response"].rstrip().endswith("</answer>") and (row["reward"] == 1) == (row["verdict"] == "right")
        assert (row["extracted"] == row["reference"]) == (row["verdict"] == "right")


def test_report(run):
    """Written at the end, with the rollouts in it."""
    page = (run[0] / "report.html").read_text()
    assert 50_000 < len(page) < 5_000_000 and "<title>run</title>" in page


def test_config(run):
    config = json.loads((run[0] / "config.json").read_text())
    assert config["flags"]["orz"]["critic_updates"] == 3 and config["flags"]["actor"]["adam"]["lr"] == 1e-6
    assert "ds.zero_stage" in config["explicit"] and "actor.adam.lr" not in config["explicit"]
    assert config["versions"]["openrlhf"].startswith("0.11.2+orz.") and "torch" in config["versions"]


def test_evaluation_and_tensorboard(run):
    lines = read_jsonl(run[0] / "eval.jsonl")
    assert [line["step"] for line in lines] == [0, 3]
    for line in lines:  # the data set's name is the file's
        assert 0 <= line["eval_rows_low"] <= line["eval_rows_pass1"] <= line["eval_rows_high"] <= 1
        assert line["eval_rows_pass1"] <= line["eval_rows_pass4"] and 0 <= line["eval_rows_maj4"] <= 1
        assert line["eval_num_samples"] == 40
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (run[0] / "tensorboard").rglob("events.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert [e.value for e in accumulator.Scalars("train/reward")] == pytest.approx([m["reward"] for m in run[1]])


def test_plain_transformers_loads_the_policy(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run[0] / "hf"
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    question = [{"role": "user", "content": "What is 123+456?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == render("paper", "What is 123+456?")
    output = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=60, do_sample=False)
    assert "</answer>" in tokenizer.decode(output[0])[len(text) :]
    assert (run[0] / "hf_critic" / "config.json").exists()


def test_the_critic_judges_responses(run):
    """Values of the saved critic at a response's first and last token, and their fit."""
    import torch
    from transformers import AutoTokenizer

    from openrlhf_orz.evaluate.critic import add_values, load_critic

    tokenizer = AutoTokenizer.from_pretrained(run[0] / "hf_critic")

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = [row | {"token_ids": encode(row["response"])} for row in read_jsonl(run[0] / "rollouts" / "step_1.jsonl")]
    numbers = add_values(load_critic(str(run[0] / "hf_critic"), "cpu", torch.float32), rows, encode, "cpu")
    assert all(abs(row["value_first"]) < 10 and row["value_first"] != row["value_last"] for row in rows)
    assert numbers["explained_variance"] is None or numbers["explained_variance"] <= 1


def test_plain_vllm_loads_the_policy(run):
    """As it is published, which is what RUN/hf holds and a card."""
    from openrlhf_orz.cli.publish import main

    published = run[0].parent / "published"
    assert main([str(run[0]), "--output", str(published), "--critic"]) == 0
    card = (published / "README.md").read_text()
    assert "--data.prompt_dataset rows.jsonl" in card and str(run[0].parent) not in card
    assert "openrlhf_orz.cli.train_ppo_ray" in card and "| rows | " in card and (published / "critic").is_dir()
    env = ENV | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    result = subprocess.run([sys.executable, "-c", LOAD_IN_VLLM, published], env=env, capture_output=True,
                            text=True, timeout=600)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines() if line.startswith(("PROMPT ", "TEXT ")))
    assert lines["TEXT"].rstrip("'").endswith("</answer>")


def test_grpo_off_policy_with_a_reference_model(tmp_path):
    """No critic; two policy steps a rollout, fixed micro-batches; a KL penalty brings the reference model and the
    forward for old log-probs back by itself; in float32 a sync is exact to a few millionths.
    """
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in generate_additions(8, (3, 3), seed=2))
    )
    result = train(
        tmp_path / "run", BASE, tmp_path / "rows.jsonl", *TINY, "--algo.advantage.estimator", "group_norm",
        "--orz.policy_updates", "2", "--train.micro_batch_size", "2", "--ds.param_dtype", "fp32",
        "--ds.zero_stage", "1", "--actor.adam.lr", "1e-3", "--orz.check_sync", "--rollout.n_samples_per_prompt", "8",
        "--algo.kl.init_coef", "0.01",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "[orz] forward for reference model: runs (--algo.kl.init_coef" in result.stdout
    assert "[orz] forward for old log-probs: runs (several policy steps" in result.stdout
    metrics = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [m["policy_updates"] for m in metrics] == [2, 2]
    assert "critic_loss" not in metrics[0] and "explained_variance" not in metrics[0]
    assert any(m["actor_grad_norm"] > 0 for m in metrics) and any(m["ppo_kl"] != 0 for m in metrics)
    assert all(m["sync_logprob_gap_max"] < 1e-4 for m in metrics)
    assert metrics[1]["sync_logprob_moved_mean"] > 1e-3
    assert metrics[0]["kl"] == 0 != metrics[1]["kl"]  # the policy has left the reference model


def test_all_rows_bad_is_an_error_before_ray(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "What is 1+1?", "answer": ""}\n')
    result = train(tmp_path / "run", BASE, tmp_path / "rows.jsonl", timeout=120)
    assert result.returncode == 2 and "--data.prompt_dataset" in result.stderr
    assert "no_answer" in result.stderr and not (tmp_path / "run" / "logs").exists()
