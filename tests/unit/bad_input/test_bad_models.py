"""Models and tokenizers that cannot be trained: each an edit of the tiny base."""

import json
import shutil
import struct

import pytest
from command_line import check


def edit(name, **changes):
    def apply(model):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def write(name, content):
    return lambda model: (model / name).write_bytes(content)


def remove(*names):
    def apply(model):
        for name in names:
            (model / name).unlink()

    return apply


def end(header):
    """Where the data of a safetensors file end."""
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def weights(change, more=b""):
    """Rewrites the header of the weights by ``change(header)``; the data stay, and ``more`` comes after them."""

    def apply(model):
        path = model / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :] + more)

    return apply


def index(**where):
    def apply(model):
        shutil.move(model / "model.safetensors", model / "a.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps(where))

    return apply


def pickled(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")


def cut(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_eos(model):
    edit("tokenizer_config.json", eos_token=None)(model)
    edit("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(model)


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
MODEL = "--actor.model_name_or_path"
MODELS = {
    "no config": (remove("config.json"), [MODEL, "holds no config.json"]),
    "broken config": (write("config.json", b'{"model_type": '), [MODEL, "config.json cannot be read", "anew"]),
    "config is a list": (write("config.json", b"[]"), [MODEL, "config.json holds no object"]),
    "config without a type": (write("config.json", b"{}"), [MODEL, "did not load"]),
    "unknown type": (edit("config.json", model_type="gpt99"), [MODEL, "did not load", "gpt99"]),
    "remote code": (
        edit("config.json", model_type="evil", **REMOTE),
        [MODEL, "--orz.trust_remote_code", "read the code"],
    ),
    "an encoder": (
        edit("config.json", model_type="t5", architectures=["T5EncoderModel"]),
        [MODEL, "causal language model"],
    ),
    "a classifier": (
        edit("config.json", architectures=["Qwen2ForSequenceClassification"]),
        [MODEL, "causal language"],
    ),
    "no weights": (remove("model.safetensors"), [MODEL, "holds no weights (model.safetensors)", "anew"]),
    "pickled weights": (pickled, [MODEL, "pickled weights alone (pytorch_model.bin)", "save_pretrained"]),
    "empty weights": (
        write("model.safetensors", b""),
        [MODEL, "model.safetensors did not load", "header too small", "is damaged"],
    ),
    "no safetensors": (
        write("model.safetensors", b"not a checkpoint"),
        [MODEL, "model.safetensors did not load", "is damaged"],
    ),
    "broken header": (
        write("model.safetensors", struct.pack("<Q", 9) + b'{"a": 17}'),
        [MODEL, "invalid JSON in header", "is damaged"],
    ),
    "cut weights": (cut, [MODEL, "model.safetensors did not load", "is damaged"]),
    "longer than it says": (weights(lambda header: None, more=b"!"), [MODEL, "did not load", "is damaged"]),
    "a header of lies": (
        weights(lambda header: header["model.norm.weight"].__setitem__("shape", [129])),
        [MODEL, "model.safetensors did not load", "is damaged"],
    ),
    "missing shard": (index(weight_map={"x": "b.safetensors"}), [MODEL, "b.safetensors is missing", "anew"]),
    "index without a map": (index(metadata={}), [MODEL, "has no weight_map", "anew"]),
    "tensor not in its shard": (index(weight_map={"x": "a.safetensors"}), [MODEL, "a.safetensors lacks x"]),
    "other width": (edit("config.json", hidden_size=64), [MODEL, "is [", "of different models"]),
    "other vocabulary": (edit("config.json", vocab_size=1024), [MODEL, "embed_tokens.weight", "[1024, 128]"]),
    "too few layers": (
        edit("config.json", num_hidden_layers=6, layer_types=["full_attention"] * 6),
        [MODEL, "layers.4", "says 6 layers"],
    ),
    "too many layers": (
        edit("config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2),
        [MODEL, "4 layers", "says 2"],
    ),
    "a tensor is missing": (
        weights(lambda header: header.__setitem__("x", header.pop("model.layers.2.mlp.up_proj.weight"))),
        [MODEL, "layers.2.mlp.up_proj.weight", "anew"],
    ),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), [MODEL, "tokenizer", "save_pretrained"]),
    "broken tokenizer": (write("tokenizer.json", b'{"version": '), [MODEL, "tokenizer.json cannot be read"]),
    "byte order mark": (
        write("tokenizer_config.json", b"\xef\xbb\xbf{}"),
        [MODEL, "tokenizer_config.json cannot be read", "BOM"],
    ),
    "tokenizer of nothing": (write("tokenizer.json", b"{}"), [MODEL, "tokenizer", "save_pretrained"]),
    "no eos": (without_eos, [MODEL, "no eos token", "tokenizer_config.json (eos_token)"]),
    "small vocabulary": (edit("config.json", vocab_size=300), [MODEL, "the model only 300 (vocab_size)"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(run, tmp_path, name):
    change, named = MODELS[name]
    change(tmp_path / "model")
    check(run(), 2, ["rror:", *named])


def test_critic_of_another_vocabulary_or_with_a_head_of_another_shape(run, tmp_path):
    critic = shutil.copytree(tmp_path / "model", tmp_path / "critic")
    edit("config.json", vocab_size=300)(critic)
    flags = ("--critic.model_name_or_path", "{tmp}/critic")
    check(run(*flags), 2, ["--critic.model_name_or_path", "only 300"])
    edit("config.json", vocab_size=512)(critic)
    for shape in ([8, 16], [1, 128], [2, 128]):
        copy = shutil.copytree(critic, tmp_path / f"critic{shape[0]}")
        size = 2 * shape[0] * shape[1]

        def add(header, shape=shape, size=size):
            start = end(header)
            header["score.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + size]}

        weights(add, more=bytes(size))(copy)
        flags = ("--critic.model_name_or_path", str(copy))
        if shape == [1, 128]:
            check(run(*flags), "starts", [])
        elif shape == [8, 16]:  # as the published critic's, saved in pieces
            check(run(*flags), "starts", ["is [8, 16]: it is read as [1, 128]"])
        else:
            check(
                run(*flags), 2, ["--critic.model_name_or_path", "score.weight", f"is {shape}", "[1, 128]", "reshape"]
            )


def test_vocabulary_and_positions_at_the_edge(run, tmp_path):
    model = tmp_path / "model"
    edit("config.json", vocab_size=511)(model)
    check(run(), 2, ["has token 511, and the model only 511 (vocab_size)"])
    edit("config.json", vocab_size=512)(model)
    check(run("--data.max_len", "512"), "starts", [])
    check(run("--data.max_len", "513"), 2, ["--data.max_len 513 is beyond the 512 positions"])


def test_chat_templates(run, tmp_path):
    flag = "--data.apply_chat_template"
    check(run(flag), 2, [flag, "has no chat template", "Leave the flag out"])
    edit("tokenizer_config.json", chat_template="{{ messages | nothing }}")(tmp_path / "model")
    check(run(flag), 2, [flag, "chat template fails", "Mend it"])


def test_tokenizer_without_pad_is_as_good(run, tmp_path):
    edit("tokenizer_config.json", pad_token=None)(tmp_path / "model")
    check(run(), "starts", ["1 prompts, 1 steps"])


def test_bos_that_the_prompt_lacks_is_said(run, tmp_path):
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    piece = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [481], "tokens": ["<|endoftext|>"]}},
    }
    path.write_text(json.dumps(content))
    changes = dict(bos_token="<|endoftext|>", tokenizer_class="PreTrainedTokenizerFast")
    edit("tokenizer_config.json", **changes)(tmp_path / "model")
    check(run(), "starts", ["puts <|endoftext|> in front", "--orz.prompt_template"])
