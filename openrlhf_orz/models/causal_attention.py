"""Causal attention on a CPU as matrix products of whole blocks, for bfloat16.

PyTorch's own takes, in bfloat16 with its instructions, up to twice as long forward and two to seven times as long
backward; in float32 it is as fast.
Notation: N sequences of L tokens, H heads, K key heads, G = H / K, D head size.
"""

import math

import torch

BLOCK = 64  # queries at once; keys after the block's last are not looked at


class CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T, causal) v of q (N, H, L, D), k and v (N, K, L, D), of one dtype."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        out, lse = causal_attention(q, k, v, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        return *causal_attention_gradients(grad_out, q, k, v, out, lse, ctx.scale), None


def causal_attention(q, k, v, scale):
    """The result, and the log-sum-exp of the scaled scores (N, H, L), at least float32.

    The maximum of a row's scores, which the softmax subtracts, goes into a second product as a further column: a score
    rounded to bfloat16 is then rounded relative to its distance from the largest, and so most exact where it counts.
    """
    (count, heads, length, size), keys = q.shape, k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    power, rest = _split(scale)
    queries, k, v = (x.reshape(count * keys, -1, length, size) for x in (q * power, k, v))
    keys_t, v = _transposed(k[:, 0], 1), v[:, 0]
    future = k.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
    out = torch.empty_like(queries)
    lse = queries.new_empty(queries.shape[:3], dtype=wide)
    step = BLOCK if length > 2 * BLOCK else max(1, BLOCK // 2)
    for start in range(0, length, step):
        end = min(start + step, length)
        block = (*queries.shape[:2], end - start)
        q_block = queries[:, :, start:end].reshape(block[0], -1, size)
        scores = q_block @ keys_t[:, :size, :end]
        scores.view(*block, end)[..., start:] += future[: block[2], : block[2]]
        largest = scores.amax(-1, keepdim=True)
        weights = _scaled(torch.cat([q_block, -largest], -1) @ keys_t[..., :end], rest).exp_()
        weights.view(*block, end)[..., start:].tril_()
        total = weights.sum(-1, keepdim=True, dtype=wide)
        out[:, :, start:end] = ((weights @ v[:, :end]) / total).view(*block, size)
        lse[:, :, start:end] = (largest.to(wide) * rest + total.log()).view(block)
    return out.view(q.shape), lse.view(count, heads, length)


def causal_attention_gradients(grad_out, q, k, v, out, lse, scale):
    """Gradients of q, k and v. ``lse`` (N, H, L): log-sum-exp of the scaled scores, at least float32.

    With P the weights and c = sum(out grad_out) over D: dv = P^T do, dS = P (do v^T - c), dq = dS k, dk = dS^T q. What
    is subtracted, lse and c, goes into the products as further columns: a score rounded to bfloat16 is then rounded
    relative to log P, and so most exact where P is large.
    """
    (count, heads, length, size), keys = q.shape, k.shape[1]
    grouped = (count * keys, heads // keys, length)
    power, rest = _split(scale)
    means = (grad_out * out).sum(-1, dtype=lse.dtype)
    queries = torch.cat([(q * power).reshape(*grouped, size), *_columns(-lse / rest, q.dtype, grouped)], -1)
    grads = torch.cat([grad_out.reshape(*grouped, size), *_columns(-means, q.dtype, grouped)], -1)
    wide = queries.shape[-1]
    k, v = (x.reshape(count * keys, length, size) for x in (k, v))
    keys_t, values_t = (_transposed(x, wide - size) for x in (k, v))
    dq = q.new_empty(*grouped, size)
    dk, dv = (k.new_zeros(k.shape, dtype=lse.dtype) for _ in range(2))
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        block = (count * keys, grouped[1], end - start)
        q_block, grad_block = (x[:, :, start:end].reshape(block[0], -1, wide) for x in (queries, grads))
        weights = _scaled(q_block @ keys_t[..., :end], rest).exp_()
        weights.view(*block, end)[..., start:].tril_()
        scores = (grad_block @ values_t[..., :end]).mul_(weights)
        dq[:, :, start:end] = (scores @ k[:, :end]).view(*block, size)
        dk[:, :end] += scores.transpose(1, 2) @ q_block[..., :size]
        dv[:, :end] += weights.transpose(1, 2) @ grad_block[..., :size]
    shape = (count, keys, length, size)
    return dq.mul_(scale).view(q.shape), _scaled(dk, rest).to(q.dtype).view(shape), dv.to(q.dtype).view(shape)


def _split(scale):
    """A power of two, which goes into the queries without rounding, and the rest of a scale, often 1."""
    power = 2.0 ** math.floor(math.log2(scale))
    return power, scale / power


def _scaled(x, rest):
    return x if rest == 1 else x.mul_(rest)


def _transposed(x, ones):
    """(B, L, D) as (B, D + ones, L) with rows of ones; contiguous, as a product takes it fastest."""
    return torch.cat([x.transpose(1, 2), x.new_ones(len(x), ones, x.shape[1])], 1)


def _columns(x, dtype, shape):
    """(N, H, L) as columns of ``dtype`` that sum to it."""
    columns = []
    for _ in range(1 if dtype == x.dtype else 2):
        columns.append(x.to(dtype).reshape(*shape, 1))
        x = x - columns[-1].view(x.shape).to(x.dtype)
    return columns
