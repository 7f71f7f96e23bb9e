"""What a lone rank need not do."""

from functools import partial

import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def skip_reduction(engine) -> None:
    """Spare a lone rank the reduction of its gradients, which DeepSpeed copies into a buffer and back.

    At ZeRO-0 in float32, and at ZeRO-1 in bfloat16 with gradients summed in float32, where gradients of the parameters
    need not be zeroed between backwards, either. Others do more than reduce on the way, and are left alone.
    """
    if dist.get_world_size() > 1:
        return
    plain = not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled())
    summed = isinstance(engine.optimizer, BF16_Optimizer)
    if plain or summed:
        engine.enable_backward_allreduce = False
    if summed:
        engine.optimizer.backward_prologue = partial(engine.optimizer.clear_lp_grads, set_to_none=True)
