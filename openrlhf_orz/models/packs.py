"""The sequences of a pack, and PyTorch's varlen attention over them.

A pack is (1, T): sequences one after the other, found by their positions (packed_attention.py). A sequence may share
its first tokens with the one before it. Notation: T tokens of a pack, H heads, K key heads, D head size.
"""

import logging
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedSequence:
    """A sequence of a pack. The first ``shared`` of its tokens belong to the sequence before it."""

    rows: torch.Tensor  # (L,) long: each token's index into the pack
    shared: int


def find_sequences(positions_T: torch.Tensor) -> list[PackedSequence]:
    """Find the sequences of a pack by its positions, (T,) long on CPU. Raises ValueError if no pack can have them."""
    jumps = (positions_T[1:] != positions_T[:-1] + 1).nonzero()[:, 0] + 1
    starts = [0, *jumps.tolist()]
    found: list[PackedSequence] = []
    before = positions_T[:0]
    for start, end in zip(starts, [*starts[1:], len(positions_T)]):
        shared = int(positions_T[start])
        if shared > len(before):
            raise ValueError("the positions of a pack must begin with 0, and later sequences where others have been")
        before = torch.cat([before[:shared], torch.arange(start, end)])
        found.append(PackedSequence(before, shared))
    return found


@dataclass(frozen=True)
class Bounds:
    """What varlen attention needs of a pack: queries are the pack's tokens, keys also those that a sequence shares.

    ``queries``, ``keys``: (sequences + 1,) int32, where each sequence begins among them.
    ``rows``: (keys,) long, the row of each key; None where nothing is shared.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest_queries: int
    longest_keys: int
    rows: torch.Tensor | None


def make_bounds(sequences: list[PackedSequence], device: torch.device | str) -> Bounds:
    """The bounds of a pack, on ``device``."""
    keys = [len(sequence.rows) for sequence in sequences]
    queries = [length - sequence.shared for length, sequence in zip(keys, sequences)]
    of_queries, of_keys = (
        torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device) for lengths in (queries, keys)
    )
    rows = None if queries == keys else torch.cat([sequence.rows for sequence in sequences]).to(device)
    return Bounds(of_queries, of_keys, max(queries), max(keys), rows)


def varlen_attention(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    bounds: Bounds,
    scale: float | None,
    window: int | None = None,
) -> torch.Tensor:
    """As ``grouped_attention`` by PyTorch's varlen attention, which needs CUDA, half precision, and no dropout.

    A sequence with fewer queries than keys has the last ones: the kernel's causal mask is aligned to the lower right.
    """
    from torch.nn.attention.varlen import varlen_attn

    if bounds.rows is not None:
        k_TKD, v_TKD = (x.index_select(0, bounds.rows) for x in (k_TKD, v_TKD))
    out = varlen_attn(
        q_THD, k_TKD, v_TKD, bounds.queries, bounds.keys, bounds.longest_queries, bounds.longest_keys, scale=scale,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=q_THD.shape[1] != k_TKD.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)  # a tuple only where its log-sum-exp is asked for, too
    return out


SLOWER = "packs take SDPA by groups of like length, which is right and slower"


@cache
def varlen_is_right(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_size: int) -> bool:
    """Whether varlen attention runs on this device and agrees with SDPA, forward and backward, on a small pack.

    An old GPU or an odd head size may have no kernel; a wrong result would train a wrong model without a sign of it.
    """
    positions = torch.cat([torch.arange(37), torch.arange(5, 21), torch.arange(3, 12), torch.arange(64)])
    sequences = find_sequences(positions)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(len(positions), n, head_size, generator=generator) for n in (heads, key_heads, key_heads)]

    def one_by_one(q, k, v):
        outs = []
        for each in sequences:
            rows = each.rows.to(device)
            out = F.scaled_dot_product_attention(
                *(x[rows].transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=heads != key_heads
            )
            outs.append(out[0].transpose(0, 1)[each.shared :])
        return torch.cat(outs)

    def by_kernel(q, k, v):
        return varlen_attention(q, k, v, make_bounds(sequences, device), None)

    found = []
    for attend in (one_by_one, by_kernel):
        qkv = [x.to(device, dtype).requires_grad_() for x in given]
        try:
            # hooks of our own, as those of gradient checkpointing would take these tensors for the layer's
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                out = attend(*qkv)
                found.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), qkv)])
        except (RuntimeError, ValueError) as error:
            logger.warning(f"no varlen attention on {device}: {str(error).splitlines()[0]}; {SLOWER}")
            return False
    worst = max(float((a.float() - b.float()).norm() / b.float().norm()) for b, a in zip(*found))
    right = worst < 0.02  # bfloat16's own error is below 0.01
    if not right:
        logger.warning(f"varlen attention on {device} differs from SDPA by {worst:.1%}; {SLOWER}")
    return right


def by_varlen(q_THD: torch.Tensor, key_heads: int, dropout: float = 0.0) -> bool:
    """Whether attention of these queries is ``varlen_attention``."""
    half = q_THD.is_cuda and q_THD.dtype != torch.float32 and not dropout
    return half and varlen_is_right(q_THD.device, q_THD.dtype, q_THD.shape[1], key_heads, q_THD.shape[2])
