"""The command, and --dry_run of the training command: what they print, and their errors."""

import json
from pathlib import Path

import pytest

from openrlhf_orz.cli import plan, train_ppo_ray

BASE = Path(__file__).parents[3] / "examples" / "tiny_base"
SEVEN = ["--actor.model_name_or_path", "Qwen/Qwen2.5-7B", "--data.prompt_dataset", "d", "--train.colocate_all"]
TINY = ["--actor.model_name_or_path", str(BASE), "--data.prompt_dataset", "d", "--data.max_len", "160", "--orz.device",
        "cpu", "--rollout.batch_size", "16", "--rollout.n_samples_per_prompt", "8"]  # fmt: skip


def test_json_is_all_that_it_prints(capsys):
    assert plan.main([*SEVEN, "--hardware", "h100x8x4", "--json", "--steps", "100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy_parameters"] == 7_615_616_512 and found["gpus"] == 32
    assert found["batches"]["samples_per_rank"] == 256
    assert found["gpu_hours"] == pytest.approx(100 * 32 * found["seconds"]["step"] / 3600)
    memory = found["memory"]
    assert memory["peak_bytes"] == max(phase["bytes"] for phase in memory["phases"]) and memory["fits"]
    without_data = [word for word in SEVEN if word not in ("--data.prompt_dataset", "d")]
    assert plan.main([*without_data, "--hardware", "h100x1", "--json"]) == plan.DOES_NOT_FIT == 3
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    changes = found["changes_that_fit"]
    assert changes and all(change["peak_bytes"] <= memory["limit_bytes"] for change in changes)
    assert not memory["fits"] and found["gpus"] == 1
    assert all("(" in line or "assumption" in line for line in found["assumptions"])


def test_text_and_dry_run_are_the_same(capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)  # neither needs it
    assert plan.main(TINY) == 0
    text = capsys.readouterr().out
    assert train_ppo_ray.main(["--dry_run", *TINY]) == 0
    dry = capsys.readouterr().out
    assert "data: d is on the hub, and not looked at" in dry
    assert [line for line in text.splitlines() if line not in dry.splitlines()] == []
    assert "fits" in text and "128 samples a step" in text and "854,144 parameters" in text


def test_a_dry_run_looks_at_the_data(capsys, tmp_path):
    """Files that are not there or hold nothing end it as they end a run; a plan by itself needs no data."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    given = ["--dry_run", *TINY, "--data.prompt_dataset"]
    assert train_ppo_ray.main([*given, str(rows)]) == 0
    said = capsys.readouterr().out
    assert f"data: {rows}: 1 rows, 1 bad (no_answer 1)" in said
    assert "data: if no prompt is too long, the last rollout of an episode has 1 of 16 prompts" in said
    assert "looked at\n" in said and "  run: 1 steps (1 prompts, --train.num_episodes 1)" in said
    assert "in 1 of 1 steps the learning rates still rise (--orz.warmup_steps 50)" in said
    assert 'data: its first question: "1+1?"; answer: "2"' in said and "GPU-hours" not in said
    assert "no checkpoint before its end, unless you stop it: --ckpt.save_steps N" in said
    enough = ["--train.num_episodes", "101", "--ckpt.save_steps", "101"]
    assert train_ppo_ray.main([*given, str(rows), *enough]) == 0
    said = capsys.readouterr().out
    assert "  run: 101 steps (" in said and "still rise" not in said and "no checkpoint" not in said
    assert train_ppo_ray.main([*given, str(rows), "--train.num_episodes", "100"]) == 0
    assert "in 50 of 100 steps the learning rates still rise" in capsys.readouterr().out
    assert train_ppo_ray.main([*given, str(rows), "--ckpt.save_steps", "2"]) == 0
    assert "no checkpoint before its end: it has 1 steps, and --ckpt.save_steps is 2" in capsys.readouterr().out
    assert train_ppo_ray.main([*given, str(rows), "--critic.freezing_steps", "1"]) == 0
    assert "the run will be refused: --critic.freezing_steps 1: the run has 1 steps" in capsys.readouterr().out
    for name in ("none.jsonl", "empty.jsonl"):
        assert train_ppo_ray.main([*given, str(tmp_path / name)]) == 2
        assert "cli.train_ppo_ray: error: --data.prompt_dataset" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text('{"question": "2+2?", "answer": ""}\n')
    assert train_ppo_ray.main([*given, str(tmp_path / "empty.jsonl")]) == 2
    assert "(no_answer 1; the first: " in capsys.readouterr().err
    assert train_ppo_ray.main([*given, str(rows), "--data.apply_chat_template"]) == 2
    assert "--data.apply_chat_template: the tokenizer has no chat template" in capsys.readouterr().err
    evaluation = ["--eval.dataset", str(tmp_path / "none.jsonl"), "--eval.steps", "1"]
    assert train_ppo_ray.main([*given, str(rows), *evaluation]) == 2
    assert "--eval.dataset" in capsys.readouterr().err
    others = tmp_path / "others.jsonl"
    others.write_text('{"q": "1+1?", "a": "2"}\n')
    assert train_ppo_ray.main([*given, str(rows), "--eval.dataset", str(others), "--eval.steps", "1"]) == 2
    assert "--eval.dataset is read by the keys of --data.prompt_dataset" in capsys.readouterr().err
    assert train_ppo_ray.main([*given, str(rows), "--orz.prompt_template", "chat"]) == 2
    assert "the tokenizer's own is --data.apply_chat_template" in capsys.readouterr().err
    assert plan.main([*TINY, "--data.prompt_dataset", str(tmp_path / "none.jsonl")]) == 0


def test_a_dry_run_plans_with_the_datas_prompts(capsys, tmp_path):
    """Those that a run refuses count for none; a length that is given goes first."""
    from transformers import AutoTokenizer

    from openrlhf_orz.data.prompts import render

    questions = ["1+1?", "2+2=?", "3+" * 200, [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": q, "answer": "2"}) + "\n" for q in questions))
    given = ["--dry_run", *TINY, "--data.prompt_dataset", str(rows), "--orz.prompt_template", "{}:"]
    assert train_ppo_ray.main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["lengths"]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    short = [len(tokenizer.encode(render("{}:", q), add_special_tokens=False)) for q in questions[:2]]
    assert short[0] != short[1] and found["prompt"] == sum(short) / 2
    assert f"prompt {sum(short) / 2:.1f} tokens: the mean of the data; response" in found["source"]
    assert train_ppo_ray.main([*given, "--json", "--prompt_tokens", "77"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"]["prompt"] == 77
    rows.write_text(json.dumps({"question": questions[2], "answer": "2"}))
    assert train_ppo_ray.main([*given, "--json"]) == 0
    assert "an assumption, --prompt_tokens" in json.loads(capsys.readouterr().out)["lengths"]["source"]


def test_a_padded_family_is_said_and_planned_so(capsys, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(BASE)
    config.layer_types = ["linear_attention"] * config.num_hidden_layers
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "layer_types": config.layer_types}))
    given = [*TINY, "--actor.model_name_or_path", str(tmp_path)]
    assert plan.main(given) == 0
    said = capsys.readouterr().out
    assert "qwen2 trains in padded micro-batches" in said and "times the tokens in forwards and training" in said
    assert plan.main([*given, "--ds.packing_samples"]) == 2
    assert "cannot be packed" in capsys.readouterr().err
    file = ["--actor.model_name_or_path", "some/where", "--model_config", str(tmp_path / "config.json")]
    assert plan.main([*TINY, *file]) == 0
    assert "qwen2 trains in padded micro-batches" in capsys.readouterr().out


def test_a_model_that_cannot_be_counted_still_has_its_dry_run(capsys, tmp_path):
    """Without a plan the flags, the model's family and the data are looked at all the same."""
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    given = [*TINY, "--actor.model_name_or_path", "some/where", "--model_config", str(tmp_path / "config.json")]
    assert plan.main(given) == 2
    assert "mamba" in capsys.readouterr().err
    assert train_ppo_ray.main(["--dry_run", *given]) == 0
    said = capsys.readouterr().out
    assert "no plan: --model_config" in said and "mamba trains in padded micro-batches" in said
    assert "data: d is on the hub" in said


def test_a_model_that_is_not_here_is_said_to_be_looked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert plan.main([*TINY, "--actor.model_name_or_path", "models/mine"]) == 2
    assert "there is no directory models/mine here, and from the hub:" in capsys.readouterr().err


def test_hours_of_the_run(capsys):
    flags = [*SEVEN, "--hardware", "h100x8x4", "--steps", "100"]
    assert plan.main(flags) == plan.main([*flags, "--json"]) == 0
    text, _, printed = capsys.readouterr().out.partition("\n{\n")
    step = json.loads("{" + printed)["seconds"]["step"]
    assert f"run       100 steps: {step / 36:,.1f} hours, {32 * step / 36:,.0f} GPU-hours" in text


def test_rates_and_lengths_are_taken(capsys):
    flags = [*SEVEN, "--hardware", "h100x8x4", "--json"]
    plan.main(flags)
    before = json.loads(capsys.readouterr().out)
    plan.main([*flags, "--training", "0.2", "--response_tokens", "300", "--prompt_tokens", "90"])
    after = json.loads(capsys.readouterr().out)
    assert after["lengths"]["response"] == 300 and after["lengths"]["prompt"] == 90
    ratio = after["flops"]["computed"]["policy training"] / before["flops"]["computed"]["policy training"]
    times = after["seconds"]["phases"]["policy training"] / before["seconds"]["phases"]["policy training"]
    assert times == pytest.approx(2 * ratio, rel=0.01)  # the optimizer takes as long as before


def test_a_configuration_file_stands_in_for_the_model(tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text((BASE / "config.json").read_text())
    flags = [*SEVEN, "--actor.model_name_or_path", "some/where", "--hardware", "h100x8", "--json"]
    assert plan.main([*flags, "--model_config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["policy_parameters"] == 854_144


def test_a_model_that_cannot_be_had(capsys, monkeypatch):
    from transformers import AutoConfig

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    flags = ["--actor.model_name_or_path", "some/where", "--data.prompt_dataset", "d", "--hardware", "h100x8"]
    assert plan.main(flags) == 2
    error = capsys.readouterr().err
    assert "--actor.model_name_or_path" in error and "--model_config FILE" in error and "no network" in error


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--hardware", "b17x8"], "--hardware b17x8"),
        (["--hardware", "h100x8", "--actor.num_nodes", "3"], "24 GPUs"),
        (["--hardware", "h100x8", "--orz.device", "cpu"], "--orz.device cpu"),
    ],
)
def test_errors_name_the_flag(flags, named, capsys):
    assert plan.main([*SEVEN, "--critic.num_nodes", "3", *flags] if "24" in named else [*SEVEN, *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, named",
    [(["--train.batch_siz", "3"], "--train.batch_size"), (["--train.max_epochs", "2"], "--train.max_epochs")],
)
def test_wrong_training_flags_end_dry_runs_as_they_end_runs(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        train_ppo_ray.main(["--dry_run", *TINY, *flags])
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_help_names_it(capsys):
    with pytest.raises(SystemExit):
        train_ppo_ray.main(["--help"])
    assert "--dry_run" in capsys.readouterr().out


def test_no_run_has_the_flag():
    from openrlhf_orz.settings.command_line import parse

    args, explicit = parse([*TINY, "--dry_run"])
    assert not hasattr(args, "dry_run") and "dry_run" in explicit
