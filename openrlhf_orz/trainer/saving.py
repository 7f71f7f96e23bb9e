"""What a run leaves of a model: weights for transformers and vLLM, and an average of them (``--train.enable_ema``).

OpenRLHF saves adapters alone, a tied matrix twice, and an average that is kept in the model's own dtype, in which one
step's share of it rounds to nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from openrlhf_orz.models.adapters import merged_state, without_adapters


def save_hf(engine, tokenizer, folder: str, args) -> None:
    """Write the model of DeepSpeed's ``engine`` for transformers, adapters merged into it. All ranks must call it."""
    module, state = engine.module, _whole_state(engine, args)
    if dist.get_rank() == 0:
        without_adapters(module).save_pretrained(folder, state_dict=merged_state(module, state))
        for name in ("is_local", "local_files_only"):  # how it was loaded, not what it is
            tokenizer.init_kwargs.pop(name, None)
        tokenizer.save_pretrained(folder)
        _as_readable_as_other_files(Path(folder))
    dist.barrier()


def save_adapters(engine, folder: str, *, args) -> None:
    """Write the adapters by themselves, as peft does. All ranks must call it."""
    state = _whole_state(engine, args)
    if dist.get_rank() == 0:
        engine.module.save_pretrained(folder, state_dict=state)
        _as_readable_as_other_files(Path(folder))
    dist.barrier()


def save_policy(rank, save: Callable[[str], None], engine, average: "WeightAverage | None", args) -> str | None:
    """Write ``--ckpt.output_dir``/hf, hf_adapter of LoRA and hf_ema of an average, each whole or not at all.

    All ranks save all of them, as the others do not know what the first could not write. Returns that, there.
    """
    errors = [rank.save_model(save, args.ckpt.output_dir)]
    if args.ds.lora.rank > 0:
        errors.append(rank.save_model(partial(save_adapters, engine, args=args), f"{args.ckpt.output_dir}_adapter"))
    if average is not None:
        with average.in_place():
            errors.append(rank.save_model(save, f"{args.ckpt.output_dir}_ema"))
    return next(filter(None, errors), None)


def _whole_state(engine, args) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors on rank 0, each tensor once; empty on other ranks."""
    if args.ds.zero_stage == 3 or args.ds.tensor_parallel_size > 1:
        state = engine._consolidated_16bit_state_dict() or {}
    else:
        state = engine.module.state_dict()
    if dist.get_rank() != 0:
        return {}
    # a copy: at ZeRO-1 and 2 all of them lie in one buffer
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in each_once(state).items()}


def each_once(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the further names of tied matrices."""
    found, places = {}, set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if not tensor.numel() or place not in places:
            found[name] = tensor
        places.add(place)
    return found


def _as_readable_as_other_files(folder: Path) -> None:
    """safetensors makes files that their owner alone can read; the others of a group may want to load the model."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)


class WeightAverage:
    """The exponential moving average of the weights that train, in float32 on the host.

    Where ranks hold parts of the weights (ZeRO-3, tensor parallel), each averages its own; else rank 0 alone does.

    Args:
        module: the model inside DeepSpeed's engine.
        beta: share that a step leaves of the average (``--train.ema_beta``).
        in_parts: whether ranks hold parts.
    """

    def __init__(self, module: torch.nn.Module, beta: float, in_parts: bool):
        self.beta = beta
        mine = in_parts or dist.get_rank() == 0
        self.weights = {n: _own_part(p) for n, p in module.named_parameters() if p.requires_grad and mine}
        self.values = {name: _on_host(weight).clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step: beta times the average, and the rest of the weights as they now are."""
        for name, value in self.values.items():
            value.lerp_(_on_host(self.weights[name]), 1 - self.beta)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The model's weights are the average inside the ``with`` block, and afterwards what they were."""
        own = {name: weight.clone() for name, weight in self.weights.items()}
        try:
            for name, weight in self.weights.items():
                weight.copy_(self.values[name])
            yield
        finally:
            for name, weight in self.weights.items():
                weight.copy_(own[name])

    def save(self, folder: Path) -> None:
        """Write this rank's part into a checkpoint."""
        if self.values:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.values, self._file(folder))

    def load(self, folder: Path, recut: bool = False) -> None:
        """Go on from what ``save`` has written; ``recut``: by other ranks or in another ZeRO stage."""
        if self.values and not recut:
            self.values = torch.load(self._file(folder), weights_only=True)
        elif self.values:
            files = [folder / f"average_rank{rank}.pt" for rank in range(len(list(folder.glob("average_rank*.pt"))))]
            parts = [torch.load(file, weights_only=True, mmap=True) for file in files]
            for name, value in self.values.items():  # a rank's part, padded at the end of the last one; or all of it
                whole = torch.cat([part[name].flatten() for part in parts])
                own = whole[dist.get_rank() * value.numel() :][: value.numel()]
                value.flatten()[: own.numel()].copy_(own)

    def _file(self, folder: Path) -> Path:
        return folder / f"average_rank{dist.get_rank()}.pt"


def _own_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this rank holds of a parameter; a tensor that shares its memory."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.data


def _on_host(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu", torch.float32)
