"""What is changed on live objects of DeepSpeed: its engine, optimizer and scheduler.

``deepspeed.initialize`` chooses and builds both, so a subclass cannot be handed in. Lines are DeepSpeed 0.19.6's;
tests/contracts/test_seams.py holds the signatures. docs/architecture.md names the other places.
"""

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def check_gradients(engine) -> None:
    """Have DeepSpeed look for gradients that are not finite in every dtype.

    For float32 ``_configure_zero_optimizer`` switches the check off (runtime/engine.py:2461), and only the one for
    bfloat16 can be set in the configuration. Not needed once that holds for float32, too.
    """
    if hasattr(engine.optimizer, "check_grad_overflow"):
        engine.optimizer.check_grad_overflow = True


def link_states(engine) -> None:
    """After a universal checkpoint in ZeRO-1 or 2: have each parameter show its part of the float32 weights again.

    The loader leaves it at a moment's buffer, with copies of its part of the moments in host memory
    (utils/tensor_fragment.py:82, checkpoint/universal_checkpoint.py:288). Not needed once ``load_state_dict`` links
    for a universal checkpoint what it links for others (runtime/zero/stage_1_and_2.py:2875).
    """
    if 0 < engine.zero_optimization_stage() < 3:
        engine.optimizer._link_all_hp_params()


def hold_settings(optimizer, scheduler, settings: dict) -> None:
    """Let ``settings`` of an optimizer hold after a checkpoint has brought its own, as --orz.allow_changed_flags says.

    DeepSpeed loads an optimizer's groups and its scheduler's rates as they were saved (runtime/engine.py:4664). Not
    needed once it leaves those of its configuration.

    Args:
        optimizer: PyTorch's, or DeepSpeed's around it. Moments stay, and so does the step of ``scheduler``.
        settings: lr, betas, eps, weight_decay; with Muon muon_lr, adam_lr and momentum, too.
    """
    groups = optimizer.param_groups
    # norms and biases never are, but by Muon, whose two groups have one number
    decayed = [g for g in groups if g["weight_decay"]] or [g for g in groups if "use_muon" in g] or groups[:1]
    rates = [settings.get("muon_lr" if group.get("use_muon") else "adam_lr", settings["lr"]) for group in groups]
    for group, rate, multiple in zip(groups, rates, scheduler.lr_lambdas):
        for name in ("betas", "eps", "momentum"):
            if name in group and name in settings:
                group[name] = type(group[name])(settings[name]) if name == "betas" else settings[name]
        if any(group is one for one in decayed):
            group["weight_decay"] = settings["weight_decay"]
        group["initial_lr"], group["lr"] = rate, rate * multiple(scheduler.last_epoch)
    scheduler.base_lrs = rates
    scheduler._last_lr = [group["lr"] for group in groups]


def skip_reduction(engine) -> None:
    """Spare a lone rank the reduction of its gradients, which DeepSpeed copies into a buffer and back.

    This holds at ZeRO-0 in float32, and at ZeRO-1 in bfloat16 with gradients summed in float32. Other stages also
    partition gradients while they reduce them, and are left unchanged.

    ``allreduce_gradients`` does not ask how many ranks there are (runtime/engine.py:3071), and ``no_sync`` forbids
    ``step``. Not needed once DeepSpeed reduces nothing for a group of one.
    """
    if dist.get_world_size() > 1:
        return
    in_float32 = not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled())
    summed = isinstance(engine.optimizer, BF16_Optimizer)
    if in_float32 or summed:
        engine.enable_backward_allreduce = False
    if summed:
        engine.optimizer.engine = engine
        engine.optimizer.__class__ = LoneRankOptimizer


class LoneRankOptimizer(BF16_Optimizer):
    """DeepSpeed's optimizer for bfloat16 with gradients summed in float32, spared passes over all gradients.

    The engine builds the base class by name (``_configure_bf16_optimizer``). Not needed once DeepSpeed drops gradients
    in bfloat16 instead of zeroing them, takes the norm of flat gradients, and does not add a first gradient to zeros.
    """

    def backward_prologue(self):
        """Drop the parameters' gradients (runtime/bf16_optimizer.py:348 zeroes them before each backward)."""
        self.clear_lp_grads(set_to_none=True)

    def get_grads_for_norm(self, for_clipping: bool = False):
        """Asked for gradients to take the norm of, return the norm: the strategy has taken it (:307). To clip: all."""
        return self.fp32_groups_gradients_flat if for_clipping else ([self.engine._global_grad_norm.view(1)], {})

    @torch.no_grad()
    def _update_hp_grad(self, lp, group_idx, param_idx, clear_lp_grads):
        """Copy a step's first gradient to its sum in float32; upstream adds it to zeros by way of a copy (:371).

        So sums need no zeroing after a step, except where a parameter got no gradient.
        """
        has_gradient = self.fp32_groups_has_gradients[group_idx]
        if has_gradient[param_idx]:
            return super()._update_hp_grad(lp, group_idx, param_idx, clear_lp_grads)
        total = self.fp32_groups_gradients[group_idx][param_idx]
        if lp.grad is None:  # the sum is still that of an earlier step
            total.zero_()
            return None
        total.copy_(lp.grad.view(total.shape))
        lp._hp_grad = total
        has_gradient[param_idx] = True
        return lp.grad.zero_() if clear_lp_grads else None

    def clear_hp_grads(self):
        """Forget which parameters have a gradient; sums are overwritten (upstream zeroes them twice a step, :466)."""
        for has_gradient in self.fp32_groups_has_gradients:
            has_gradient[:] = [False] * len(has_gradient)
