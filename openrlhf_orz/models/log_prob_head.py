"""Log-probs and entropy of chosen tokens from hidden states, with only a tile of the logits in memory at a time.

Notation: N tokens, D hidden size, V vocabulary.
"""

import inspect
import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

# openrlhf_orz/plan/costs.py repeats both, and the tiles, so that a plan needs no torch
TILE_LOGITS = {"cpu": 2**22, "cuda": 2**27}  # logits of a tile: 16 MiB in float32 on CPU, 512 MiB on CUDA
KEPT_LOGITS = {"cpu": 2**27, "cuda": 0}  # a pack with at most so many logits in half precision keeps all for backward

NO_FP32_HEAD = (
    "caps or scales its logits, or has no plain output head: its logits are rounded first. Leave the flag out"
)


def tile_shape(tokens: int, vocabulary: int, elements: int) -> tuple[int, int]:
    """Return the (tokens, vocabulary) of a tile of at most ``elements`` logits, as square as possible.

    The gradients of hidden states and of the weight are sums over tiles. Square tiles read and write them least. A
    GPU's quick products in half precision need rows that begin at multiples of 16 bytes, and tiles of 128.
    """
    rows = _cut(tokens, max(math.isqrt(elements), elements // vocabulary))
    return rows, _cut(vocabulary, elements // rows)


def _cut(whole: int, most: int) -> int:
    """The size of the parts that ``whole`` is cut into, at most ``most``; a multiple of 128 if that is above it."""
    if whole <= most:
        return max(1, whole)
    return most - most % 128 if most > 128 else max(1, most)


class _LogProbs(torch.autograd.Function):
    """Recompute each tile's logits in the backward, so that neither pass holds (N, V); with ``keep``, keep them."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, temperature, elements, with_entropy, keep, fp32):
        wide = _wide(hidden_ND.dtype)
        log_probs_N = hidden_ND.new_zeros(labels_N.shape, dtype=wide)  # until the end: the label's logit
        lse_N, entropy_N = torch.full_like(log_probs_N, -torch.inf), torch.zeros_like(log_probs_N)
        kept = []
        for rows, columns in _tiles(len(labels_N), len(weight_VD), elements):
            product = _product(hidden_ND[rows], weight_VD, bias_V, columns, fp32)
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
        ctx.temperature, ctx.elements, ctx.with_entropy, ctx.fp32 = temperature, elements, with_entropy, fp32
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_log_probs_N, grad_entropy_N):
        hidden_ND, weight_VD, bias_V, labels_N, lse_N, entropy_N, *kept = ctx.saved_tensors
        entropy_counts = ctx.with_entropy and bool(grad_entropy_N.any())
        sums = [_Sum(x, needed) for x, needed in zip((hidden_ND, weight_VD, bias_V), ctx.needs_input_grad)]
        grad_hidden_ND, grad_weight_VD, grad_bias_V = sums
        for i, (rows, columns) in enumerate(_tiles(len(labels_N), len(weight_VD), ctx.elements)):
            product = kept[i] if kept else _product(hidden_ND[rows], weight_VD, bias_V, columns, ctx.fp32)
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
            if grad_hidden_ND.needed:
                grad_hidden_ND.add(rows, columns.start == 0, grad @ weight_VD[columns])
            if grad_weight_VD.needed:
                grad_weight_VD.add(columns, rows.start == 0, grad.t() @ hidden_ND[rows])
            if grad_bias_V.needed:
                grad_bias_V.add(columns, rows.start == 0, grad.sum(0))
        return (*(total.result() for total in sums), None, None, None, None, None, None)


class _Sum:
    """A gradient of ``like``, summed tile by tile.

    It has the dtype of ``like`` while each part has one summand. With more it is float32, as half precision would lose
    small summands.
    """

    def __init__(self, like: torch.Tensor | None, needed: bool):
        self.like, self.needed = like, needed
        self.total: torch.Tensor | None = None

    def add(self, part: slice, first: bool, summand: torch.Tensor) -> None:
        """Add ``summand`` to ``part`` of the gradient; ``first``: there is nothing in that part yet."""
        if self.total is None:
            assert self.like is not None
            self.total = torch.empty_like(self.like)
        if first:
            self.total[part] = summand
            return
        if self.total.dtype != _wide(self.total.dtype):
            self.total = self.total.to(_wide(self.total.dtype))
        self.total[part] += summand

    def result(self) -> torch.Tensor | None:
        if self.like is None or not self.needed:
            return None
        return torch.zeros_like(self.like) if self.total is None else self.total.to(self.like.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _tiles(tokens: int, vocabulary: int, elements: int) -> Iterator[tuple[slice, slice]]:
    rows, columns = tile_shape(tokens, vocabulary, elements)
    for start in range(0, tokens, rows):
        for first in range(0, vocabulary, columns):
            yield slice(start, min(start + rows, tokens)), slice(first, min(first + columns, vocabulary))


def _product(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, columns: slice, fp32: bool = False
) -> torch.Tensor:
    """Logits of these columns; with ``fp32`` no logit is rounded to half precision, as vLLM's float32 head does it."""
    weight_VD, bias_V = weight_VD[columns], None if bias_V is None else bias_V[columns]
    wide = _wide(hidden_ND.dtype)
    if not fp32 or hidden_ND.dtype == wide:
        return F.linear(hidden_ND, weight_VD, bias_V)
    if hidden_ND.is_cuda:  # products of half precision are exact in float32: only their sums are written so
        logits_NV = torch.mm(hidden_ND, weight_VD.t(), out_dtype=wide)
        return logits_NV if bias_V is None else logits_NV.add_(bias_V)
    return F.linear(hidden_ND.to(wide), weight_VD.to(wide), None if bias_V is None else bias_V.to(wide))


def _logits(product: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = product.to(_wide(product.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _inside(labels_N: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each label's column in the tile (any column, if the label lies outside) and whether it lies inside."""
    here_N = (labels_N >= columns.start) & (labels_N < columns.stop)
    return (labels_N - columns.start).clamp(0, columns.stop - columns.start - 1), here_N


def keeps_logits(tokens: int, weight_VD: torch.Tensor) -> bool:
    """Whether all logits are kept for the backward: only in half precision, and only if they are few."""
    half = weight_VD.dtype != _wide(weight_VD.dtype)
    return half and tokens * len(weight_VD) <= KEPT_LOGITS.get(weight_VD.device.type, 0)


@cache
def liger():
    """Return Liger's fused linear cross-entropy (an autograd function), or None if it is missing or too old.

    Versions without ``token_grad_output`` compute the weight's gradient of an unweighted sum, which is wrong for a
    loss that weighs tokens.
    """
    try:
        from liger_kernel.ops import fused_linear_cross_entropy as fused
    except ImportError:
        return None
    if "token_grad_output" not in inspect.signature(fused.fused_linear_cross_entropy_forward).parameters:
        return None
    return fused.LigerFusedLinearCrossEntropyFunction


def liger_serves(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, temperature: float, with_entropy: bool) -> bool:
    """Whether Liger can be used. It knows no entropy and no temperature, and would keep a gathered weight (ZeRO-3)."""
    plain = temperature == 1.0 and not with_entropy and not hasattr(weight_VD, "ds_id")
    return hidden_ND.is_cuda and plain and liger() is not None


def liger_log_probs(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, bias_V: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-probs (N,) in float32 by Liger's kernel, which works in chunks and does not keep their logits either."""
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
    fp32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log softmax(logits / temperature) at the labels and the entropy of that distribution, in nats.

    On CUDA, Liger's kernel is used where it is installed and can do it.

    Args:
        hidden_ND, weight_VD, bias_V: one floating dtype; logits are float32 after the product, with ``fp32`` before.
        labels_N: (N,) long.
        elements: logits of a tile; by default TILE_LOGITS of the device.
        with_entropy: if not set, entropies are 0 and cost nothing.

    Returns:
        log-probs (N,), entropy (N,), at least float32, differentiable in hidden states, weight and bias.
    """
    if elements is None and not fp32 and liger_serves(hidden_ND, weight_VD, temperature, with_entropy):
        log_probs_N = liger_log_probs(hidden_ND, weight_VD, labels_N, bias_V)
        return log_probs_N, torch.zeros_like(log_probs_N)
    elements = elements or TILE_LOGITS.get(hidden_ND.device.type, 2**27)
    keep = torch.is_grad_enabled() and not fp32 and keeps_logits(len(labels_N), weight_VD)
    return _LogProbs.apply(hidden_ND, weight_VD, bias_V, labels_N, temperature, elements, with_entropy, keep, fp32)


class LogProbHead(nn.Module):
    """An output head that, while ``labels`` are set, returns log-probs and entropies (B, N, 2) instead of logits.

    DeepSpeed's tensor parallelism would put a layer of its own in its place, by its class or by its name. As no
    ``nn.Linear`` that says ``replaced`` it stays, whole on each rank, as tied heads do.
    """

    replaced = True
    labels: torch.Tensor | None = None  # (B, N) long
    temperature: float = 1.0
    with_entropy: bool = False

    def __init__(self, head: nn.Linear, fp32: bool = False):
        super().__init__()
        self.fp32 = fp32
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight = head.weight
        self.register_parameter("bias", head.bias)

    def forward(self, hidden_BND: torch.Tensor) -> torch.Tensor:
        if self.labels is None:
            return _product(hidden_BND.flatten(0, -2), self.weight, self.bias, slice(None), self.fp32).unflatten(
                0, hidden_BND.shape[:-1]
            )
        results = log_probs_and_entropy(
            hidden_BND.flatten(0, -2), self.weight, self.labels.flatten(), self.bias, self.temperature,
            with_entropy=self.with_entropy, fp32=self.fp32,
        )  # fmt: skip
        return torch.stack(results, -1).view(*hidden_BND.shape[:-1], 2)


def install_log_prob_head(model: PreTrainedModel, fp32: bool = False) -> LogProbHead | None:
    """Replace the model's output head by a LogProbHead, with ``fp32`` of logits that are never in half precision.

    Returns None, and changes nothing, if logits are more than the output of a plain linear layer: some architectures
    cap or scale them, and heads may be quantised or carry an adapter; or if the model cannot leave tokens out.
    """
    head = model.get_output_embeddings()
    leaves_out = "logits_to_keep" in inspect.signature(model.forward).parameters
    if type(head) is not nn.Linear or not leaves_out or rescales_logits(model.config.get_text_config().to_dict()):
        return None
    # the parameters themselves: weight tying, their names and ZeRO-3's gathering stay
    new = LogProbHead(head, fp32).train(head.training)
    model.set_output_embeddings(new)
    return new


def rescales_logits(config: dict) -> bool:
    """Whether a configuration has a number for its logits or its head (a cap, a scale), under whatever name."""
    return any(
        ("logit" in name or "lm_head" in name) and not name.startswith("attn_")
        and isinstance(value, (int, float)) and value not in (0, 1)
        for name, value in config.items()
    )  # fmt: skip
