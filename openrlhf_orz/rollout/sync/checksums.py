"""Checksums that prove that an engine holds the trainer's weights.

A checksum reads a tensor's elements as integers and sums them: as they are (``total``) and times a power of RATE for
each element's place (``ordered``). It is exact, and it adds up: the checksum of a fused parameter (qkv, gate and up)
is the sum of its parts' in their order. The total of a sharded parameter is the sum of its shards'; which shard's
element lies where is not known, so that its order is not compared.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 2**22  # elements summed at once: on CPU, a sum in int64 first copies its input to int64
RATE = 0x9E3779B97F4A7C15  # odd, so that no power of it is 0 modulo 2^64


class Checksum(NamedTuple):
    total: int  # modulo 2^64, as 64-bit integers add
    count: int  # elements; 0 if the weights are not there in a form that can be summed
    ordered: int = 0  # modulo 2^64

    def __add__(self, other: "Checksum") -> "Checksum":  # type: ignore[override]
        """The checksum of a tensor's elements followed by another's."""
        ordered = self.ordered + other.ordered * pow(RATE, self.count, 2**64)
        return Checksum((self.total + other.total) % 2**64, self.count + other.count, ordered % 2**64)

    @property
    def uniform(self) -> bool:
        """Whether all elements, of at most 4 bytes, are equal."""
        powers = (pow(RATE, self.count, (RATE - 1) * 2**64) - 1) // (RATE - 1)  # the sum of RATE^i
        element, rest = divmod(_signed(self.total), max(1, self.count))
        return rest == 0 and element * powers % 2**64 == self.ordered


NOTHING = Checksum(0, 0)


@functools.cache
def _powers(device: torch.device) -> torch.Tensor:
    """RATE^i for i below CHUNK, as 64-bit integers multiply."""
    powers = torch.ones(1, dtype=torch.int64, device=device)
    while len(powers) < CHUNK:
        powers = torch.cat([powers, powers * _signed(pow(RATE, len(powers), 2**64))])
    return powers


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


class EngineReport(NamedTuple):
    """What one worker of an engine knows about its weights, by the engine's names if nothing else is said."""

    handed: dict[str, Checksum]  # by the trainer's names: of the tensors that the model's loader received
    held: dict[str, Checksum]  # of the model's parameters
    sources: dict[str, list[str]]  # the trainer's names of the parameters that each parameter is made of
    absent: dict[str, list[str]]  # parts of a fused parameter that are not among the trainer's names
    stale: list[str]  # modules that still compute with a copy packed before the sync

    @classmethod
    def read(cls, fields: Iterable) -> "EngineReport":
        """Read a report that a remote call may have turned into plain lists."""
        handed, held, *rest = fields
        return cls(*({name: Checksum(*each) for name, each in sums.items()} for sums in (handed, held)), *rest)


class SyncError(RuntimeError):
    """An engine does not hold the trainer's weights."""


@torch.no_grad()
def checksum(tensor: torch.Tensor) -> Checksum:
    """Sum all elements, read as integers of their width, with and without their places, and count them."""
    bits = tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])
    result = NOTHING
    for chunk in bits.split(CHUNK):
        wide = chunk.to(torch.int64)
        ordered = int((wide * _powers(wide.device)[: len(wide)]).sum())
        result += Checksum(int(wide.sum()) % 2**64, len(wide), ordered % 2**64)
    return result


def find_sources(
    names: Iterable[str], params: Iterable[str], rename: Callable[[str], str | None], fused: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Find the trainer's parameters ``names`` of which each of the engine's ``params`` is made.

    Args:
        rename: turns a name of the trainer into the engine's, or None if the engine's model does not say.
        fused: module names like {"qkv_proj": ["q_proj", ...]}.

    Returns (sources, absent) as in EngineReport.
    """
    names = list(names)
    sources: dict[str, list[str]] = {name: [] for name in params}
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
            parts = fused[whole]  # the order in which they lie in it
            found.sort(key=lambda name: next((i for i, p in enumerate(parts) if p in name.split(".")), len(parts)))
            seen = {piece for name in found for piece in name.split(".")}
            absent[param] = [part for part in fused[whole] if part not in seen and whole not in seen]
    return sources, {param: parts for param, parts in absent.items() if parts}


def compare(trainer: dict[str, Checksum], workers: list[EngineReport]) -> tuple[list[str], set[str], dict[str, bool]]:
    """Compare the trainer's checksums with one engine's.

    If a parameter is neither replicated nor sharded (key-value heads may be copied to more workers than there are
    heads), or if only a packed copy is left, only what the loader received is compared.

    Args:
        workers: the engine's tensor-parallel workers.

    Returns what is wrong, a line for each parameter, the trainer's parameters whose bits were found in the model, and
    of the engine's parameters that hold the right elements whether these are in another order. Equal elements do not
    tell: biases are often zeros at first.
    """
    problems: list[str] = []
    found: set[str] = set()
    rearranged: dict[str, bool] = {}
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
            # every weight of the trainer has its place elsewhere, so this parameter was not synced
            if matched == set(trainer):
                problems.append(f"{param}: the trainer has no such weight")
            continue
        held = [worker.held[param] for worker in workers]
        expected = sum((trainer[name] for name in names), start=NOTHING)
        total = sum(held, start=NOTHING)
        whole = all(h.count == expected.count for h in held)  # on each worker
        if param in first.absent:
            problems.append(f"{param}: the trainer has no {', '.join(first.absent[param])} for it")
        elif whole or total.count == expected.count:
            wrong = [h for h in (held if whole else [total]) if h.total != expected.total]
            problems += [f"{_of(param, names)}: the model holds {h}, the trainer {expected}" for h in wrong[:1]]
            if not wrong and whole and not expected.uniform:
                rearranged[param] = held[0].ordered != expected.ordered
            found |= set(names)
        elif len(workers) == 1 and total.count:
            problems.append(f"{_of(param, names)}: the model has {total.count} elements, the trainer {expected.count}")
    return list(dict.fromkeys(problems)), found, rearranged


def _of(param: str, names: list[str]) -> str:
    return param if names == [param] else f"{param} (made of {', '.join(names)})"
