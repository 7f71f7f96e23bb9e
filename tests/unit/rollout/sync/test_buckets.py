"""Buckets: every tensor goes in once, in order, and comes out as it went in, at the same memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_orz.rollout.sync.transport import ALIGN, copy_into_buffer, cut_into_buckets, layout, views

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def random_tensor(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-100, 100, shape, generator=generator).to(dtype)


def pack(tensors, start=0):
    named = [(f"p{i}", tensor.shape) for i, tensor in enumerate(tensors)]
    places, end = layout(named, [tensor.dtype for tensor in tensors], start)
    buffer = torch.full((end,), 255, dtype=torch.uint8)
    copy_into_buffer(tensors, places, buffer)
    return places, buffer


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=8), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_round_trip(specs, start):
    tensors = [random_tensor(shape, dtype, seed) for seed, (shape, dtype) in enumerate(specs)]
    places, buffer = pack(tensors, start)
    assert [place.name for place in places] == [f"p{i}" for i in range(len(specs))]
    ends = [start] + [place.offset + place.nbytes for place in places]
    for place, before in zip(places, ends):
        assert place.offset % ALIGN == 0 and 0 <= place.offset - before < ALIGN
    for (_, view), tensor in zip(views(buffer, places), tensors, strict=True):
        assert view.dtype == tensor.dtype and view.shape == tensor.shape and torch.equal(view, tensor)
        assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
@settings(deadline=None)
def test_buckets_keep_order_and_limit(sizes, limit):
    buckets = cut_into_buckets(sizes, limit)
    assert [i for bucket in buckets for i in bucket] == list(range(len(sizes)))
    for bucket in buckets:
        assert len(bucket) > 0 and (len(bucket) == 1 or sum(sizes[i] for i in bucket) <= limit)
    for bucket, following in zip(buckets, buckets[1:]):  # none is cut too early
        assert sum(sizes[i] for i in bucket) + sizes[following[0]] > limit


def test_buckets_of_nothing_and_of_a_large_parameter():
    assert cut_into_buckets([], 10) == []
    assert cut_into_buckets([3, 100, 4, 5], 10) == [range(1), range(1, 2), range(2, 4)]


def test_layout_converts_and_checks():
    weight = torch.randn(3, 4).t()  # not contiguous
    places, end = layout([("w", weight.shape), ("scalar", ())], torch.bfloat16)
    buffer = torch.zeros(end, dtype=torch.uint8)
    copy_into_buffer([weight, torch.tensor(2.0)], places, buffer)
    (_, view), (_, scalar) = views(buffer, places)
    assert torch.equal(view, weight.to(torch.bfloat16)) and scalar.item() == 2 and scalar.shape == ()
    with pytest.raises(ValueError, match=r"w has shape \(3, 4\)"):
        copy_into_buffer([weight.t(), torch.tensor(2.0)], places, buffer)


def test_cut_in_buckets_equals_whole():
    tensors = [random_tensor((n, 3), torch.float32, n) for n in range(12)]
    whole = dict(views(*reversed(pack(tensors))))
    for limit in (1, 100, 300, 10**6):
        for bucket in cut_into_buckets([tensor.nbytes for tensor in tensors], limit):
            places, buffer = pack([tensors[i] for i in bucket])
            for i, (_, view) in zip(bucket, views(buffer, places)):
                assert torch.equal(view, whole[f"p{i}"])
