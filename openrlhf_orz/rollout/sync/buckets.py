"""Named tensors in one flat buffer of bytes: which go together, where each lies, in, and out again without copying."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

ALIGN = 256  # bytes between starts of tensors: any dtype's own size divides it, and GPUs load from there in full width


class Slot(NamedTuple):
    """Where a tensor lies in a buffer; ``dtype`` is torch's name without ``torch.``, ``offset`` counts bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


def plan(sizes: Sequence[int], limit: int) -> list[range]:
    """Cut items of ``sizes`` bytes into runs, in order, of at most ``limit`` bytes each; a larger item runs alone."""
    buckets, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            buckets.append(range(start, i))
            start, total = i, 0
        total += size
    return buckets + ([range(start, len(sizes))] if sizes else [])


def layout(named_shapes: Iterable[tuple[str, Sequence[int]]], dtypes, start: int = 0) -> tuple[list[Slot], int]:
    """Slots one after the other from byte ``start`` on, each aligned, and the byte after the last.

    ``dtypes``: one torch.dtype for all tensors, or one for each.
    """
    named_shapes = list(named_shapes)
    dtypes = [dtypes] * len(named_shapes) if isinstance(dtypes, torch.dtype) else dtypes
    slots, end = [], start
    for (name, shape), dtype in zip(named_shapes, dtypes, strict=True):
        slots.append(Slot(name, str(dtype).removeprefix("torch."), tuple(shape), -(-end // ALIGN) * ALIGN))
        end = slots[-1].offset + slots[-1].nbytes
    return slots, end


def views(buffer: torch.Tensor, slots: Iterable[Slot]) -> list[tuple[str, torch.Tensor]]:
    """The named tensors that lie in ``buffer`` (uint8, 1-D), sharing its memory."""
    return [
        (slot.name, buffer[slot.offset : slot.offset + slot.nbytes].view(getattr(torch, slot.dtype)).view(slot.shape))
        for slot in slots
    ]


@torch.no_grad()
def flatten(tensors: Iterable[torch.Tensor], slots: Sequence[Slot], buffer: torch.Tensor) -> None:
    """Copy ``tensors`` into their slots of ``buffer``, to its device and to the slots' dtypes.

    Raises ValueError, naming the slot, if a tensor has not its shape.
    """
    for tensor, slot, (_, view) in zip(tensors, slots, views(buffer, slots), strict=True):
        if tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{slot.name} has shape {tuple(tensor.shape)}, its place in the buffer {slot.shape}")
        view.copy_(tensor)
