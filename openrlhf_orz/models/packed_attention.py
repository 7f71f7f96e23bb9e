"""Causal attention over a pack of sequences without flash-attn, exact and without a mask over the pack.

Registered with transformers as ``orz_packed`` (``--ds.attn_implementation``). A pack is (1, T): sequences one after
the other. Where ``position_ids`` jump to p, a sequence begins whose first p tokens are those of the one before it
(p = 0: it shares none; see shared_prefixes). On CUDA, in half precision, it is PyTorch's own varlen attention;
elsewhere sequences of similar length are attended to together, each to itself.
Notation: T tokens of a pack, H heads, D head size, N sequences of a group, L its longest.
"""

import threading
import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf_orz.models.cpu.attention import BLOCK, CausalAttention

NAME = "orz_packed"


@dataclass(frozen=True)
class Path:
    """A sequence of a pack: ``rows`` are its tokens in the pack, ``shared`` of them those of the one before it."""

    rows: torch.Tensor
    shared: int


@dataclass(frozen=True)
class Group:
    """N sequences padded to L, in indices into the pack (T) and into the padded group (N * L).

    ``rows`` has the token of each slot; in padding that is any, as causal attention keeps it from all real tokens.
    ``own_rows`` and ``own_slots`` are tokens and slots of what a sequence does not share with the one before it,
    ``slots`` those of all real tokens. ``lengths``: N numbers, longest first.
    """

    count: int
    longest: int
    lengths: list[int]
    rows: torch.Tensor
    slots: torch.Tensor
    own_rows: torch.Tensor
    own_slots: torch.Tensor


def paths(positions_T: torch.Tensor) -> list[Path]:
    """The sequences of a pack from its positions, (T,) long on CPU. Raises ValueError if they are no pack's."""
    jumps = (positions_T[1:] != positions_T[:-1] + 1).nonzero()[:, 0] + 1
    starts = [0, *jumps.tolist()]
    found, before = [], positions_T[:0]
    for start, end in zip(starts, [*starts[1:], len(positions_T)]):
        shared = int(positions_T[start])
        if shared > len(before):
            raise ValueError("the positions of a pack must begin with 0, and later sequences where others have been")
        before = torch.cat([before[:shared], torch.arange(start, end)])
        found.append(Path(before, shared))
    return found


def group_by_length(lengths: list[int], slack: float = 1.25, free: int = 32) -> list[list[int]]:
    """Indices of ``lengths``, longest first, in groups in which L <= slack * length + free holds for each member.

    Within a group sequences are padded on the right, which a causal mask alone makes harmless; the bounds keep what
    that wastes below what a separate call costs.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] <= slack * lengths[index] + free:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def make_groups(sequences: list[Path], device, blocks: bool = False) -> list[Group]:
    """The groups of a pack; for ``blocks`` as attention by blocks has them.

    It skips what lies behind a sequence's end, so that its groups may be wider; and L is one of few numbers, as oneDNN
    compiles a product for each shape and keeps a thousand of them.
    """
    multiple = BLOCK // 2 if blocks else 1
    bounds = {"slack": 1.5, "free": BLOCK} if blocks else {}
    groups = []
    for members in group_by_length([len(path.rows) for path in sequences], **bounds):
        chosen = [sequences[i] for i in members]
        lengths = [len(path.rows) for path in chosen]
        longest = -(-lengths[0] // multiple) * multiple
        rows = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, path in zip(rows, chosen):
            row[: len(path.rows)] = path.rows
        slots = [torch.arange(n * longest, n * longest + len(path.rows)) for n, path in enumerate(chosen)]
        own_rows = torch.cat([path.rows[path.shared :] for path in chosen])
        own_slots = torch.cat([s[path.shared :] for s, path in zip(slots, chosen)])
        if len(members) == len(sequences):  # one group: in the order of the pack, it comes back by one selection
            own_rows, order = own_rows.sort()
            own_slots = own_slots[order]
        indices = (rows.flatten(), torch.cat(slots), own_rows, own_slots)
        groups.append(Group(len(chosen), longest, lengths, *(index.to(device) for index in indices)))
    return groups


class _ToGroups(torch.autograd.Function):
    """(T, H, D) to one (N, L, H, D) for each group; gradients of shared tokens add up, those of padding are 0."""

    @staticmethod
    def forward(ctx, x_THD, groups):
        ctx.groups, ctx.shape = groups, x_THD.shape
        return tuple(x_THD.index_select(0, g.rows).view(g.count, g.longest, *x_THD.shape[1:]) for g in groups)

    @staticmethod
    def backward(ctx, *grads):
        if sum(len(g.slots) for g in ctx.groups) == ctx.shape[0]:
            return _collect(grads, ctx.groups, ctx.shape), None
        flat = grads[0].new_zeros(ctx.shape[0], ctx.shape[1:].numel())
        for grad, g in zip(grads, ctx.groups):
            tokens = grad.flatten(0, 1).flatten(1).index_select(0, g.slots)
            flat.scatter_add_(0, g.rows[g.slots][:, None].expand_as(tokens), tokens)
        return flat.view(ctx.shape), None


class _FromGroups(torch.autograd.Function):
    """One (N, L, H, D) for each group to (T, H, D), each token from the sequence whose own it is."""

    @staticmethod
    def forward(ctx, groups, total, *xs):
        ctx.groups = groups
        return _collect(xs, groups, (total, *xs[0].shape[2:]))

    @staticmethod
    def backward(ctx, grad):
        padded = []
        for g in ctx.groups:
            tokens = grad.index_select(0, g.own_rows)
            flat = grad.new_zeros(g.count * g.longest, *grad.shape[1:]).index_copy_(0, g.own_slots, tokens)
            padded.append(flat.view(g.count, g.longest, *grad.shape[1:]))
        return None, None, *padded


def _collect(xs, groups, shape):
    if len(groups) == 1:
        return xs[0].flatten(0, 1).index_select(0, groups[0].own_slots)
    out = xs[0].new_empty(shape)
    for x, g in zip(xs, groups):
        out.index_copy_(0, g.own_rows, x.flatten(0, 1).index_select(0, g.own_slots))
    return out


def by_blocks(q: torch.Tensor) -> bool:
    """Whether attention of such queries is ``CausalAttention``, unless it has a window or dropout."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


