"""FLOPs and bytes of one model on one rank: FLOPs of a pass, activations of a pass, and the states it trains.

The FLOPs are the one count that plans and benchmarks share. The activations are what autograd keeps of a Llama-like
layer of transformers with SDPA or varlen attention, and what the head in ``models/log_prob_head.py`` holds. The states
(weights, gradients, optimizer) are those of DeepSpeed 0.19 by ZeRO stage and offload; the sizes of its buckets are
DeepSpeed's defaults, which OpenRLHF's "auto" leaves in place.

Notation as in shapes.py; b bytes of an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf_orz.plan.shapes import Shape

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# models/log_prob_head.py: logits of one tile, and most logits that are kept in half precision; a test compares them
LOGITS_PER_TILE = {"cpu": 2**22, "cuda": 2**27}
LOGITS_KEPT = {"cpu": 2**27, "cuda": 0}
REDUCE_BUCKET = 500_000_000  # elements; ZeRO-2 and ZeRO-3
LIVE_PARAMETERS = 1_000_000_000  # elements that ZeRO-3 gathers at most
SUB_GROUP = 1_000_000_000  # elements that ZeRO-3 steps at once


def forward_flops(shape: Shape, lengths: list[int], responses: list[int]) -> dict[str, int]:
    """FLOPs of one forward over sequences of ``lengths`` tokens, of which ``responses`` tokens get logits.

    ``body`` is the layers, with half of the attention's square because it is causal; ``head`` is the output head. A
    product of a token with a weight is 2 FLOPs. The embedding is a look-up and costs none.
    """
    weights = shape.layer_products()
    body = sum(2 * weights * n + 2 * shape.layers * shape.queries * n * n for n in lengths)
    return {"body": body, "head": 2 * shape.hidden * shape.vocabulary * sum(responses)}


def decode_flops(shape: Shape, tokens: float, context: float) -> float:
    """FLOPs of generating ``tokens`` tokens, each attending to ``context`` tokens on average, head included."""
    return tokens * (
        2 * (shape.layer_products() + shape.hidden * shape.vocabulary) + 4 * shape.layers * shape.queries * context
    )


def _norm_activations(width: float, b: int) -> float:
    """Bytes that RMSNorm keeps of a token: input in float32, the input over its root mean square, and the result."""
    return width * (4 + 2 * b)


def layer_activations(shape: Shape, b: int, tensor_parallel: int = 1) -> float:
    """Bytes of a token that one layer keeps for its backward (the mean over layers where some have experts).

    Attention keeps queries, keys, values, the output, and the input of the output projection. The MLP keeps the gate
    before and after its activation, the up projection, and their product. Each expert of a token keeps the same, and
    its own copy of the input.
    """
    attention: float = b * (3 * shape.queries + 2 * shape.keys)
    if shape.qk_norm:
        attention += _norm_activations(shape.queries + shape.keys, b)
    moe = shape.moe_layers / shape.layers
    experts = shape.active_experts * (4 * shape.expert_intermediate + 2 * shape.hidden) + 4 * shape.shared_intermediate
    mlp = b * ((1 - moe) * 4 * shape.intermediate + moe * experts)
    return 2 * _norm_activations(shape.hidden, b) + (attention + mlp) / tensor_parallel


def _temporary_activations(shape: Shape, b: int, tensor_parallel: int) -> float:
    """Bytes of a token that the running layer needs only while it runs: gradients in a backward, else results."""
    width = max(shape.intermediate, shape.active_experts * shape.expert_intermediate + shape.shared_intermediate)
    return 4 * shape.hidden * b + 3 * width * b / tensor_parallel


def training_activations(shape: Shape, b: int, tokens: int, checkpointing: bool, tensor_parallel: int = 1) -> float:
    """Peak bytes in a forward and backward over ``tokens`` tokens, without the output head."""
    kept = layer_activations(shape, b, tensor_parallel)
    # embedding, last norm, and the hidden states selected for the head
    ends = shape.hidden * b * 2 + _norm_activations(shape.hidden, b)
    # with checkpointing the input of each layer, and one layer computed again
    kept = kept + shape.layers * shape.hidden * b if checkpointing else shape.layers * kept
    return tokens * (kept + ends + _temporary_activations(shape, b, tensor_parallel))


def forward_activations(shape: Shape, b: int, tokens: int, tensor_parallel: int = 1) -> float:
    """Peak bytes in a forward without gradients: the residual stream, one norm, and one layer's widest products."""
    return tokens * (_norm_activations(shape.hidden, b) + _temporary_activations(shape, b, tensor_parallel))


