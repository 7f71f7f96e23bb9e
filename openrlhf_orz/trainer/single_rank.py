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
        engine.optimizer.get_grads_for_norm = partial(_grads_for_norm, engine)
        _copy_first_gradients(engine.optimizer)


def _grads_for_norm(engine, for_clipping=False):
    """What DeepSpeed takes the norm of: the norm, which the strategy has taken before the step; what it clips: all."""
    return engine.optimizer.fp32_groups_gradients_flat if for_clipping else ([engine._global_grad_norm.view(1)], {})


def _copy_first_gradients(optimizer: BF16_Optimizer) -> None:
    """A step's first gradients are copied where they are summed in float32, not added to zeros by way of a copy.

    So the sums need not be zeroed after each step (twice, by DeepSpeed), but where a parameter got no gradient.
    """
    add = optimizer._update_hp_grad

    def update(parameter, group, index, clear_lp_grads):
        total, has_gradient = optimizer.fp32_groups_gradients[group][index], optimizer.fp32_groups_has_gradients[group]
        if has_gradient[index]:
            return add(parameter, group, index, clear_lp_grads)
        if parameter.grad is None:  # what a step before this one has left
            total.zero_()
            return None
        total.copy_(parameter.grad.view(total.shape))
        parameter._hp_grad = total
        has_gradient[index] = True
        return parameter.grad.zero_() if clear_lp_grads else None

    def clear():
        for has_gradient in optimizer.fp32_groups_has_gradients:
            has_gradient[:] = [False] * len(has_gradient)

    optimizer._update_hp_grad, optimizer.clear_hp_grads = update, clear
