"""Causal attention on a CPU as matrix products of whole blocks, for bfloat16.

PyTorch's own takes, in bfloat16 with its instructions, up to twice as long forward and two to seven times as long
backward; in float32 it is as fast.
Notation: N sequences of L tokens, H heads, K key heads, G = H / K, D head size.
"""

import math

import torch

BLOCK = 64  # queries at once; keys after the block's last are not looked at
UNREACHED = 1e4  # log-sum-exp of a row that no block has reached: backward, in larger blocks, its weights are 0


class CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T, causal) v of q (N, H, L, D), k and v (N, K, L, D), of one dtype.

    ``lengths``: of the sequences, longest first; what is behind their ends, in result and gradients, is undefined.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, lengths=None):
        ctx.lengths = lengths or [q.shape[2]] * len(q)
        out, lse = causal_attention(q, k, v, scale, ctx.lengths)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        return *causal_attention_gradients(grad_out, q, k, v, out, lse, ctx.scale, ctx.lengths), None, None


def causal_attention(q, k, v, scale, lengths):
    """The result, and the log-sum-exp of the scaled scores, (N K, L G, 1), at least float32.

    The maximum of a row's scores, which the softmax subtracts, goes into a second product as a further column: a score
    rounded to bfloat16 is then rounded relative to its distance from the largest, and so most exact where it counts.
    """
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
    for start, end, here, rows, future in _blocks(lengths, keys, group, q, step):
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


def causal_attention_gradients(grad_out, q, k, v, out, lse, scale, lengths):
    """Gradients of q, k and v.

    With P the weights and c = sum(out grad_out) over D: dv = P^T do, dS = P (do v^T - c), dq = dS k, dk = dS^T q. What
    is subtracted, lse and c, goes into the products as further columns: a score rounded to bfloat16 is then rounded
    relative to log P, and so most exact where P is large.
    """
    (count, heads, length, size), keys = q.shape, k.shape[1]
    power, rest = _split(scale)
    means = _rows((grad_out * out).sum(-1, keepdim=True, dtype=lse.dtype), keys)
    queries = torch.cat([_rows(q * power, keys), *_columns(-lse / rest, q.dtype)], -1)
    grads = torch.cat([_rows(grad_out, keys), *_columns(-means, q.dtype)], -1)
    keys_t, values_t = (_transposed(x, queries.shape[-1] - size) for x in (k, v))
    k = k.reshape(-1, length, size)
    dq = q.new_empty(*queries.shape[:2], size)
    dk, dv = (k.new_zeros(k.shape, dtype=lse.dtype) for _ in range(2))
    step = BLOCK if length < 6 * BLOCK else 2 * BLOCK
    for start, end, here, rows, future in _blocks(lengths, keys, heads // keys, q, step):
        weights = _scaled(torch.bmm(queries[here, rows], keys_t[here, :, :end]), rest)
        weights[..., start:].add_(future)
        weights.exp_()
        scores = torch.bmm(grads[here, rows], values_t[here, :, :end]).mul_(weights)
        dq[here, rows] = torch.bmm(scores, k[here, :end])
        dk[here, :end].add_(torch.bmm(scores.transpose(1, 2), queries[here, rows, :size]))
        dv[here, :end].add_(torch.bmm(weights.transpose(1, 2), grads[here, rows, :size]))
    shape = (count, keys, length, size)
    return _heads(dq.mul_(scale), q.shape, keys), _scaled(dk, rest).to(q.dtype).view(shape), dv.to(q.dtype).view(shape)


def _blocks(lengths, keys, group, like, step):
    """Of each block of positions: start, end, key heads of the sequences that reach it, rows of its queries, and what
    is added to the scores of its own keys.
    """
    future = like.new_full((step, step), -torch.inf).triu_(1).repeat_interleave(group, 0)
    for start in range(0, lengths[0], step):
        end = min(start + step, like.shape[2])
        size = end - start
        here = slice(keys * sum(length > start for length in lengths))
        yield start, end, here, slice(start * group, end * group), future[: size * group, :size]


def _rows(x, keys):
    """(N, H, L, D) as (N K, L G, D): a block's queries of one key head lie together."""
    return x.unflatten(1, (keys, -1)).transpose(2, 3).reshape(len(x) * keys, -1, x.shape[-1])


def _heads(rows, shape, keys):
    """(N K, L G, D) as (N, H, L, D) that lies as (N, L, H, D)."""
    count, heads, length, size = shape
    by_head = rows.view(count, keys, length, heads // keys, size).transpose(1, 2)
    return by_head.reshape(count, length, heads, size).transpose(1, 2)


def _split(scale):
    """A power of two, which goes into the queries without rounding, and the rest of a scale, often 1."""
    power = 2.0 ** math.floor(math.log2(scale))
    return power, scale / power


def _scaled(x, rest):
    return x if rest == 1 else x.mul_(rest)


def _transposed(x, ones):
    """(N, K, L, D) as (N K, D + ones, L) with rows of ones; contiguous, as a product takes it fastest."""
    x = x.transpose(2, 3).flatten(0, 1)
    return torch.cat([x, x.new_ones(len(x), ones, x.shape[2])], 1)


def _columns(x, dtype):
    """(..., 1) as columns of ``dtype`` that sum to it."""
    if dtype == x.dtype:
        return [x]
    first = x.to(dtype)
    return [first, (x - first).to(dtype)]
