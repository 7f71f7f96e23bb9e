"""Log-probs and entropy of chosen tokens straight from hidden states: the logits exist only a chunk at a time.

Notation: N tokens, D hidden size, V vocabulary.
"""

import inspect
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}  # logits of a chunk: 64 MiB in float32 on CPU, 512 MiB on CUDA


def chunk_rows(vocabulary: int, device_type: str) -> int:
    """Tokens whose logits are held at once."""
    return max(1, CHUNK_ELEMENTS.get(device_type, 2**27) // vocabulary)


class _LogProbs(torch.autograd.Function):
    """Recomputes a chunk's logits in the backward pass, so that neither pass holds (N, V)."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, temperature, rows, with_entropy):
        log_probs_N = hidden_ND.new_empty(labels_N.shape, dtype=_wide(hidden_ND.dtype))
        lse_N, entropy_N = torch.empty_like(log_probs_N), torch.zeros_like(log_probs_N)
        for part in _parts(len(labels_N), rows):
            logits = _logits(hidden_ND[part], weight_VD, bias_V, temperature)
            lse_N[part] = lse = logits.logsumexp(-1)
            log_probs_N[part] = logits.gather(-1, labels_N[part, None])[:, 0] - lse
            if with_entropy:  # H = lse - sum p z
                entropy_N[part] = lse - (logits * (logits - lse[:, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, lse_N, entropy_N)
        ctx.temperature, ctx.rows, ctx.with_entropy = temperature, rows, with_entropy
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_log_probs_N, grad_entropy_N):
        hidden_ND, weight_VD, bias_V, labels_N, lse_N, entropy_N = ctx.saved_tensors
        wide, entropy_counts = lse_N.dtype, ctx.with_entropy and bool(grad_entropy_N.any())
        grad_hidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        # summed over chunks in float32: in bfloat16 later chunks would be rounded away
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide) if ctx.needs_input_grad[2] else None
        for part in _parts(len(labels_N), ctx.rows):
            log_p = _logits(hidden_ND[part], weight_VD, bias_V, ctx.temperature).sub_(lse_N[part, None])
            # d log p_y / dz = onehot_y - p;  dH / dz = -p (log p + H)
            factor = -grad_log_probs_N[part, None]
            if entropy_counts:
                grad = log_p.exp().mul_(factor - grad_entropy_N[part, None] * (log_p + entropy_N[part, None]))
            else:
                grad = log_p.exp_().mul_(factor)
            grad.scatter_add_(1, labels_N[part, None], -factor)
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[part] = grad @ weight_VD
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad.t(), hidden_ND[part])
            if grad_bias_V is not None:
                grad_bias_V += grad.sum(0, dtype=wide)
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None, None, None, None,
        )  # fmt: skip


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _parts(total: int, rows: int):
    return (slice(start, min(start + rows, total)) for start in range(0, total, rows))


def _logits(hidden, weight, bias, temperature):
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(_wide(logits.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _add_product(total, a, b):
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


@cache
def liger():
    """Liger's fused linear cross-entropy (an autograd function), or None where it is missing or of no use.

    Before it knew ``token_grad_output`` its gradient of the weight was that of an unweighted sum: wrong for a loss
    that weighs each token.
    """
    try:
        from liger_kernel.ops import fused_linear_cross_entropy as fused
    except ImportError:
        return None
    if "token_grad_output" not in inspect.signature(fused.fused_linear_cross_entropy_forward).parameters:
        return None
    return fused.LigerFusedLinearCrossEntropyFunction


def liger_serves(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, temperature: float, with_entropy: bool) -> bool:
    """It knows neither entropies nor temperatures, and would keep a weight that ZeRO-3 has gathered."""
    plain = temperature == 1.0 and not with_entropy and not hasattr(weight_VD, "ds_id")
    return hidden_ND.is_cuda and plain and liger() is not None


def liger_log_probs(hidden_ND, weight_VD, labels_N, bias_V=None) -> torch.Tensor:
    """Log-probs (N,) in float32 by Liger's kernel, in chunks whose logits it, too, computes again for the gradient."""
    names = {"_input": hidden_ND, "weight": weight_VD, "target": labels_N, "bias": bias_V, "reduction": "none",
             "accum_dtype": torch.float32}  # fmt: skip
    given = inspect.signature(liger().forward).parameters
    defaults = [names.get(name, each.default) for name, each in given.items() if name != "ctx"]
    return -liger().apply(*defaults)[0]  # autograd functions take no keywords


def log_probs_and_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    temperature: float = 1.0,
    rows: int | None = None,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature) at the labels and the entropy of that distribution, in nats.

    On CUDA by Liger's kernel where that is installed and serves.

    Args:
        hidden_ND, weight_VD, bias_V: of one floating dtype; logits are in float32 after the product.
        labels_N: (N,) long.
        rows: tokens in a chunk; default by device, see ``chunk_rows``.
        with_entropy: without it the entropies are 0 and cost nothing.

    Returns:
        log-probs (N,), entropy (N,), at least float32, differentiable in hidden states, weight and bias.
    """
    if rows is None and liger_serves(hidden_ND, weight_VD, temperature, with_entropy):
        log_probs_N = liger_log_probs(hidden_ND, weight_VD, labels_N, bias_V)
        return log_probs_N, torch.zeros_like(log_probs_N)
    rows = rows or chunk_rows(weight_VD.shape[0], hidden_ND.device.type)
    return _LogProbs.apply(hidden_ND, weight_VD, bias_V, labels_N, temperature, rows, with_entropy)


class LogProbHead(nn.Linear):
    """An output head that, while ``labels`` are set, answers (B, N, 2) with log-probs and entropies for logits.

    It becomes one in place (``install``), so that weight tying, parameter names, saving and DeepSpeed's gathering of
    the weight stay the head's own.
    """

    labels: torch.Tensor | None = None
    temperature, with_entropy = 1.0, False

    def forward(self, hidden):
        if self.labels is None:
            return super().forward(hidden)
        results = log_probs_and_entropy(
            hidden.flatten(0, -2), self.weight, self.labels.flatten(), self.bias, self.temperature,
            with_entropy=self.with_entropy,
        )  # fmt: skip
        return torch.stack(results, -1).view(*hidden.shape[:-1], 2)


def install(model: nn.Module) -> LogProbHead | None:
    """Make the model's output head a LogProbHead; None, and nothing changed, where logits are more than that head's.

    Some architectures cap or scale what their head gives; quantised and adapted heads are no plain linear layers.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    rescaled = any(
        getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if type(head) is not nn.Linear or rescaled:
        return None
    head.__class__ = LogProbHead
    return head
