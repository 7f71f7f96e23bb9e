"""Log-probs and entropy of chosen tokens straight from hidden states: the logits exist only a tile at a time.

Notation: N tokens, D hidden size, V vocabulary.
"""

import inspect
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}  # logits held at once: 16 MiB in float32 on CPU, 512 MiB on CUDA
KEPT_ELEMENTS = {"cpu": 2**27, "cuda": 0}  # of half-precision logits: a pack with no more keeps them for the backward


def tile_shape(tokens: int, vocabulary: int, elements: int) -> tuple[int, int]:
    """(tokens, vocabulary) of a tile of at most ``elements`` logits, as square as it can be.

    The gradients of hidden states and of the weight are sums over tiles: so both are read and written least.
    """
    rows = max(1, min(tokens, max(math.isqrt(elements), elements // vocabulary)))
    return rows, max(1, min(vocabulary, elements // rows))


class _LogProbs(torch.autograd.Function):
    """Recomputes a tile's logits in the backward pass, so that neither pass holds (N, V), unless ``keep`` is set."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, temperature, elements, with_entropy, keep):
        wide = _wide(hidden_ND.dtype)
        log_probs_N = hidden_ND.new_zeros(labels_N.shape, dtype=wide)  # the label's logit at first
        lse_N, entropy_N = torch.full_like(log_probs_N, -torch.inf), torch.zeros_like(log_probs_N)
        kept = []
        for rows, columns in _tiles(len(labels_N), len(weight_VD), elements):
            product = _product(hidden_ND[rows], weight_VD, bias_V, columns)
            if keep:
                kept.append(product)
            logits = _logits(product, temperature)
            before, lse_N[rows] = lse_N[rows].clone(), torch.logaddexp(lse_N[rows], logits.logsumexp(-1))
            labels, here = _inside(labels_N[rows], columns)
            log_probs_N[rows] += torch.where(here, logits.gather(1, labels[:, None])[:, 0], 0)
            if with_entropy:  # the mean logit so far: H = lse - sum p z
                p = (logits - lse_N[rows, None]).exp_()
                entropy_N[rows] = entropy_N[rows] * (before - lse_N[rows]).exp() + (p * logits).sum(-1)
        log_probs_N -= lse_N
        if with_entropy:
            entropy_N = lse_N - entropy_N
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, lse_N, entropy_N, *kept)
        ctx.temperature, ctx.elements, ctx.with_entropy = temperature, elements, with_entropy
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_log_probs_N, grad_entropy_N):
        hidden_ND, weight_VD, bias_V, labels_N, lse_N, entropy_N, *kept = ctx.saved_tensors
        entropy_counts = ctx.with_entropy and bool(grad_entropy_N.any())
        sums = [_Sum(x, needed) for x, needed in zip((hidden_ND, weight_VD, bias_V), ctx.needs_input_grad)]
        grad_hidden_ND, grad_weight_VD, grad_bias_V = sums
        for i, (rows, columns) in enumerate(_tiles(len(labels_N), len(weight_VD), ctx.elements)):
            product = kept[i] if kept else _product(hidden_ND[rows], weight_VD, bias_V, columns)
            log_p = _logits(product, ctx.temperature).sub_(lse_N[rows, None])
            # d log p_y / dz = onehot_y - p;  dH / dz = -p (log p + H)
            factor = -grad_log_probs_N[rows, None]
            if entropy_counts:
                grad = log_p.exp().mul_(factor - grad_entropy_N[rows, None] * (log_p + entropy_N[rows, None]))
            else:
                grad = log_p.exp_().mul_(factor)
            labels, here = _inside(labels_N[rows], columns)
            grad.scatter_add_(1, labels[:, None], -factor * here[:, None])
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden_ND.dtype)
            grad_hidden_ND.add(rows, columns.start == 0, lambda: grad @ weight_VD[columns])
            grad_weight_VD.add(columns, rows.start == 0, lambda: grad.t() @ hidden_ND[rows])
            grad_bias_V.add(columns, rows.start == 0, lambda: grad.sum(0))
        return (*(total.result() for total in sums), None, None, None, None, None)


class _Sum:
    """A gradient, in its tensor's dtype where each part has one summand, else in float32: later ones would be lost."""

    def __init__(self, like: torch.Tensor | None, needed: bool):
        self.like, self.needed, self.total = like, needed, None

    def add(self, part: slice, first: bool, summand) -> None:
        if not self.needed:
            return
        value = summand()
        if self.total is None:
            self.total = torch.empty_like(self.like)
        if first:
            self.total[part] = value
            return
        if self.total.dtype != _wide(self.total.dtype):
            self.total = self.total.to(_wide(self.total.dtype))
        self.total[part] += value

    def result(self) -> torch.Tensor | None:
        if not self.needed:
            return None
        return torch.zeros_like(self.like) if self.total is None else self.total.to(self.like.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _tiles(tokens: int, vocabulary: int, elements: int):
    rows, columns = tile_shape(tokens, vocabulary, elements)
    for start in range(0, tokens, rows):
        for first in range(0, vocabulary, columns):
            yield slice(start, min(start + rows, tokens)), slice(first, min(first + columns, vocabulary))


def _product(hidden, weight, bias, columns):
    return F.linear(hidden, weight[columns], None if bias is None else bias[columns])


def _logits(product, temperature):
    logits = product.to(_wide(product.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _inside(labels, columns):
    """Where in a tile each token's label is (anywhere, if not in it), and whether it is in it."""
    here = (labels >= columns.start) & (labels < columns.stop)
    return (labels - columns.start).clamp(0, columns.stop - columns.start - 1), here


def keeps_logits(tokens: int, weight_VD: torch.Tensor) -> bool:
    """Whether all logits are kept for the backward: in half precision, as the product gave them, and few of them."""
    half = weight_VD.dtype != _wide(weight_VD.dtype)
    return half and tokens * len(weight_VD) <= KEPT_ELEMENTS.get(weight_VD.device.type, 0)


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
    elements: int | None = None,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature) at the labels and the entropy of that distribution, in nats.

    On CUDA by Liger's kernel where that is installed and serves.

    Args:
        hidden_ND, weight_VD, bias_V: of one floating dtype; logits are in float32 after the product.
        labels_N: (N,) long.
        elements: logits held at once; default by device.
        with_entropy: without it the entropies are 0 and cost nothing.

    Returns:
        log-probs (N,), entropy (N,), at least float32, differentiable in hidden states, weight and bias.
    """
    if elements is None and liger_serves(hidden_ND, weight_VD, temperature, with_entropy):
        log_probs_N = liger_log_probs(hidden_ND, weight_VD, labels_N, bias_V)
        return log_probs_N, torch.zeros_like(log_probs_N)
    elements = elements or TILE_ELEMENTS.get(hidden_ND.device.type, 2**27)
    keep = torch.is_grad_enabled() and keeps_logits(len(labels_N), weight_VD)
    return _LogProbs.apply(hidden_ND, weight_VD, bias_V, labels_N, temperature, elements, with_entropy, keep)


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
