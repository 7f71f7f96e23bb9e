"""Which weights are sent and in which buckets, by which way, and how much of them is verified."""

from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist

from openrlhf_orz.rollout.sync import send
from openrlhf_orz.rollout.sync.checksums import Checksum, EngineReport
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


def test_verified_is_what_every_engine_holds(alone):
    """The first engine holds all; the second has only a packed copy of the first weight."""
    weights = Weights(model(), torch.float32, 1000)
    sums = weights.checksums()
    held = [dict(sums), {**sums, "0.weight": Checksum(0, 0)}]

    def ask(names, dtype):
        assert names == ["0.weight", "1.weight"] and dtype == "float32"
        return [[tuple(EngineReport(sums, each, {name: [name] for name in names}, {}, []))] for each in held]

    assert verify_sync(weights, ask) == 6 / 18
    held.reverse()
    assert verify_sync(weights, ask) == 6 / 18


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("device, ipc, way", [("cpu", True, "file"), ("cuda", True, "ipc"), ("cuda", False, None)])
def test_the_way_of_a_sync(alone, monkeypatch, tmp_path, device, ipc, way, check):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    loaded, broadcasts, limits = [], [], []
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
            remote=lambda source, places, last, check: loaded.append((source[0], last, check))
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
    )
    found = sync_to_engines(trainer, [engine, engine], lambda: broadcasts.append(1))
    assert limits == [3 * 2**20]
    assert loaded == ([(way, True, check)] * 2 if way else []) and len(broadcasts) == (way is None)
    assert found == ({"sync_bytes": 36.0} if way else {}) | ({"sync_verified": 1.0} if check else {})
    if way is None:
        with pytest.raises(RuntimeError, match="--ckpt.load_enable"):  # a lone engine is no member of the group
            sync_to_engines(trainer, [engine], None)
    else:
        sync_to_engines(trainer, [engine], None)
        assert loaded[2:] == [(way, True, check)]
