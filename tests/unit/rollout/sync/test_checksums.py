"""Checksums find a weight that is stale, skipped or altered, also inside a fused or sharded parameter."""

import pytest
import torch

from openrlhf_orz.rollout.sync.checksums import CHUNK, Checksum, EngineReport, checksum, compare, find_sources

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"], "o_proj": ["o_proj"]}
TRAINER = {
    "model.embed.weight": (10, 4), "l.0.attn.q_proj.weight": (4, 4), "l.0.attn.k_proj.weight": (2, 4),
    "l.0.attn.v_proj.weight": (2, 4), "l.0.attn.o_proj.weight": (4, 4), "l.0.mlp.gate_proj.weight": (6, 4),
    "l.0.mlp.up_proj.weight": (6, 4), "l.0.norm.weight": (4,),
}  # fmt: skip


def weights():
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in TRAINER.items()}


def fuse(w):
    """The engine's parameters made of the trainer's ``w``."""
    return {
        "model.embed.weight": w["model.embed.weight"],
        "l.0.attn.qkv_proj.weight": torch.cat([w[f"l.0.attn.{part}.weight"] for part in FUSED["qkv_proj"]]),
        "l.0.attn.o_proj.weight": w["l.0.attn.o_proj.weight"],
        "l.0.mlp.gate_up_proj.weight": torch.cat([w[f"l.0.mlp.{part}.weight"] for part in FUSED["gate_up_proj"]]),
        "l.0.norm.weight": w["l.0.norm.weight"],
    }


def report(held, names=TRAINER, handed=None, stale=()):
    sources, absent = find_sources(names, held, lambda name: name, FUSED)
    sums = [{name: checksum(value) for name, value in each.items()} for each in (handed or {}, held)]
    return EngineReport.read([*sums, sources, absent, list(stale)])


