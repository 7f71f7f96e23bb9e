"""LoRA: the model below peft's wrapper, and its weights with the adapters merged into them.

A model with adapters computes x W^T + s (x A^T) B^T at each adapted linear layer. vLLM, and whoever loads the saved
model, gets the one matrix W + s B A under the plain model's name. Notation: W (out, in), A (rank, in), B (out, rank),
s the scale.
"""

from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

NAME = "default"  # peft's name of a model's first adapter; OpenRLHF makes no other


class Adapter(NamedTuple):
    """What is added to a weight: ``scale`` times ``b @ a``."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """W + s B A in the dtype of W, computed in float32 at least and rounded once."""
        a, b = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (self.a, self.b))
        return (weight + self.scale * (b @ a)).to(weight.dtype)


def without_adapters(model: nn.Module) -> nn.Module:
    """The transformers model below peft's wrapper; a model without adapters is returned as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters of a model, by the plain model's names of the weights that they change; none of a plain model."""
    return {
        f"{path}.weight": Adapter(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME])
        for path, layer in without_adapters(model).named_modules()
        if isinstance(layer, LoraLayer)
    }


def plain_names(tensors: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Tensors of the model below peft's wrapper, by the plain model's names, and without the adapters' own."""
    return [(name.replace(".base_layer.", "."), tensor) for name, tensor in tensors if ".lora_" not in name]


def merged_state(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain model's state dict, from one of ``model`` with whole tensors under its own names.

    Of a model without adapters it is ``state``.
    """
    if not isinstance(model, PeftModel):
        return state
    base = without_adapters(model)
    prefix = next(name for name, module in model.named_modules() if module is base) + "."
    below = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    plain = dict(plain_names(list(below.items())))
    for name, adapter in adapters(model).items():
        a, b = (below[name.replace(".weight", f".lora_{x}.{NAME}.weight")] for x in "AB")
        plain[name] = Adapter(a, b, adapter.scale).merged(plain[name])
    return plain


def cast_adapters(model: nn.Module) -> None:
    """Have adapters in the dtype of what they adapt; peft makes them in float32 beside a model in 16 bits.

    DeepSpeed trains parameters of one dtype, and keeps its own float32 ones. It casts them itself below ZeRO-3.
    """
    for layer in without_adapters(model).modules():
        if isinstance(layer, LoraLayer):
            for linear in (layer.lora_A[NAME], layer.lora_B[NAME]):
                linear.to(layer.get_base_layer().weight.dtype)


def train_whole(model: nn.Module, name: str) -> nn.Linear:
    """Take the adapter off the linear layer ``name`` and train its own weight; returns the layer.

    Adapters freeze what they adapt, and all they do not: a value head that was drawn at random would stay so.
    """
    base = without_adapters(model)
    head = base.get_submodule(name)
    if isinstance(head, LoraLayer):
        head = head.get_base_layer()
        base.set_submodule(name, head)
    return head.requires_grad_(True)
