"""Bytes of weights, gradients and optimizer of one rank under DeepSpeed 0.19, by ZeRO stage and offload.

The sizes of buckets are DeepSpeed's defaults, which OpenRLHF's "auto" leaves in place.
"""

from __future__ import annotations

from dataclasses import dataclass

REDUCE_BUCKET = 500_000_000  # elements; stage 3 and 2
LIVE_PARAMETERS = 1_000_000_000  # elements that stage 3 gathers at most
SUB_GROUP = 1_000_000_000  # elements that stage 3 steps at once
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class States:
    """Bytes on the device, and of the optimizer where it is offloaded on the host.

    weights, gradients, optimizer: there all the time (gradients: from the first backward to the step). gathered: while
    a pass runs, besides. bucket: while a backward runs. step: while the optimizer steps. host: offloaded.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    bucket: float
    step: float
    host: float


def trained(parameters: int, args, ranks: int) -> States:
    """Of a model of so many ``parameters`` that is trained on ``ranks`` ranks (ZeRO shards over all of them)."""
    tensor_parallel, stage = args.ds.tensor_parallel_size, args.ds.zero_stage
    p, n = parameters / tensor_parallel, max(1, ranks // tensor_parallel)
    b = ITEMSIZE[args.ds.param_dtype]
    grad = 4 if args.ds.grad_accum_dtype == "fp32" else b
    shard = 1 / n
    on_host = args.ds.adam_offload and stage > 0
    master, moments = (0 if b == 4 and stage == 0 else 4), 8
    optimizer = p * (master + moments) * (shard if stage > 0 else 1)
    weights = p * b * (shard if stage == 3 else 1)
    if stage == 3 and args.ds.zpg > 1:  # ZeRO++ keeps a second copy within a group
        weights += p * b / args.ds.zpg
    # in bfloat16 at ZeRO-1, float32 sums stand beside the gradients of each backward, and the step reads them in place
    summed = stage == 1 and args.ds.param_dtype == "bf16" and grad == 4 and not args.ds.adam_offload
    gradients = p * (grad + b * summed) * (shard if stage >= 2 else 1)
    bucket = min(p, REDUCE_BUCKET) * b * (2 if args.ds.overlap_comm else 1) if stage >= 1 and not summed else 0
    # gradients in float32 for the step: of the rank's part, in stage 3 of one group of parameters
    if stage == 3:
        step = 4 * min(p * shard, SUB_GROUP)
    else:
        step = 0 if summed else 4 * p * (shard if stage else (b == 2))
    host = 0.0
    if on_host:  # with it the float32 gradients that the step reads
        host, optimizer, step = optimizer + 4 * p * shard, 0, 0
        if stage >= 2:
            gradients = 0
    gathered = b * min(LIVE_PARAMETERS, p) if stage == 3 and n > 1 else 0
    return States(weights, gradients, optimizer, gathered, bucket, step, host)


def frozen(parameters: int, args, ranks: int, offload: bool) -> States:
    """Of a model that only runs forward (the reference): whole below stage 3."""
    tensor_parallel = args.ds.tensor_parallel_size
    p, n = parameters / tensor_parallel, max(1, ranks // tensor_parallel)
    b = ITEMSIZE[args.ds.param_dtype]
    stage3 = args.ds.zero_stage == 3
    weights = p * b / (n if stage3 else 1)
    gathered = b * min(LIVE_PARAMETERS, p) if stage3 and (n > 1 or offload) else 0
    return States(0 if offload else weights, 0, 0, gathered, 0, 0, weights if offload else 0)
