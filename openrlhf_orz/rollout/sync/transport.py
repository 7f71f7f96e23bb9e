"""Named tensors in a flat buffer of bytes, and three ways for the buffer to reach the engines.

The ways (transports) are a file in memory, GPU memory, and a broadcast to engines on GPUs of their own. All ranks use
one in the same way: ``put`` while a bucket's parameters are whole, ``send`` for each bucket, ``close`` at the end.
Rank 0 runs ``call(source, places, last, meanwhile)``, which tells every engine to load the buffer ``source``, runs
``meanwhile``, and returns, when all have loaded it, the devices on which it was opened. Where that fails, ``send``
raises on all ranks. ``open_source`` is the engines' side.
"""

import math
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import BinaryIO, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

ALIGN = 256  # tensors start at multiples of so many bytes: fits every dtype, and GPUs load from there in full width
DEVICE_ARGUMENT = 6  # of rebuild_cuda_tensor: the GPU's index in the receiving process
COUNTER_ARGUMENTS = slice(11, 13)  # of rebuild_cuda_tensor: where the receivers of an export are counted
Call = Callable[[tuple, "list[TensorPlace]", bool, Callable[[], None]], "list[str]"]
T = TypeVar("T")


class BroadcastBroken(RuntimeError):
    """An engine was lost in a broadcast. The others wait in it, so it cannot be repeated."""


def on_first_rank(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0. All ranks must call it; they return what it returns, or raise if it raises."""
    verdict: list = [None, None]
    error = None
    if dist.get_rank() == 0:
        try:
            verdict[0] = work()
        except Exception as caught:  # whatever it is, the other ranks wait for the verdict
            error, verdict[1] = caught, f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(verdict, src=0)
    if verdict[1] is not None:
        raise error or RuntimeError(f"rank 0 has failed: {verdict[1]}")
    return verdict[0]


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
        self.failure: OSError | None = None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        places, self.end = layout([(name, weight.shape) for name, weight in weights], self.dtype, start=self.end)
        self.places += places
        if dist.get_rank() == 0:
            try:
                self._write(weights, places)
            except OSError as error:
                self.failure = error  # all ranks shall learn of it, in ``send``

    def _write(self, weights: list[tuple[str, torch.Tensor]], places: list[TensorPlace]) -> None:
        if self.file is None:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self.file = os.fdopen(self.fd, "wb", closefd=False)
        for place, (_, weight) in zip(places, weights):
            self.file.seek(place.offset)
            weight = weight.detach().to("cpu", self.dtype).contiguous().reshape(-1)
            self.file.write(memoryview(weight.view(torch.uint8).numpy()))

    def send(self, last: bool) -> None:
        on_first_rank(lambda: self._hand_over(last))

    def _hand_over(self, last: bool) -> None:
        if self.failure is not None:
            raise self.failure
        if last and self.file is not None:
            self.file.close()
            self.call(("file", self.path), self.places, True, lambda: None)

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

    Every rank exports its own buffer, and engines find theirs by the GPU's name. torch counts an export's receivers,
    one from the start: the memory of one that nobody opens would never be free again. So what was not opened is given
    back. On CPU (in tests) buffers are in shared memory.
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
        key, handle = device_key(self.device), export(self.buffer)
        dist.all_gather_object(handles, {key: handle})
        source = ("ipc", {key: handle for each in handles for key, handle in each.items()})
        opened: list[str] = []
        try:  # it returns when the engines have read all buffers: none may be freed before
            opened = on_first_rank(lambda: self.call(source, self.places, last, lambda: None))
        finally:
            if key not in opened:  # after a failure perhaps it was: to give back once too often does no harm
                give_back(handle)
        self.buffer = None

    def close(self) -> None:
        self.buffer = None
        self._synchronize()
        if self.device.type == "cuda":
            torch.cuda.ipc_collect()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class BroadcastTransport:
    """One call and one broadcast for each bucket, from rank 0 to the workers of all engines.

    Args:
        group: OpenRLHF's group of rank 0 and the workers; None on the other ranks.
    """

    def __init__(self, group, device: torch.device, dtype: torch.dtype, call: Call):
        self.group, self.device, self.dtype, self.call = group, device, dtype, call
        self.buffer: torch.Tensor | None = None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        if dist.get_rank() == 0:
            self.places, nbytes = layout([(name, weight.shape) for name, weight in weights], self.dtype)
            self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
            copy_into_buffer((weight for _, weight in weights), self.places, self.buffer)

    def send(self, last: bool) -> None:
        on_first_rank(lambda: self._broadcast(last))
        self.buffer = None

    def _broadcast(self, last: bool) -> None:
        assert self.buffer is not None  # for the type checker
        try:
            source, send = ("broadcast", self.buffer.numel()), partial(broadcast_buffer, self.group, self.buffer)
            self.call(source, self.places, last, send)
        except Exception as error:
            raise BroadcastBroken(f"an engine was lost while weights were broadcast: {error}") from error

    def close(self) -> None:
        self.buffer = None


def broadcast_buffer(group, buffer: torch.Tensor) -> None:
    """Broadcast from the first of ``group``: a PyNcclCommunicator, or the name of a group of Ray's."""
    if isinstance(group, str):
        import ray.util.collective

        ray.util.collective.broadcast(buffer, 0, group_name=group)
    else:
        group.broadcast(buffer, src=0, stream=torch.cuda.current_stream() if buffer.is_cuda else None)


def device_key(device: torch.device) -> str:
    """Return a name of the device that is the same in processes that see different GPUs."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def export(buffer: torch.Tensor) -> bytes:
    """Return what another process needs to open ``buffer``, which must live until that process is done."""
    return bytes(ForkingPickler.dumps(reduce_tensor(buffer)))


def give_back(handle: bytes) -> None:
    """Take one receiver, who never came, off the count of an export of this process."""
    rebuild, arguments = pickle.loads(handle)
    if rebuild is rebuild_cuda_tensor:
        file, offset = arguments[COUNTER_ARGUMENTS]
        torch.UntypedStorage._release_ipc_counter(file, offset, device=torch.device("cuda"))


def open_export(handle: bytes, device: torch.device) -> torch.Tensor:
    """Open the exported buffer, at the same memory. ``device``: as this process numbers it."""
    rebuild, arguments = pickle.loads(handle)
    arguments = list(arguments)
    if rebuild is rebuild_cuda_tensor:
        arguments[DEVICE_ARGUMENT] = device.index
    return rebuild(*arguments)


def open_source(source: tuple, device: torch.device, group=None) -> torch.Tensor:
    """The buffer (uint8, 1-D) of a transport's ``source``, opened or received. Raises FileNotFoundError, KeyError."""
    kind, where = source
    if kind == "broadcast":
        buffer = torch.empty(where, dtype=torch.uint8, device=device)
        broadcast_buffer(group, buffer)
        return buffer
    if kind == "file":
        if not os.path.exists(where):
            raise FileNotFoundError(
                f"{where} is not on this machine: without CUDA, engines and rank 0 of the policy must share one"
            )
        # private: a write by mistake would not reach the file
        return torch.from_file(where, shared=False, size=os.path.getsize(where), dtype=torch.uint8)
    if (key := device_key(device)) not in where:
        raise KeyError(f"no rank of the policy is on this engine's device {key}: colocated ones must share their GPUs")
    return open_export(where[key], device)


def read_places(places: Iterable[Sequence]) -> list[TensorPlace]:
    """Read places that a remote call may have turned into plain lists."""
    return [TensorPlace(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in places]
