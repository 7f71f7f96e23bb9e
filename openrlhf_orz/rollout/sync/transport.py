"""Named tensors in a flat buffer of bytes, and two ways for the buffer to reach the engines of this machine.

The ways (transports) are a file in memory and GPU memory. All ranks use a transport in the same way: ``put`` while a
bucket's parameters are whole, then ``send`` for each bucket, and ``close`` at the end. Rank 0 alone runs
``call(source, places, last)``, which hands the buffer ``source`` to every engine and returns when they have loaded it.
``open_source`` is the engines' side.
"""

import math
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import BinaryIO, NamedTuple

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

ALIGN = 256  # tensors start at multiples of so many bytes: fits every dtype, and GPUs load from there in full width
DEVICE_ARGUMENT = 6  # of rebuild_cuda_tensor: the GPU's index in the receiving process
Call = Callable[[tuple, "list[TensorPlace]", bool], None]  # source, places, last


class TensorPlace(NamedTuple):
    """Where a tensor lies in a buffer."""

    name: str
    dtype: str  # torch's name without "torch."
    shape: tuple[int, ...]
    offset: int  # bytes

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


def cut_into_buckets(sizes: Sequence[int], limit: int) -> list[range]:
    """Cut items of ``sizes`` bytes, in order, into buckets of at most ``limit`` bytes; a larger item is alone."""
    buckets, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            buckets.append(range(start, i))
            start, total = i, 0
        total += size
    return buckets + ([range(start, len(sizes))] if sizes else [])


