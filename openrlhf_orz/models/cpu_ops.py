"""Causal attention and RMSNorm for a CPU: the results of PyTorch and transformers, faster.

Attention is written as matrix products of whole blocks. In bfloat16, PyTorch's own takes up to twice as long forward
and two to seven times as long backward; in float32 it is as fast. transformers' RMSNorm keeps its input in float32 for
the backward and takes three times as long.
Notation: N sequences of L tokens, H heads, K key heads, G = H / K, D head size, S size of a normed vector.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

BLOCK = 64  # queries of a block; keys after the block's last query are not computed
UNREACHED = 1e4  # log-sum-exp of a row in no forward block; the larger blocks of the backward then give it weight 0


def allow_tiles() -> None:
    """Ask Linux for the tiles of an Intel processor with AMX; elsewhere do nothing.

    vLLM's attention uses them in bfloat16 and does not ask. oneDNN does, at its first larger product: an engine whose
    first prompts have four tokens or fewer would be killed before (illegal instruction).
    """
    torch.cpu._init_amx()


class CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T, causal) v for q (N, H, L, D), k and v (N, K, L, D) of one dtype.

    ``lengths``: tokens of each sequence, longest first; result and gradients are undefined after a sequence's end.
    ``first``: the results of queries before it are wanted by nobody: they are 0 and have no gradients.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, lengths=None, first=0):
        ctx.lengths, ctx.first = lengths or [q.shape[2]] * len(q), first
        out, lse = causal_attention(q, k, v, scale, ctx.lengths, first)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        found = causal_attention_gradients(grad_out, q, k, v, out, lse, ctx.scale, ctx.lengths, ctx.first)
        return *found, None, None, None


def causal_attention(
    q_NHLD: torch.Tensor,
    k_NKLD: torch.Tensor,
    v_NKLD: torch.Tensor,
    scale: float,
    lengths: Sequence[int],
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention (N, H, L, D) and the log-sum-exp of the scaled scores (N K, L G, 1), at least float32.

    The softmax subtracts each row's largest score. Here that score is one more column of a second product, so what is
    rounded to bfloat16 is the distance from the largest score: the rounding is finest where the weight is largest.
    """
    q, k, v = q_NHLD, k_NKLD, v_NKLD
    (count, heads, length, size), keys = q.shape, k.shape[1]
    group = heads // keys
    wide = torch.promote_types(q.dtype, torch.float32)
    power, rest = _split(scale)
    queries = q.new_empty(count * keys, length * group, size + 1)
    queries[..., :size] = _rows(q * power, keys)
    keys_t, v = _transposed(k, 1), v.reshape(-1, length, size)
    out = q.new_zeros(count * keys, length * group, size)
    lse = out.new_full((*out.shape[:2], 1), UNREACHED, dtype=wide)
    step = BLOCK if length > 2 * BLOCK else max(1, BLOCK // 2)
    for start, end, here, rows, future in _blocks(lengths, keys, group, q, step, first):
        scores = torch.bmm(queries[here, rows, :size], keys_t[here, :size, :end])
        scores[..., start:].add_(future)
        largest = scores.to(wide).amax(-1, keepdim=True)  # in bfloat16 it takes twice as long
        queries[here, rows, size:] = -largest
        weights = _scaled(torch.bmm(queries[here, rows], keys_t[here, :, :end]), rest)
        weights[..., start:].add_(future)
        total = weights.exp_().sum(-1, keepdim=True, dtype=wide)
        out[here, rows] = torch.bmm(weights, v[here, :end]).div_(total)
        lse[here, rows] = total.log_().add_(largest, alpha=rest)
    return _heads(out, q.shape, keys), lse


def causal_attention_gradients(
    grad_NHLD: torch.Tensor,
    q_NHLD: torch.Tensor,
    k_NKLD: torch.Tensor,
    v_NKLD: torch.Tensor,
    out_NHLD: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    lengths: Sequence[int],
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v.

    With P the weights and c = sum(out grad_out) over D: dv = P^T do, dS = P (do v^T - c), dq = dS k, dk = dS^T q. The
    subtracted lse and c are further columns of the products, so what is rounded to bfloat16 is log P: the rounding is
    finest where P is large.
    """
    grad_out, q, k, v, out = grad_NHLD, q_NHLD, k_NKLD, v_NKLD, out_NHLD
    (count, heads, length, size), keys = q.shape, k.shape[1]
    power, rest = _split(scale)
    means = _rows((grad_out * out).sum(-1, keepdim=True, dtype=lse.dtype), keys)
    queries = torch.cat([_rows(q * power, keys), *_columns(-lse / rest, q.dtype)], -1)
    grads = torch.cat([_rows(grad_out, keys), *_columns(-means, q.dtype)], -1)
    keys_t, values_t = (_transposed(x, queries.shape[-1] - size) for x in (k, v))
    k = k.reshape(-1, length, size)
    dq = q.new_zeros(*queries.shape[:2], size) if first else q.new_empty(*queries.shape[:2], size)
    dk, dv = (k.new_zeros(k.shape, dtype=lse.dtype) for _ in range(2))
    step = BLOCK if length < 6 * BLOCK else 2 * BLOCK
    for start, end, here, rows, future in _blocks(lengths, keys, heads // keys, q, step, first):
        weights = _scaled(torch.bmm(queries[here, rows], keys_t[here, :, :end]), rest)
        weights[..., start:].add_(future)
        weights.exp_()
        scores = torch.bmm(grads[here, rows], values_t[here, :, :end]).mul_(weights)
        dq[here, rows] = torch.bmm(scores, k[here, :end])
        dk[here, :end].add_(torch.bmm(scores.transpose(1, 2), queries[here, rows, :size]))
        dv[here, :end].add_(torch.bmm(weights.transpose(1, 2), grads[here, rows, :size]))
    shape = (count, keys, length, size)
    return _heads(dq.mul_(scale), q.shape, keys), _scaled(dk, rest).to(q.dtype).view(shape), dv.to(q.dtype).view(shape)


def _blocks(
    lengths: Sequence[int], keys: int, group: int, like: torch.Tensor, step: int, first: int
) -> Iterator[tuple[int, int, slice, slice, torch.Tensor]]:
    """Yield for each block of positions from ``first`` on: its start and end, the slice of N K whose sequences are
    long enough, the slice of L G with its queries, and the causal mask to add to the scores of its own keys.
    """
    future = like.new_full((step, step), -torch.inf).triu_(1).repeat_interleave(group, 0)
    for start in range(first, lengths[0], step):
        end = min(start + step, like.shape[2])
        size = end - start
        here = slice(keys * sum(length > start for length in lengths))
        yield start, end, here, slice(start * group, end * group), future[: size * group, :size]


def _rows(x: torch.Tensor, keys: int) -> torch.Tensor:
    """Reorder (N, H, L, D) to (N K, L G, D), so that a block's queries of one key head lie together."""
    return x.unflatten(1, (keys, -1)).transpose(2, 3).reshape(len(x) * keys, -1, x.shape[-1])


def _heads(rows: torch.Tensor, shape: torch.Size, keys: int) -> torch.Tensor:
    """Reorder (N K, L G, D) to (N, H, L, D), stored in memory as (N, L, H, D)."""
    count, heads, length, size = shape
    by_head = rows.view(count, keys, length, heads // keys, size).transpose(1, 2)
    return by_head.reshape(count, length, heads, size).transpose(1, 2)


def _split(scale: float) -> tuple[float, float]:
    """Split a scale into a power of two, by which queries are multiplied without rounding, and the rest, often 1."""
    power = 2.0 ** math.floor(math.log2(scale))
    return power, scale / power


def _scaled(x: torch.Tensor, rest: float) -> torch.Tensor:
    return x if rest == 1 else x.mul_(rest)


def _transposed(x: torch.Tensor, ones: int) -> torch.Tensor:
    """Reorder (N, K, L, D) to (N K, D + ones, L) with rows of ones; contiguous, which a product reads fastest."""
    x = x.transpose(2, 3).flatten(0, 1)
    return torch.cat([x, x.new_ones(len(x), ones, x.shape[2])], 1)


def _columns(x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return columns of ``dtype`` whose sum is ``x`` (..., 1)."""
    if dtype == x.dtype:
        return [x]
    first = x.to(dtype)
    return [first, (x - first).to(dtype)]


class RMSNormFunction(torch.autograd.Function):
    """x / rms(x) * weight over S. Forward uses transformers' operations: equal to the last bit."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rate)
        return weight * (wide * rate).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, rate = ctx.saved_tensors
        hat_TS = (x * rate).flatten(0, -2)
        grad_TS = grad.to(rate.dtype, copy=True).flatten(0, -2)
        product_TS = grad_TS * hat_TS
        weight_S = weight.to(rate.dtype)
        grad_weight_S = product_TS.new_ones(len(product_TS)) @ product_TS if ctx.needs_input_grad[1] else None
        # d(x rate) / dx: the part along x itself does not change x / rms(x)
        along_T1 = (product_TS @ weight_S)[:, None].div_(-x.shape[-1])
        grad_TS.mul_(weight_S).addcmul_(hat_TS, along_T1).mul_(rate.flatten(0, -2))
        return (
            grad_TS.view(x.shape).to(x.dtype),
            None if grad_weight_S is None else grad_weight_S.to(weight.dtype),
            None,
        )  # fmt: skip


class CpuRMSNorm(nn.Module):
    """Takes the place of a transformers RMSNorm and shares its weight (S,)."""

    def __init__(self, weight_S: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.variance_epsilon = weight_S, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return RMSNormFunction.apply(x, self.weight, self.variance_epsilon)


def install_rms_norm(model: nn.Module) -> int:
    """Replace the model's RMSNorms by ``CpuRMSNorm`` and return how many were replaced.

    A norm that computes anything else (an offset to the weight, a gate) stays: both are tried on the same input.
    """
    count = 0
    for name, norm in list(model.named_modules()):
        if not type(norm).__name__.endswith("RMSNorm") or not hasattr(norm, "variance_epsilon"):
            continue
        if set(dict(norm.named_parameters(recurse=False))) != {"weight"} or not norm.weight.numel():  # 0: ZeRO-3
            continue
        replacement = CpuRMSNorm(norm.weight, norm.variance_epsilon).train(norm.training)
        probe = torch.linspace(-2, 3, 3 * norm.weight.numel()).view(3, -1).to(norm.weight)
        with torch.no_grad():
            same = torch.equal(norm(probe), replacement(probe))
        if same:
            model.set_submodule(name, replacement)
            count += 1
    return count
