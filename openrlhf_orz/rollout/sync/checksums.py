"""Proof by checksums that an engine holds the trainer's weights; pure.

A checksum is the sum of a tensor's elements read as integers. It is exact, and it adds up: that of a fused parameter
(qkv, gate and up) is the sum of its parts', that of a sharded one the sum over its shards, and zeros for padding add
nothing.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 2**22  # elements: on CPU a sum in int64 first copies its input as int64


class Checksum(NamedTuple):
    total: int  # modulo 2^64, as 64-bit integers add
    count: int  # elements; 0 where the weights are not there in a form that could be summed

    def __add__(self, other: "Checksum") -> "Checksum":
        return Checksum((self.total + other.total) % 2**64, self.count + other.count)


NOTHING = Checksum(0, 0)


class EngineReport(NamedTuple):
    """What one worker of an engine knows about its weights; all names but ``handed``'s keys are the engine's own."""

    handed: dict[str, Checksum]  # of the tensors given to the model's loader, under the trainer's names
    held: dict[str, Checksum]  # of the model's own parameters
    sources: dict[str, list[str]]  # the trainer's parameters of which each one is made
    absent: dict[str, list[str]]  # parts of a fused parameter that the trainer's names lack
    stale: list[str]  # modules that still compute with a copy packed before the sync

    @classmethod
    def read(cls, fields) -> "EngineReport":
        """From a remote call's result, which may have made plain lists of tuples."""
        handed, held, *rest = fields
        return cls(*({name: Checksum(*each) for name, each in sums.items()} for sums in (handed, held)), *rest)


class SyncError(RuntimeError):
    """An engine does not hold the trainer's weights."""


@torch.no_grad()
def checksum(tensor: torch.Tensor) -> Checksum:
    """The sum of all elements' bits, as integers of the element's width, and the number of elements."""
    bits = tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])
    total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in bits.split(CHUNK))
    return Checksum(total % 2**64, bits.numel())


def find_sources(
    names: Iterable[str], params: Iterable[str], rename: Callable[[str], str | None], fused: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Which of the trainer's parameters ``names`` make up each of the engine's ``params``, and which parts lack.

    Args:
        rename: the engine's name for a name of the trainer's, as far as the engine's model says.
        fused: module names like {"qkv_proj": ["q_proj", ...]}.
    """
    names, sources = list(names), {name: [] for name in params}
    fused_of = {part: whole for whole, parts in fused.items() for part in parts if len(parts) > 1}
    for name in names:
        renamed = rename(name) or name
        candidates = [renamed, ".".join(fused_of.get(part, part) for part in renamed.split("."))]
        target = next((candidate for candidate in candidates if candidate in sources), None)
        if target is not None:
            sources[target].append(name)
    absent = {}
    for param, found in sources.items():
        whole = next((part for part in param.split(".") if len(fused.get(part, ())) > 1), None)
        if whole is not None and found:
            seen = {piece for name in found for piece in name.split(".")}
            absent[param] = [part for part in fused[whole] if part not in seen and whole not in seen]
    return sources, {param: parts for param, parts in absent.items() if parts}


def compare(trainer: dict[str, Checksum], workers: list[EngineReport]) -> tuple[list[str], set[str]]:
    """What is wrong in one engine, a line for each parameter; and which of the trainer's parameters were found,
    by their bits, in the model itself.

    ``workers``: the engine's tensor-parallel workers. Where they share a parameter in another way than whole, in
    shards or padded (as key-value heads copied to more workers than there are), or keep only a packed copy, what the
    loader was handed decides alone.
    """
    problems, found = [], set()
    for worker in workers:
        for name, expected in trainer.items():
            handed = worker.handed.get(name)
            if worker.handed and handed is None:
                problems.append(f"{name}: the engine did not get it")
            elif handed and handed != expected:
                problems.append(f"{name}: the engine got other values (checksum {handed}, the trainer's {expected})")
        problems += [f"{module}: still computes with weights packed before the sync" for module in worker.stale]
    first = workers[0]
    matched = {name for names in first.sources.values() for name in names}
    for param, names in first.sources.items():
        if not names:
            # where every weight of the trainer's has its place, one without any was not renewed
            if matched == set(trainer):
                problems.append(f"{param}: the trainer has no such weight")
            continue
        held = [worker.held[param] for worker in workers]
        expected = sum((trainer[name] for name in names), start=NOTHING)
        total = sum(held, start=NOTHING)
        if param in first.absent:
            problems.append(f"{param}: the trainer has no {', '.join(first.absent[param])} for it")
        elif all(h.count == expected.count for h in held):
            wrong = [h for h in held if h != expected]
            problems += [f"{_of(param, names)}: the model holds {h}, the trainer {expected}" for h in wrong[:1]]
            found |= set(names)
        elif total.count == expected.count or (total.count > expected.count and len(names) == 1 and _padded(param)):
            if total.total != expected.total:
                problems.append(f"{_of(param, names)}: the model holds {total}, the trainer {expected}")
            found |= set(names)
        elif len(workers) == 1 and total.count:
            problems.append(f"{_of(param, names)}: the model has {total.count} elements, the trainer {expected.count}")
    return list(dict.fromkeys(problems)), found


def _padded(param: str) -> bool:
    """Vocabularies are padded with rows of zeros."""
    return "embed" in param or "lm_head" in param


def _of(param: str, names: list[str]) -> str:
    return param if names == [param] else f"{param} (made of {', '.join(names)})"