def tile_shape(tokens: int, vocabulary: int, elements: int) -> tuple[int, int]:
    """As models/log_prob_head.py has it, which needs torch."""

    def cut(whole: int, most: int) -> int:
        return max(1, whole) if whole <= most else most - most % 128 if most > 128 else max(1, most)

    rows = cut(tokens, max(math.isqrt(elements), elements // vocabulary))
    return rows, cut(vocabulary, elements // rows)


def head_activations(shape: Shape, b: int, tokens: int, device: str, gradient: bool, fp32: bool = False) -> float:
    """Bytes of the log-prob head, which computes logits tile by tile; with ``gradient`` also those of its backward.

    A logit is held as the product gives it, in float32, and with ``gradient`` as its gradient in the parameters'
    dtype. The gradient of the head's weight is summed in float32 and then cast, unless one tile holds all tokens. On
    a CPU all logits of a small pack are kept for the backward, in half precision. With ``fp32`` (``--orz.fp32_head``)
    the product is in float32, and a CPU makes it of float32 copies of a tile's inputs.
    """
    elements = LOGITS_PER_TILE[device]
    rows, columns = tile_shape(tokens, shape.vocabulary, elements)
    half = 0 if b == 4 else b
    each = 4 + (0 if fp32 else half) + (half if gradient else 4)
    logits = rows * columns * each
    weight = shape.vocabulary * shape.hidden * (4 + half if rows < tokens else b) if gradient else 0
    if fp32:
        return logits + weight + (4 * shape.hidden * (rows + columns) if half and device == "cpu" else 0)
    kept = half * tokens * shape.vocabulary
    return logits + weight + (kept if gradient and kept <= half * LOGITS_KEPT[device] else 0)


def value_activations(outputs: int, tokens: int, gradient: bool) -> float:
    """Bytes of a critic's K outputs a token (--orz.value_loss hl_gauss): of one output or none they are not counted.

    An output is held as the head gives it, masked, and as softmax in float32: 10 bytes. The loss holds targets in
    float64 on the way: 37 bytes, counted by torch's profiler at 8,192 tokens of 51 and 101 bins, in both dtypes.
    """
    return tokens * outputs * (37 if gradient else 10) if outputs > 1 else 0.0


@dataclass(frozen=True)
class States:
    """Bytes of one rank.

    ``weights``, ``optimizer``: always on the device, unless offloaded. ``gradients``: from the first backward to the
    step. ``gathered``: weights of other ranks, during a pass. ``bucket``: during a backward. ``step``: while the
    optimizer steps. ``host``: what is offloaded to the host.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    bucket: float
    step: float
    host: float


def trained_states(parameters: int, args: SimpleNamespace, ranks: int, frozen: int = 0) -> States:
    """States of a model with ``parameters`` elements that ``ranks`` ranks train; ZeRO shards over all of them.

    ``frozen`` of them have weights alone.
    """
    tensor_parallel, stage = args.ds.tensor_parallel_size, args.ds.zero_stage
    p, n = parameters / tensor_parallel, max(1, ranks // tensor_parallel)
    trained = (parameters - frozen) / tensor_parallel
    b = ITEMSIZE[args.ds.param_dtype]
    grad = 4 if args.ds.grad_accum_dtype == "fp32" else b
    shard = 1 / n
    master, moments = (0 if b == 4 and stage == 0 else 4), 8
    optimizer = trained * (master + moments) * (shard if stage > 0 else 1)
    weights = p * b * (shard if stage == 3 else 1)
    if stage == 3 and args.ds.zpg > 1:  # ZeRO++ keeps a second copy in a group of ranks
        weights += p * b / args.ds.zpg
    # bfloat16 at ZeRO-1: float32 sums are kept next to the gradients of each backward; the step reads them directly
    summed = stage == 1 and args.ds.param_dtype == "bf16" and grad == 4 and not args.ds.adam_offload
    gradients = trained * (grad + b * summed) * (shard if stage >= 2 else 1)
    bucket = min(trained, REDUCE_BUCKET) * b * (2 if args.ds.overlap_comm else 1) if stage >= 1 and not summed else 0
    # float32 gradients for the step: those of the rank's shard; ZeRO-3 steps one group of parameters at a time
    if stage == 3:
        step = 4 * min(trained * shard, SUB_GROUP)
    elif summed:
        step = 0
    else:
        step = 4 * trained * (shard if stage else (b == 2))
    host = 0.0
    if args.ds.adam_offload and stage > 0:  # the float32 gradients that the step reads are on the host, too
        host, optimizer, step = optimizer + 4 * trained * shard, 0, 0
        if stage >= 2:
            gradients = 0
    gathered = b * min(LIVE_PARAMETERS, p) if stage == 3 and n > 1 else 0
    return States(weights, gradients, optimizer, gathered, bucket, step, host)


def reference_states(parameters: int, args: SimpleNamespace, ranks: int, offload: bool) -> States:
    """States of a model that only runs forward: whole on each rank below ZeRO-3; in it ``offload`` leaves the GPU."""
    tensor_parallel = args.ds.tensor_parallel_size
    p, n = parameters / tensor_parallel, max(1, ranks // tensor_parallel)
    b = ITEMSIZE[args.ds.param_dtype]
    stage3 = args.ds.zero_stage == 3
    offload = offload and stage3  # below, DeepSpeed offloads no weights
    weights = p * b / (n if stage3 else 1)
    gathered = b * min(LIVE_PARAMETERS, p) if stage3 and (n > 1 or offload) else 0
    return States(0 if offload else weights, 0, 0, gathered, 0, 0, weights if offload else 0)
