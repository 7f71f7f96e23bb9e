"""What a lone rank need not do."""

import torch.distributed as dist


def skip_reduction(engine) -> None:
    """Spare a lone rank the reduction of its gradients, which DeepSpeed at ZeRO-0 copies into a buffer and back.

    Other stages and dtypes do more than reduce on the way, and are left alone.
    """
    plain = not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled())
    if plain and dist.get_world_size() == 1:
        engine.enable_backward_allreduce = False
