"""Two ways for weights to reach the engines of this machine, bucket by bucket: a file in memory, and GPU memory.

A transport is used alike by all ranks: ``put`` while a bucket's parameters are whole, ``send`` for each bucket after
that, ``finish`` at the end. ``call(source, slots, last)`` is run by rank 0 alone; it hands the buffer ``source`` to
every engine and returns when they have loaded what is in it. ``open_source`` is the engines' side.
"""

import os
import pickle
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from openrlhf_orz.rollout.sync.buckets import Slot, flatten, layout

DEVICE_ARGUMENT = 6  # of rebuild_cuda_tensor: the index that the GPU has in the receiving process


class FileTransport:
    """All weights in one file, handed over by one call: what vLLM packs on CPU it must be given at once.

    Rank 0 writes each parameter from where it lies, so it never holds a second copy; the file, on a memory file
    system, is the only one, and is gone after the call also if an engine fails.
    """

    def __init__(self, path: str, dtype: torch.dtype, call: Callable):
        self.path, self.dtype, self.call = path, dtype, call
        self.slots, self.end, self.file = [], 0, None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        slots, self.end = layout([(name, weight.shape) for name, weight in weights], self.dtype, start=self.end)
        self.slots += slots
        if dist.get_rank() == 0:
            if self.file is None:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                self.file = os.fdopen(self.fd, "wb", closefd=False)
            for slot, (_, weight) in zip(slots, weights):
                self.file.seek(slot.offset)
                weight = weight.detach().to("cpu", self.dtype).contiguous().reshape(-1)
                self.file.write(memoryview(weight.view(torch.uint8).numpy()))

    def send(self, last: bool) -> None:
        if last and self.file is not None:
            self.file.close()
            self.call(("file", self.path), self.slots, True)

    def close(self) -> None:
        if self.file is None:
            return
        try:
            self.file.close()
        finally:
            os.unlink(self.path)
            # whoever lets go of the file last waits until the kernel has freed its pages: a fifth of the whole sync
            threading.Thread(target=os.close, args=(self.fd,)).start()


class IpcTransport:
    """A buffer on each rank's device for each bucket, opened by the engine that shares the device; one call a bucket.

    Every rank exports its own buffer: engines find theirs by the GPU. On CPU (in tests) it is shared memory.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, call: Callable):
        self.device, self.dtype, self.call = device, dtype, call
        self.buffer = None

    def put(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.slots, nbytes = layout([(name, weight.shape) for name, weight in weights], self.dtype)
        # Exported once, so never reused: torch pairs each export with one release by the receiver.
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        if self.device.type == "cpu":
            self.buffer.share_memory_()
        flatten((weight for _, weight in weights), self.slots, self.buffer)
        # The copies must be made before the caller gives up the whole parameters and before anybody reads the buffer.
        self._synchronize()

    def send(self, last: bool) -> None:
        handles: list = [None] * dist.get_world_size()
        dist.all_gather_object(handles, {device_key(self.device): export(self.buffer)})
        if dist.get_rank() == 0:
            self.call(("ipc", {key: handle for each in handles for key, handle in each.items()}), self.slots, last)
        dist.barrier()  # until the engines have read it, no rank may free its buffer
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
    """The device's name across processes that may see different GPUs."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def export(buffer: torch.Tensor) -> bytes:
    """What another process needs to open ``buffer``, which must outlive that process's use of it."""
    return bytes(ForkingPickler.dumps(reduce_tensor(buffer)))


def open_export(handle: bytes, device: torch.device) -> torch.Tensor:
    """The buffer behind ``handle``, at the same memory; ``device`` as this process numbers it."""
    rebuild, arguments = pickle.loads(handle)
    arguments = list(arguments)
    if rebuild is rebuild_cuda_tensor:
        arguments[DEVICE_ARGUMENT] = device.index
    return rebuild(*arguments)


def open_source(source: tuple, device: torch.device) -> torch.Tensor:
    """The buffer (uint8, 1-D) that a transport passed on as ``source``. Raises FileNotFoundError, KeyError."""
    kind, where = source
    if kind == "file":
        if not os.path.exists(where):
            raise FileNotFoundError(
                f"{where} is not on this machine: without CUDA, engines and rank 0 of the policy must share one"
            )
        # private: a write, which nobody intends, would not reach the file
        return torch.from_file(where, shared=False, size=os.path.getsize(where), dtype=torch.uint8)
    key = device_key(device)
    if key not in where:
        raise KeyError(f"no rank of the policy is on this engine's device {key}: colocated ones must share their GPUs")
    return open_export(where[key], device)


def read_slots(slots) -> list[Slot]:
    """Slots as they come out of a remote call, which may have made plain lists of them."""
    return [Slot(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in slots]
