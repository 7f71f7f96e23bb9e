"""Bytes that a pass over a pack of T tokens holds, as the code in ``models/`` runs it.

Counted from what autograd keeps of a Llama-like layer of transformers with SDPA or varlen attention. Notation as in
shapes.py; b bytes of an element.
"""

import math

from openrlhf_orz.plan.shapes import Shape

# models/log_prob_head.py: logits held at once, and those kept in half precision; a test compares them
TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
KEPT_ELEMENTS = {"cpu": 2**27, "cuda": 0}


def _norm(width: float, b: int) -> float:
    """RMSNorm: its input in float32, the input over its root mean square, and the result."""
    return width * (4 + 2 * b)


def layer(shape: Shape, b: int, tensor_parallel: int = 1) -> float:
    """Kept by one layer for its backward, bytes a token (the mean over layers where some have experts).

    Attention: queries, keys, values and what comes out, and the input of the output projection. MLP: gate before and
    after its activation, up, and their product. A token's experts each keep that for themselves, and their input.
    """
    attention = b * (3 * shape.queries + 2 * shape.keys)
    if shape.qk_norm:
        attention += _norm(shape.queries + shape.keys, b)
    moe = shape.moe_layers / shape.layers
    experts = shape.active_experts * (4 * shape.expert_intermediate + 2 * shape.hidden) + 4 * shape.shared_intermediate
    mlp = b * ((1 - moe) * 4 * shape.intermediate + moe * experts)
    return 2 * _norm(shape.hidden, b) + (attention + mlp) / tensor_parallel


def working(shape: Shape, b: int, tensor_parallel: int = 1) -> float:
    """Of the layer at hand and not kept: gradients in a backward, results in a forward; bytes a token."""
    width = max(shape.intermediate, shape.active_experts * shape.expert_intermediate + shape.shared_intermediate)
    return 4 * shape.hidden * b + 3 * width * b / tensor_parallel


def training(shape: Shape, b: int, tokens: int, checkpointing: bool, tensor_parallel: int = 1) -> float:
    """Largest in a forward and backward over ``tokens`` tokens, without the output head."""
    kept = layer(shape, b, tensor_parallel)
    ends = shape.hidden * b * 2 + _norm(shape.hidden, b)  # embedding, last norm, hidden states picked for the head
    if checkpointing:  # the input of each layer, and one layer computed again
        kept = kept + shape.layers * shape.hidden * b
    else:
        kept = shape.layers * kept
    return tokens * (kept + ends + working(shape, b, tensor_parallel))


def forward(shape: Shape, b: int, tokens: int, tensor_parallel: int = 1) -> float:
    """Largest in a forward without gradients: the residual stream, one norm, one layer's widest products."""
    return tokens * (_norm(shape.hidden, b) + working(shape, b, tensor_parallel))


def head(shape: Shape, b: int, tokens: int, device: str, gradient: bool) -> float:
    """The log-prob head in tiles: logits of a tile, and with ``gradient`` that of the head's weight.

    Logits: as the product gives them, in float32, and their gradient in the parameters' dtype. The weight's gradient
    is summed in float32, and then handed on in the parameters' dtype, where a tile does not hold all tokens. All logits
    of a small pack are kept for the backward, in half precision.
    """
    elements = TILE_ELEMENTS[device]
    rows = min(tokens, max(math.isqrt(elements), elements // shape.vocabulary))
    wide = 0 if b == 4 else b
    each = 4 + wide + (wide if gradient else 4)
    logits = min(elements, tokens * shape.vocabulary) * each
    weight = shape.vocabulary * shape.hidden * (4 + wide if rows < tokens else b) if gradient else 0
    kept = wide * tokens * shape.vocabulary
    return logits + weight + (kept if gradient and kept <= wide * KEPT_ELEMENTS[device] else 0)
