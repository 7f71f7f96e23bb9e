"""Attention with a soft cap on its scores (Gemma 2) or sinks (gpt-oss), which PyTorch's attention does not have.

It is written out, a block of queries after the other. A block's scores are computed again in the backward pass, so
that memory grows with the length and not with its square.
Notation: N sequences of L tokens, S keys, H heads, K key heads, G = H / K, D head size.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

QUERIES = 256  # of a block


def soft_attention(
    q_NHLD: torch.Tensor,
    k_NKSD: torch.Tensor,
    v_NKSD: torch.Tensor,
    scale: float | None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Return softmax(c tanh(scale q k^T / c)) v, (N, H, L, D), with a sink as one more score without a value.

    Args:
        softcap: c; None for no cap.
        allowed: bool, broadcast to (N, 1, L, S): which keys a query may see. None: those up to itself.
        window: how many of these it sees, itself included; None for all.
    """
    q, k, v = q_NHLD, k_NKSD[:, :, None], v_NKSD[:, :, None]
    q = q.unflatten(1, (k.shape[1], -1))
    sinks = None if sinks_H is None else sinks_H.view(1, *q.shape[1:3], 1, 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    length = q.shape[3]
    key_positions = torch.arange(k.shape[3], device=q.device)
    outs = []
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        if allowed is None:
            distance = key_positions[start:end, None] - key_positions[:end]
            mask, keys = distance >= 0, slice(0, end)
            if window is not None:
                mask &= distance < window
        else:
            mask, keys = allowed[..., start:end, :].unsqueeze(1), slice(None)
        given = (q[..., start:end, :], k[..., keys, :], v[..., keys, :], mask, sinks, scale, dropout, softcap)
        again = torch.is_grad_enabled() and length > QUERIES
        outs.append(checkpoint(_block, *given, use_reentrant=False) if again else _block(*given))
    return torch.cat(outs, 3).flatten(1, 2)


def _block(q, k, v, mask, sinks, scale, dropout, softcap) -> torch.Tensor:
    scores = (q @ k.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    if sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights.to(q.dtype), dropout) @ v
