"""Exact causal attention over a pack of sequences, without flash-attn and without a mask over the pack.

It is registered with transformers as ``orz_packed`` (``--ds.attn_implementation``). A pack is (1, T): sequences one
after the other. Where ``position_ids`` jump to p, a new sequence begins, and its first p tokens are those of the
sequence before it (p = 0: none; see shared_prefixes.py). On CUDA in half precision, PyTorch's varlen attention
computes it, once it has shown on that GPU that it is right. Elsewhere sequences of similar length are padded to a
group, and each attends to itself. What all layers need of a pack is made once. A layer may have a window, a soft cap
on its scores, or sinks; what it asks for beyond that is an error.
Notation: T tokens of a pack, H heads, K key heads, D head size, N sequences of a group, L tokens of its longest.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf_orz.models.cpu_ops import BLOCK, CausalAttention
from openrlhf_orz.models.packs import Bounds, PackedSequence, by_varlen, find_sequences, make_bounds, varlen_attention
from openrlhf_orz.models.soft_attention import soft_attention

PACKED_ATTENTION = "orz_packed"
# what models hand on to their layers, and attention within a causal pack or a padded batch does not depend on
HARMLESS = {
    "cache_position", "input_ids", "is_causal", "layer_idx", "output_attentions", "output_hidden_states",
    "output_router_logits", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """N sequences padded to L. Rows are indices into the pack (T), slots are indices into the padded group (N * L)."""

    count: int  # N
    longest: int  # L
    lengths: list[int]  # N numbers, longest first
    first: int  # all sequences share at least so many tokens with those before them
    rows: torch.Tensor  # (N * L,): the row of each slot; any row in padding, which no real token attends to
    slots: torch.Tensor  # slots of all real tokens
    own_rows: torch.Tensor  # rows of the tokens that a sequence does not share with the one before it
    own_slots: torch.Tensor  # and their slots


def group_by_length(lengths: list[int], slack: float = 1.25, free: int = 32) -> list[list[int]]:
    """Group the indices of ``lengths``, longest first, so that L <= slack * length + free for each member.

    Sequences of a group are padded on the right, which the causal mask makes harmless. The bounds keep the cost of the
    padding below the cost of one more call.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] <= slack * lengths[index] + free:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def make_groups(sequences: list[PackedSequence], device: torch.device | str, blocks: bool = False) -> list[Group]:
    """Make the groups of a pack; with ``blocks``, for attention by blocks (``cpu_ops.CausalAttention``).

    Attention by blocks skips blocks after a sequence's end, so padding costs less and groups are wider. It skips
    blocks of shared queries, too: sequences that share much are grouped apart from those whose tokens they share. L is
    then a multiple of half a block, as oneDNN compiles a product for each shape and keeps only a thousand of them.
    """
    multiple = BLOCK // 2 if blocks else 1
    all_lengths = [len(sequence.rows) for sequence in sequences]
    sharing = [blocks and sequence.shared >= multiple for sequence in sequences]
    groups = []
    for members in _members(all_lengths, sharing) if blocks else group_by_length(all_lengths):
        chosen = [sequences[i] for i in members]
        lengths = [len(sequence.rows) for sequence in chosen]
        longest = -(-lengths[0] // multiple) * multiple
        rows = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, sequence in zip(rows, chosen):
            row[: len(sequence.rows)] = sequence.rows
        slots = [torch.arange(n * longest, n * longest + length) for n, length in enumerate(lengths)]
        own_rows = torch.cat([sequence.rows[sequence.shared :] for sequence in chosen])
        own_slots = torch.cat([s[sequence.shared :] for s, sequence in zip(slots, chosen)])
        if len(members) == len(sequences):  # one group: in the pack's order, one selection brings all tokens back
            own_rows, order = own_rows.sort()
            own_slots = own_slots[order]
        indices = (rows.flatten(), torch.cat(slots), own_rows, own_slots)
        first = min(sequence.shared for sequence in chosen) // multiple * multiple if blocks else 0
        groups.append(Group(len(chosen), longest, lengths, first, *(index.to(device) for index in indices)))
    return groups


def _members(lengths: list[int], sharing: list[bool]) -> list[list[int]]:
    """The wider groups of attention by blocks: of what shares nothing or little, and of what shares."""
    apart = ([i for i, shares in enumerate(sharing) if shares is kind] for kind in (False, True))
    return [
        [part[i] for i in members]
        for part in apart
        for members in group_by_length([lengths[i] for i in part], slack=1.5, free=BLOCK)
    ]


class _ToGroups(torch.autograd.Function):
    """Turn (T, H, D) into one (N, L, H, D) for each group. Gradients of shared tokens add up; padding gives none."""

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
    """Turn one (N, L, H, D) for each group into (T, H, D): each token from the sequence that does not share it."""

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


def _collect(xs: Sequence[torch.Tensor], groups: list[Group], shape: Sequence[int]) -> torch.Tensor:
    """Gather each token of the pack from its own slot."""
    if len(groups) == 1:
        return xs[0].flatten(0, 1).index_select(0, groups[0].own_slots)
    out = xs[0].new_empty(shape)
    for x, g in zip(xs, groups):
        out.index_copy_(0, g.own_rows, x.flatten(0, 1).index_select(0, g.own_slots))
    return out


def by_blocks(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether attention of these queries and values is ``CausalAttention``, if there is no window and no dropout."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-1] == v.shape[-1]


def grouped_attention(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    groups: list[Group],
    scale: float | None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the attention (T, H, D) of each sequence to itself, group by group.

    ``window``: tokens that a token attends to, itself included; None for all. H is a multiple of K.
    """
    qs, ks, vs = (_ToGroups.apply(x, groups) for x in (q_THD, k_TKD, v_TKD))
    outs = []
    for q, k, v, g in zip(qs, ks, vs, groups):
        if softcap is not None or sinks_H is not None:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = soft_attention(q, k, v, scale, dropout, softcap, sinks_H, window=window)
            outs.append(out.transpose(1, 2))
            continue
        if by_blocks(q, v) and window is None and not dropout:
            out = CausalAttention.apply(*(x.transpose(1, 2) for x in (q, k, v)), scale, g.lengths, g.first)
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


class _CurrentPack(threading.local):
    """Per-thread cache of what all layers need of the current pack."""

    def __init__(self) -> None:
        self.positions: weakref.ref | None = None
        self.several = False  # whether the forward that runs is of a pack of more than one sequence

    def _look(self, position_ids: torch.Tensor) -> None:
        if self.positions is None or self.positions() is not position_ids:
            self.sequences = find_sequences(position_ids[0].cpu())  # a pass waits for the GPU here, and nowhere else
            self._groups: list[Group] | None = None
            self._bounds: Bounds | None = None
            self.positions = weakref.ref(position_ids)

    def groups(self, position_ids: torch.Tensor, blocks: bool) -> list[Group]:
        self._look(position_ids)
        if self._groups is None:
            self._groups = make_groups(self.sequences, position_ids.device, blocks)
        return self._groups

    def bounds(self, position_ids: torch.Tensor) -> Bounds:
        self._look(position_ids)
        if self._bounds is None:
            self._bounds = make_bounds(self.sequences, position_ids.device)
        return self._bounds


_current_pack = _CurrentPack()


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention interface: takes (1, H, T, D), returns (1, T, H, D). All but packs go to SDPA.

    ``s_aux``: (H,) scores of sinks. Raises NotImplementedError for what a layer asks for and nobody here computes.
    """
    unknown = sorted(name for name, asked in kwargs.items() if asked is not None and name not in HARMLESS)
    if unknown:
        raise NotImplementedError(
            f"{type(module).__name__} wants attention with {', '.join(unknown)}, which {PACKED_ATTENTION} does not"
            " compute: train with --ds.attn_implementation eager"
        )
    if attention_mask is None and position_ids is None and _current_pack.several:
        raise NotImplementedError(
            f"{type(module).__name__} is not told the positions, by which {PACKED_ATTENTION} knows a pack's sequences:"
            " train without --ds.packing_samples"
        )
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2] or position_ids is None:
        if softcap is not None or s_aux is not None:
            out = soft_attention(query, key, value, scaling, dropout, softcap, s_aux, allowed=attention_mask)
            return out.transpose(1, 2), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    plain = softcap is None and s_aux is None and q.shape[-1] == v.shape[-1]
    if plain and by_varlen(q, k.shape[1], dropout):
        out = varlen_attention(q, k, v, _current_pack.bounds(position_ids), scaling, sliding_window)
    else:
        groups = _current_pack.groups(position_ids, by_blocks(query, value))
        out = grouped_attention(q, k, v, groups, scaling, dropout, sliding_window, softcap, s_aux)
    return out[None], None


def _mask(
    *, batch_size: int, q_length: int, kv_length: int, attention_mask=None, allow_is_causal_skip: bool = True, **kwargs
) -> torch.Tensor | None:
    """Return no mask for a pack, and SDPA's mask for a padded batch and for generation with a cache."""
    one_row = attention_mask is None and batch_size == 1 and q_length == kv_length
    _current_pack.several = one_row and not allow_is_causal_skip  # transformers has seen positions that jump
    if one_row:
        return None
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip, **kwargs,
    )  # fmt: skip


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _mask)
