"""LoRA, what a run saves, and the average of its weights: a tiny random model on one gloo rank."""

import os
import stat
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

pytest.importorskip("openrlhf")
from openrlhf_orz.models.adapters import merged_state, train_whole, without_adapters
from openrlhf_orz.rollout.sync.send import Weights
from openrlhf_orz.trainer.actor import OrzActor
from openrlhf_orz.trainer.saving import WeightAverage, save_adapters, save_hf, save_policy

ARGS = SimpleNamespace(ds=SimpleNamespace(zero_stage=1, tensor_parallel_size=1))


@pytest.fixture(autouse=True)
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plain_model(tied=True):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=tied, attn_implementation="orz_packed",
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def adapted_model():
    """As OpenRLHF makes it, with adapters that have been trained."""
    model = plain_model()
    model.enable_input_require_grads()
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, target_modules="all-linear", bias="none")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class Received:
    """A transport that keeps what it is handed."""

    def __init__(self):
        self.tensors = {}

    def put(self, weights):
        self.tensors.update((name, tensor.clone()) for name, tensor in weights)

    def send(self, last):
        pass

    def close(self):
        pass


class Tokenizer:
    def __init__(self):
        self.init_kwargs = {"is_local": True, "local_files_only": False, "model_max_length": 9}

    def save_pretrained(self, folder):
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
            file.write(" ".join(self.init_kwargs))


def log_probs(model, **kwargs):
    """Of a pack of two responses to one prompt, as the policy computes them in training."""
    actor = OrzActor(model, **kwargs)
    actor.packing_samples = True
    sequences = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12, 13]])
    action = torch.tensor([[0, 0, 1.0, 1, 1]] * 2)
    return actor(sequences, action, attention_mask=torch.ones_like(sequences))


def test_engines_and_disk_get_the_merged_weights_of_the_policy_that_trains(tmp_path):
    """The policy with adapters, what vLLM is sent and what transformers loads give the same log-probs."""
    model = adapted_model()
    base = {name: tensor.clone() for name, tensor in without_adapters(plain_model()).state_dict().items()}
    trained = log_probs(model, share=True, on_cpu=True)
    trained.sum().backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients and all(".lora_" in name for name in gradients), "adapters alone train, the head's path included"

    received, weights = Received(), Weights(model, torch.float32, 3000)
    weights.send(received)
    assert set(received.tensors) == {name for name, _ in plain_model().named_parameters()}
    assert set(weights.checksums()) == set(received.tensors)
    changed = {name for name, tensor in received.tensors.items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in received.tensors if name.endswith("_proj.weight")}
    sent = plain_model()
    sent.load_state_dict(received.tensors, strict=False)
    assert torch.allclose(log_probs(sent), trained, atol=1e-5)
    assert not torch.allclose(log_probs(plain_model()), trained, atol=1e-2)

    save_hf(SimpleNamespace(module=model), Tokenizer(), str(tmp_path / "hf"), ARGS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="orz_packed")
    assert type(loaded) is Qwen2ForCausalLM and torch.allclose(log_probs(loaded), trained, atol=1e-5)
    save_adapters(SimpleNamespace(module=model), str(tmp_path / "hf_adapter"), args=ARGS)
    adapter = load_file(tmp_path / "hf_adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * 7 and all(".lora_" in name for name in adapter)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_has_each_matrix_once_and_can_be_read_by_others(tmp_path, tied):
    before, model = os.umask(0o022), plain_model(tied)
    try:
        save_hf(SimpleNamespace(module=model), Tokenizer(), str(tmp_path / "hf"), ARGS)
    finally:
        os.umask(before)
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    assert ("lm_head.weight" in saved) is not tied
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "hf").iterdir()}
    assert modes == {0o644}
    assert (tmp_path / "hf" / "tokenizer_config.json").read_text() == "model_max_length"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="orz_packed")
    assert torch.equal(log_probs(loaded), log_probs(model))


def test_a_value_head_trains_whole_under_adapters():
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("inner", torch.nn.Linear(4, 4))
    model.add_module("score", torch.nn.Linear(4, 1, bias=False))
    first = model.score.weight.detach().clone()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["inner", "score"]))
    head = train_whole(wrapped, "score")
    assert type(without_adapters(wrapped).score) is torch.nn.Linear and head.weight.requires_grad
    assert torch.equal(head.weight, first)
    state = merged_state(wrapped, wrapped.state_dict())
    assert set(state) == {"inner.weight", "inner.bias", "score.weight"}
    assert train_whole(torch.nn.Sequential(torch.nn.Linear(2, 1)), "0").weight.requires_grad


def test_the_average_is_kept_in_float32_and_is_what_it_says():
    """In bfloat16 a step of 0.001 towards 1 would round to nothing."""
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    frozen = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
    model.add_module("frozen", frozen)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.999, in_parts=False)
    model.weight.data.fill_(2.0)
    for _ in range(3):
        average.update()
    assert set(average.values) == {"weight"} and average.values["weight"].dtype == torch.float32
    assert average.values["weight"].item() == pytest.approx(2 - 0.999**3)
    average.values["weight"].fill_(1.5)
    with average.in_place():
        assert model.weight.item() == 1.5
    assert model.weight.item() == 2.0


def test_an_average_goes_on_after_a_checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.5, in_parts=False)
    model.weight.data.add_(1)
    average.update()
    average.save(tmp_path / "_actor")
    resumed = WeightAverage(model, 0.5, in_parts=False)
    resumed.load(tmp_path / "_actor")
    assert all(torch.equal(resumed.values[name], value) for name, value in average.values.items())


@pytest.mark.parametrize("before, after", [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_an_average_is_cut_anew(tmp_path, monkeypatch, before, after):
    """For 1 each rank has all, and the first writes; else each has its part, the last one's padded, as at ZeRO-3."""
    whole = torch.arange(10.0).view(2, 5)

    def of_ranks(ranks):
        for rank in range(ranks):
            module = torch.nn.Module()
            module.register_parameter("weight", torch.nn.Parameter(torch.zeros(2, 5)))
            size = -(-10 // ranks)
            part = torch.nn.functional.pad(whole.flatten(), (0, 2))[rank * size : (rank + 1) * size]
            if ranks > 1:
                module.weight.ds_tensor = torch.zeros(size)
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            yield WeightAverage(module, 0.5, in_parts=ranks > 1), whole if ranks == 1 else part

    for average, part in of_ranks(before):
        average.values["weight"].copy_(part)
        average.save(tmp_path)
    for average, part in of_ranks(after):
        average.load(tmp_path, recut=True)
        assert torch.equal(average.values["weight"], part)


def test_all_that_a_run_leaves_is_saved_by_all_ranks(tmp_path):
    """Also after a failure, which the first rank alone knows of: the others would wait for it."""
    saved, weight = [], torch.nn.Parameter(torch.ones(1))
    module = torch.nn.Module()
    module.register_parameter("weight", weight)
    average = WeightAverage(module, 0.5, in_parts=False)
    average.values["weight"].fill_(3.0)

    def save_model(write, target):
        write(target)
        return "full" if target == "out" else None

    rank = SimpleNamespace(save_model=save_model)
    args = SimpleNamespace(ckpt=SimpleNamespace(output_dir="out"), ds=SimpleNamespace(lora=SimpleNamespace(rank=0)))
    error = save_policy(rank, lambda folder: saved.append((folder, weight.item())), None, average, args)
    assert error == "full" and saved == [("out", 1.0), ("out_ema", 3.0)]
    assert save_policy(rank, lambda folder: None, None, None, args) == "full"
