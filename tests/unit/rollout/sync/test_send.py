"""Which weights are sent and in which buckets, by which way, and how much of them is verified."""

from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf_orz.rollout.sync import send
from openrlhf_orz.rollout.sync.checksums import Checksum, EngineReport, SyncError, checksum
from openrlhf_orz.rollout.sync.send import Weights, sync_to_engines, verify_sync


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 2, bias=False))
    net[0].weight.requires_grad_(False)
    return net


def test_frozen_weights_are_left_out_only_if_asked():
    every = Weights(model(), torch.float32, 1000)
    assert [name for name, _ in every.params] == ["0.weight", "1.weight"]
    assert [name for name, _ in Weights(model(), torch.float32, 1000, trainable_only=True).params] == ["1.weight"]


def test_buckets_are_cut_by_the_engines_dtype():
    def sizes(dtype, limit, **options):
        return [len(bucket) for bucket in Weights(model(), dtype, limit, **options).buckets()]

    assert sizes(torch.float32, 72) == [2] and sizes(torch.float32, 71) == [1, 1]  # 48 and 24 bytes
    assert sizes(torch.bfloat16, 36) == [2] and sizes(torch.bfloat16, 35) == [1, 1]
    assert sizes(torch.float32, 72, tensor_parallel_size=2) == [1, 1]  # whole, they may be twice as large


MOE = dict(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, moe_intermediate_size=4,
    num_experts=3, num_local_experts=3, num_experts_per_tok=2, intermediate_size=12, vocab_size=16, head_dim=4,
)  # fmt: skip
# its router's correction is a buffer
LATENT = dict(n_routed_experts=3, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=4, kv_lora_rank=4,
              qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4)  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "qwen3_next", "gpt_oss", "llama", "deepseek_v3"])
def test_what_is_sent_is_what_is_saved(alone, tmp_path, family):
    """Names, shapes and values, whatever the buckets, in which a layer's experts stay together."""
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **MOE | (LATENT if "deepseek" in family else {}))
    )
    made.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    sent = {}
    transport = SimpleNamespace(put=lambda part: sent.update(part), send=lambda last: None, close=lambda: None)
    for net in (made, type(made).from_pretrained(tmp_path)):  # transformers knows of conversions in either case
        weights = Weights(net, torch.float32, limit=1)
        assert weights.converted == (family not in ("gpt_oss", "llama"))
        sent.clear()
        assert weights.send(transport) == sum(tensor.numel() * 4 for tensor in sent.values())
        assert sent.keys() == saved.keys() and all(torch.equal(sent[name], saved[name]) for name in saved)
        assert len(weights.buckets()) > 2
        assert weights.checksums() == {name: checksum(tensor) for name, tensor in saved.items()}


def test_order_is_learnt_once(alone):
    weights = Weights(model(), torch.float32, 1000)
    sums = weights.checksums()
    moved = sums["0.weight"]._replace(ordered=1)

    def ask(names, dtype):
        return [[tuple(EngineReport({}, held, {name: [name] for name in names}, {}, []))]]

    rearranged, held = {}, {**sums, "0.weight": moved}  # ``ask`` takes what ``held`` is then
    assert verify_sync(weights, ask, rearranged) == 1.0 == verify_sync(weights, ask, rearranged)
    assert rearranged["0.weight"] and not rearranged["1.weight"]
    for other in (sums, {**sums, "1.weight": sums["1.weight"]._replace(ordered=1)}):
        held = other
        with pytest.raises(SyncError, match="0.weight: its elements are in another order than before"):
            verify_sync(weights, ask, rearranged)


def test_verified_is_what_every_engine_holds(alone):
    """The first engine holds all; the second has only a packed copy of the first weight."""
    weights = Weights(model(), torch.float32, 1000)
    sums = weights.checksums()
    held = [dict(sums), {**sums, "0.weight": Checksum(0, 0)}]

    def ask(names, dtype):
        assert names == ["0.weight", "1.weight"] and dtype == "float32"
        return [[tuple(EngineReport(sums, each, {name: [name] for name in names}, {}, []))] for each in held]

    assert verify_sync(weights, ask, {}) == 6 / 18
    held.reverse()
    assert verify_sync(weights, ask, {}) == 6 / 18


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    "device, ipc, way", [("cpu", True, "file"), ("cuda", True, "ipc"), ("cuda", False, "broadcast")]
)
def test_the_way_of_a_sync(alone, monkeypatch, tmp_path, device, ipc, way, check):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    loaded, limits = [], []
    real = send.Weights

    def weights(module, dtype, limit, *args, **options):
        limits.append(limit)
        return real(module, dtype, limit, *args, **options)

    monkeypatch.setattr(send, "Weights", weights)
    net = model().bfloat16()
    sums = real(net, torch.bfloat16, 1000).checksums()
    report = EngineReport({}, sums, {name: [name] for name in sums}, {}, [])
    engine = SimpleNamespace(
        load_weights=SimpleNamespace(
            remote=lambda source, places, last, check: loaded.append((source[0], last, check)) or ["cpu"]
        ),
        weight_report=SimpleNamespace(remote=lambda names, dtype: [tuple(report)]),
    )
    trainer = SimpleNamespace(
        args=SimpleNamespace(
            ds=SimpleNamespace(param_dtype="bf16", zero_stage=0, tensor_parallel_size=1),
            orz=SimpleNamespace(device=device, sync_bucket_mib=3, check_sync=check),
            run=SimpleNamespace(scratch=f"{tmp_path}/run-"),
        ),
        actor=SimpleNamespace(model=SimpleNamespace(module=net)),
        use_cuda_ipc=ipc,
        rearranged={},
        _model_update_group=SimpleNamespace(broadcast=lambda buffer, src, stream: loaded.append(buffer.numel())),
    )
    found = sync_to_engines(trainer, [engine, engine])
    assert limits == [3 * 2**20]
    assert loaded == [(way, True, check)] * 2 + [256 + 12] * (way == "broadcast"), "all engines wait when it is sent"
    assert found == {"sync_bytes": 36.0} | ({"sync_verified": 1.0} if check else {})
