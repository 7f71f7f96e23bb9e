"""PyTorch's varlen attention has no kernel for CPUs: one by its formulas, so that what surrounds it can be tested."""

import torch
from torch.nn.attention import varlen


def _pairs(queries, keys):
    """(queries' tokens, keys' tokens) of each sequence."""
    bounds = (queries.tolist(), keys.tolist())
    return zip(*([slice(*pair) for pair in zip(b, b[1:])] for b in bounds))


def _weights(q_THD, k_TKD, rows, columns, scale, window):
    """Attention's weights (H, T, S) of one sequence; causal, aligned to the lower right as the CUDA kernel is."""
    q, k = q_THD[rows].transpose(0, 1), _repeat(k_TKD[columns], q_THD.shape[1])
    last = columns.stop - columns.start - (rows.stop - rows.start)
    behind = torch.arange(q.shape[1])[:, None] + last - torch.arange(k.shape[1])
    seen = (behind >= 0) & ((behind <= window) if window >= 0 else True)
    scores = (q @ k.transpose(1, 2)).float() * (scale or q.shape[-1] ** -0.5)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)


def _repeat(x_SKD, heads):
    return x_SKD.transpose(0, 1).repeat_interleave(heads // x_SKD.shape[1], 0)


def _forward(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, enable_gqa=False,
             seqused_k=None, block_table=None, num_splits=None):  # fmt: skip
    assert window_size[1] == 0 and is_causal == (window_size == [-1, 0])
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert cu_q.dtype == cu_k.dtype == torch.int32 and len(q) == cu_q[-1] and len(k) == len(v) == cu_k[-1]
    assert max_q == int(cu_q.diff().max()) and max_k == int(cu_k.diff().max())
    out = torch.empty_like(q)
    for rows, columns in _pairs(cu_q, cu_k):
        weights = _weights(q, k, rows, columns, scale, window_size[0])
        out[rows] = (weights @ _repeat(v[columns], q.shape[1])).transpose(0, 1)
    return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float), torch.zeros(2, dtype=torch.uint64)


def _backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None):
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    factor, group = scale or q.shape[-1] ** -0.5, (k.shape[1], q.shape[1] // k.shape[1])
    for rows, columns in _pairs(cu_q, cu_k):
        weights, d_out = _weights(q, k, rows, columns, scale, window_size[0]), grad[rows].transpose(0, 1)
        d_weights = d_out @ _repeat(v[columns], q.shape[1]).transpose(1, 2)
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * factor
        grad_q[rows] = (d_scores @ _repeat(k[columns], q.shape[1])).transpose(0, 1)
        for target, each in ((grad_k, d_scores.transpose(1, 2) @ q[rows].transpose(0, 1)),
                             (grad_v, weights.transpose(1, 2) @ d_out)):  # fmt: skip
            target[columns] = each.unflatten(0, group).sum(1).transpose(0, 1)
    return grad_q, grad_k, grad_v


varlen._varlen_attn.register_kernel("cpu")(_forward)
varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