def grouped_attention(q_THD, k_TKD, v_TKD, groups, scale, dropout=0.0, window=None) -> torch.Tensor:
    """Attention (T, H, D) of each sequence to itself; K key heads, H a multiple of K; ``window`` tokens back."""
    qs, ks, vs = (_ToGroups.apply(x, groups) for x in (q_THD, k_TKD, v_TKD))
    outs = []
    for q, k, v, g in zip(qs, ks, vs, groups):
        if by_blocks(q) and window is None and not dropout:
            out = CausalAttention.apply(*(x.transpose(1, 2) for x in (q, k, v)), scale, g.lengths)
            outs.append(out.transpose(1, 2))
            continue
        mask = None
        if window is not None and g.longest > window:
            distance = torch.arange(g.longest, device=q.device)[:, None] - torch.arange(g.longest, device=q.device)
            mask = (distance >= 0) & (distance < window)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None,
            scale=scale, dropout_p=dropout, enable_gqa=q.shape[2] != k.shape[2],
        )  # fmt: skip
        outs.append(out.transpose(1, 2))
    return _FromGroups.apply(groups, q_THD.shape[0], *outs)


def varlen_attention(q_THD, k_TKD, v_TKD, sequences, scale, window=None) -> torch.Tensor:
    """The same by PyTorch's varlen attention: CUDA, float16 or bfloat16, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [len(path.rows) for path in sequences]
    shared = any(path.shared for path in sequences)
    if shared:
        rows = torch.cat([path.rows for path in sequences]).to(q_THD.device)
        q_THD, k_TKD, v_TKD = (x.index_select(0, rows) for x in (q_THD, k_TKD, v_TKD))
    bounds = torch.tensor([0, *lengths], device=q_THD.device).cumsum(0, dtype=torch.int32)
    out = varlen_attn(
        q_THD, k_TKD, v_TKD, bounds, bounds, max(lengths), max(lengths), scale=scale,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=q_THD.shape[1] != k_TKD.shape[1],
    )  # fmt: skip
    if shared:  # own tokens, in the order of the pack
        own = torch.cat([torch.arange(len(path.rows)) >= path.shared for path in sequences])
        out = out.index_select(0, own.nonzero()[:, 0].to(out.device))
    return out


class _Sequences(threading.local):
    """The sequences of a thread's pack at hand, found once for all layers of a forward and its backward."""

    def __init__(self):
        self.of = None

    def find(self, position_ids: torch.Tensor, blocks: bool) -> tuple[list[Path], list[Group]]:
        if self.of is None or self.of() is not position_ids:
            self.paths = paths(position_ids[0].cpu())
            self.groups = make_groups(self.paths, position_ids.device, blocks)
            self.of = weakref.ref(position_ids)
        return self.paths, self.groups


_sequences = _Sequences()


def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    sliding_window=None,
    position_ids=None,
    **kwargs,
):
    """transformers' attention interface: (1, H, T, D) in, (1, T, H, D) out. Anything but a pack goes to SDPA."""
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2] or position_ids is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    sequences, groups = _sequences.find(position_ids, by_blocks(query))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if q.is_cuda and q.dtype != torch.float32 and not dropout:
        out = varlen_attention(q, k, v, sequences, scaling, sliding_window)
    else:
        out = grouped_attention(q, k, v, groups, scaling, dropout, sliding_window)
    return out[None], None


def _mask(*, batch_size, q_length, kv_length, attention_mask=None, **kwargs):
    """No mask for a pack; for a padded batch, and in generation with a cache, SDPA's."""
    if attention_mask is None and batch_size == 1 and q_length == kv_length:
        return None
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs
    )


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