def layout(
    named_shapes: Iterable[tuple[str, Sequence[int]]], dtypes: torch.dtype | Sequence[torch.dtype], start: int = 0
) -> tuple[list[TensorPlace], int]:
    """Lay tensors out one after the other from byte ``start`` on, each aligned.

    ``dtypes``: one torch.dtype for all tensors, or one for each. Returns their places and the byte after the last.
    """
    named_shapes = list(named_shapes)
    dtypes = [dtypes] * len(named_shapes) if isinstance(dtypes, torch.dtype) else dtypes
    places: list[TensorPlace] = []
    end = start
    for (name, shape), dtype in zip(named_shapes, dtypes, strict=True):
        places.append(TensorPlace(name, str(dtype).removeprefix("torch."), tuple(shape), -(-end // ALIGN) * ALIGN))
        end = places[-1].offset + places[-1].nbytes
    return places, end


def views(buffer: torch.Tensor, places: Iterable[TensorPlace]) -> list[tuple[str, torch.Tensor]]:
    """Return the named tensors in ``buffer`` (uint8, 1-D), which share its memory."""
    return [
        (each.name, buffer[each.offset : each.offset + each.nbytes].view(getattr(torch, each.dtype)).view(each.shape))
        for each in places
    ]


@torch.no_grad()
def copy_into_buffer(tensors: Iterable[torch.Tensor], places: Sequence[TensorPlace], buffer: torch.Tensor) -> None:
    """Copy ``tensors`` to their places in ``buffer``, to its device and in the places' dtypes.

    Raises ValueError, with the tensor's name, if its shape is not that of its place.
    """
    for tensor, place, (_, view) in zip(tensors, places, views(buffer, places), strict=True):
        if tuple(tensor.shape) != place.shape:
            raise ValueError(f"{place.name} has shape {tuple(tensor.shape)}, its place in the buffer {place.shape}")
        view.copy_(tensor)


class FileTransport:
    """All weights in one file, handed over by one call, as vLLM on CPU must pack all weights at once.

    Rank 0 writes each parameter from its own memory, so the file, on a memory file system, is the only copy. It is
    removed after the call, also if an engine fails.
    """

    def __init__(self, path: str, dtype: torch.dtype, call: Call):
        self.path, self.dtype, self.call = path, dtype, call
        self.places: list[TensorPlace] = []
        self.end = 0
        self.file: BinaryIO | None = None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        places, self.end = layout([(name, weight.shape) for name, weight in weights], self.dtype, start=self.end)
        self.places += places
        if dist.get_rank() == 0:
            if self.file is None:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                self.file = os.fdopen(self.fd, "wb", closefd=False)
            for place, (_, weight) in zip(places, weights):
                self.file.seek(place.offset)
                weight = weight.detach().to("cpu", self.dtype).contiguous().reshape(-1)
                self.file.write(memoryview(weight.view(torch.uint8).numpy()))

    def send(self, last: bool) -> None:
        if last and self.file is not None:
            self.file.close()
            self.call(("file", self.path), self.places, True)

    def close(self) -> None:
        if self.file is None:
            return
        try:
            self.file.close()
        finally:
            os.unlink(self.path)
            # The last close waits until the kernel has freed the pages, a fifth of the whole sync: not in this thread.
            threading.Thread(target=os.close, args=(self.fd,)).start()


class IpcTransport:
    """One call for each bucket. Each rank has a buffer on its GPU, which the engine on the same GPU opens.

    Every rank exports its own buffer, and engines find theirs by the GPU's name. On CPU (in tests) buffers are in
    shared memory.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, call: Call):
        self.device, self.dtype, self.call = device, dtype, call
        self.buffer: torch.Tensor | None = None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.places, nbytes = layout([(name, weight.shape) for name, weight in weights], self.dtype)
        # A new buffer each time: torch pairs each export with one release by the receiver.
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        if self.device.type == "cpu":
            self.buffer.share_memory_()
        copy_into_buffer((weight for _, weight in weights), self.places, self.buffer)
        # The copies must be finished before the caller frees the parameters and before an engine reads the buffer.
        self._synchronize()

    def send(self, last: bool) -> None:
        handles: list = [None] * dist.get_world_size()
        dist.all_gather_object(handles, {device_key(self.device): export(self.buffer)})
        if dist.get_rank() == 0:
            self.call(("ipc", {key: handle for each in handles for key, handle in each.items()}), self.places, last)
        dist.barrier()  # no rank may free its buffer before the engines have read it
        self.buffer = None

    def close(self) -> None:
        self.buffer = None
        self._synchronize()
        if self.device.type == "cuda":
            torch.cuda.ipc_collect()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def device_key(device: torch.device) -> str:
    """Return a name of the device that is the same in processes that see different GPUs."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def export(buffer: torch.Tensor) -> bytes:
    """Return what another process needs to open ``buffer``, which must live until that process is done."""
    return bytes(ForkingPickler.dumps(reduce_tensor(buffer)))


def open_export(handle: bytes, device: torch.device) -> torch.Tensor:
    """Open the exported buffer, at the same memory. ``device``: as this process numbers it."""
    rebuild, arguments = pickle.loads(handle)
    arguments = list(arguments)
    if rebuild is rebuild_cuda_tensor:
        arguments[DEVICE_ARGUMENT] = device.index
    return rebuild(*arguments)


def open_source(source: tuple, device: torch.device) -> torch.Tensor:
    """Open the buffer (uint8, 1-D) of a transport's ``source``. Raises FileNotFoundError and KeyError."""
    kind, where = source
    if kind == "file":
        if not os.path.exists(where):
            raise FileNotFoundError(
                f"{where} is not on this machine: without CUDA, engines and rank 0 of the policy must share one"
            )
        # private: a write by mistake would not reach the file
        return torch.from_file(where, shared=False, size=os.path.getsize(where), dtype=torch.uint8)
    key = device_key(device)
    if key not in where:
        raise KeyError(f"no rank of the policy is on this engine's device {key}: colocated ones must share their GPUs")
    return open_export(where[key], device)


def read_places(places: Iterable[Sequence]) -> list[TensorPlace]:
    """Read places that a remote call may have turned into plain lists."""
    return [TensorPlace(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in places]