def check(*workers):
    return compare({name: checksum(value) for name, value in weights().items()}, list(workers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_checksum_is_exact_and_adds_up(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(7, 3).to(dtype), torch.randn(5, 3).to(dtype)
    whole = checksum(torch.cat([a, b]))
    assert whole == checksum(a) + checksum(b) and whole.count == 36
    assert checksum(a.new_zeros(9)) == (0, 9, 0) and checksum(a[:0]) == (0, 0, 0)
    assert checksum(torch.cat([a, a.new_zeros(2, 3)])).ordered == checksum(a).ordered  # padding adds nothing
    for moved in (a.t(), a.flip(0), a.flip(1), torch.cat([a[1:], a[:1]])):
        assert checksum(moved)[:2] == checksum(a)[:2] and checksum(moved) != checksum(a)
    changed = a.clone()
    changed[3, 1] = torch.nextafter(a[3, 1].float(), torch.tensor(9.0)) if dtype == torch.float32 else -a[3, 1]
    assert checksum(changed) != checksum(a)


def test_sums_wrap_as_integers_do():
    large = torch.full((3,), 2**62, dtype=torch.int64).view(torch.float64)
    assert checksum(large)[:2] == (3 * 2**62, 3) and checksum(torch.cat([large, large]))[:2] == (2**63, 6)
    assert checksum(large) + checksum(large) == checksum(torch.cat([large, large]))


def test_checksum_of_more_than_a_chunk():
    large = torch.full((CHUNK + 5,), -1, dtype=torch.int16).view(torch.bfloat16)
    assert checksum(large)[:2] == (2**64 - (CHUNK + 5), CHUNK + 5)
    assert checksum(large) == checksum(large[:7]) + checksum(large[7:])


def test_equal_weights_pass():
    w = weights()
    in_order = dict.fromkeys(fuse(w), False)
    assert check(report(fuse(w), handed=w)) == ([], set(TRAINER), in_order)
    backwards = list(reversed(TRAINER))  # the order in which names are known does not matter
    assert check(report(fuse(w), names=backwards)) == ([], set(TRAINER), in_order)


@pytest.mark.parametrize("name", ["model.embed.weight", "l.0.attn.qkv_proj.weight", "l.0.norm.weight"])
def test_elements_in_another_order_are_named(name):
    held = fuse(weights())
    held[name] = torch.cat([held[name][1:4], held[name][:1], held[name][4:]])
    assert check(report(held)) == ([], set(TRAINER), {other: other == name for other in held})
    handed = weights()
    handed["l.0.norm.weight"] = handed["l.0.norm.weight"].flip(0)
    assert "l.0.norm.weight: the engine got other values" in check(report(fuse(weights()), handed=handed))[0][0]


def test_equal_elements_have_no_order():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for value in (0.0, 1.0, -0.3):
            assert checksum(torch.full((3, 5), value, dtype=dtype)).uniform
        assert not checksum(torch.tensor([0.0, 0.0, 1.0], dtype=dtype)).uniform
    assert checksum(torch.ones(0)).uniform
    w = weights() | {"l.0.norm.weight": torch.ones(4)}
    sums = {name: checksum(value) for name, value in w.items()}
    problems, _, orders = compare(sums, [report(fuse(w))])
    assert not problems and orders == dict.fromkeys(fuse(w).keys() - {"l.0.norm.weight"}, False)


@pytest.mark.parametrize("name", TRAINER)
def test_a_stale_weight_is_named(name):
    old = weights()
    old[name] = old[name] + 1
    problems, *_ = check(report(fuse(old)))
    assert len(problems) == 1 and name in problems[0]
    problems, *_ = check(report(fuse(weights()), handed=old))
    assert len(problems) == 1 and name in problems[0] and "other values" in problems[0]
    skipped = {other: value for other, value in weights().items() if other != name}
    assert check(report(fuse(weights()), handed=skipped))[0] == [f"{name}: the engine did not get it"]


def test_packed_weights_rest_on_what_was_handed_over():
    held = fuse(weights())
    held["l.0.attn.qkv_proj.weight"] = torch.empty(0, dtype=torch.bfloat16)
    problems, found, _ = check(report(held))
    assert not problems and found == {name for name in TRAINER if name.split(".")[-2][0] not in "qkv"}
    assert check(report(held, stale=["l.0.attn.qkv_proj"]))[0] == [
        "l.0.attn.qkv_proj: still computes with weights packed before the sync"
    ]
    fewer = [name for name in TRAINER if "v_proj" not in name]
    assert check(report(held, names=fewer))[0] == ["l.0.attn.qkv_proj.weight: the trainer has no v_proj for it"]


def test_a_parameter_that_the_trainer_lacks():
    held = {**fuse(weights()), "lm_head.weight": torch.ones(4, 4)}  # an engine that untied the head
    assert check(report(held))[0] == ["lm_head.weight: the trainer has no such weight"]


def test_tensor_parallel_workers():
    whole = fuse(weights())
    dims = {"model.embed.weight": 0, "l.0.attn.qkv_proj.weight": 0, "l.0.attn.o_proj.weight": 1,
            "l.0.mlp.gate_up_proj.weight": 0}  # fmt: skip

    def shard(rank):
        return {name: value.chunk(2, dims[name])[rank] if name in dims else value for name, value in whole.items()}

    assert check(report(shard(0)), report(shard(1))) == ([], set(TRAINER), {"l.0.norm.weight": False})
    for name in whole:
        stale = shard(1)
        stale[name] = stale[name] + 1
        problems, *_ = check(report(shard(0)), report(stale))
        assert len(problems) == 1 and problems[0].startswith(name), name
    copied = shard(1)  # key-value heads on more workers than there are: not comparable, not an error
    copied["l.0.attn.qkv_proj.weight"] = whole["l.0.attn.qkv_proj.weight"][:5]
    problems, found, _ = check(report(shard(0)), report(copied))
    assert not problems and "l.0.attn.k_proj.weight" not in found


def test_report_survives_a_call_that_makes_lists():
    plain = [{"a": [1, 2]}, {"b": [3, 4]}, {"b": ["a"]}, {}, []]
    assert EngineReport.read(plain) == ({"a": Checksum(1, 2)}, {"b": Checksum(3, 4)}, {"b": ["a"]}, {}, [])
