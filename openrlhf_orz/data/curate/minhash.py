"""MinHash bands of questions, and the pairs that share one: candidates for duplicates; memory linear in the rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openrlhf_orz.data.curate.need import need
from openrlhf_orz.data.curate.signature import Signature

BANDS, ROWS = 21, 3  # 63 hashes: two questions of similarity 0.5 share a band with probability 0.94, of 0.1 with 0.02
FAMILY_BANDS = 7  # of 9 hashes: 0.96 at similarity 0.9, 0.25 at 0.7
_SEED = 42
_FEW = 12  # rows that share their mathematics are all compared, whatever their words
_CROWD = 40  # rows of one band and guard; in a larger crowd each is compared with its next ones only
_NEIGHBOURS = 8


def bands(signatures: list[Signature]) -> tuple[np.ndarray, np.ndarray]:
    """(n, BANDS) hashes of a few MinHashes each, (n, FAMILY_BANDS) of many, uint32, from words and word pairs."""
    rensa = need("rensa", "rensa", "dedup")
    rows = rensa.RMinHash.digests_from_token_sets([sorted(s.grams) for s in signatures], BANDS * ROWS, _SEED)
    digests = np.array(rows, dtype=np.uint64).reshape(len(signatures), BANDS * ROWS)
    return _mix(digests, BANDS), _mix(digests, FAMILY_BANDS)


def _mix(digests: np.ndarray, n_bands: int) -> np.ndarray:
    mixed = np.zeros((len(digests), n_bands), dtype=np.uint64)
    for column in range(digests.shape[1] // n_bands):
        mixed = (mixed ^ digests[:, column * n_bands : (column + 1) * n_bands]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


class Union:
    """Disjoint sets of row numbers; the smallest number of a set is its root."""

    def __init__(self, size: int):
        self.parent = np.arange(size, dtype=np.int64)

    def root(self, i: int) -> int:
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        if i != j:
            self.parent[max(i, j)] = min(i, j)

    def roots(self) -> np.ndarray:
        """The root of every row."""
        parent = self.parent
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                return above.copy()
            parent = self.parent = above


def runs(keys: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of two or more `members` with equal `keys`, each in ascending order."""
    order = np.argsort(keys, kind="stable")
    keys, members = keys[order], members[order]
    edges = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True]))) if len(keys) else np.zeros(1, int)
    sizes = np.diff(edges)
    for start, size in zip(edges[:-1][sizes > 1], sizes[sizes > 1]):
        yield members[start : start + size]


def candidates(band: np.ndarray, guard: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (m, 2) of `members` that share the `guard` (n,), and one column of `band` (n, BANDS) where many do."""
    few = [group for group in runs(guard[members], members) if len(group) <= _FEW]
    if few:
        yield np.concatenate([np.stack([g[:-s], g[s:]], axis=1) for g in few for s in range(1, len(g))])
    for column in range(band.shape[1]):
        keys = (guard ^ (band[:, column].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))[members]
        found = []
        for group in runs(keys, members):
            reach = len(group) if len(group) <= _CROWD else _NEIGHBOURS
            for step in range(1, min(reach, len(group))):
                found.append(np.stack([group[:-step], group[step:]], axis=1))
        if found:
            yield np.concatenate(found)
