"""Stage 5: rejects rows that hold an evaluation question, whole or in large part; every overlap is listed.

MATH-500, AIME 2024 and 2025 and AMC (`builtin`) come with the package as hashes of their N-grams, so that they need no
download; further sets are read as inputs are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openrlhf_orz.data.curate.config import Decontaminate
from openrlhf_orz.data.curate.shards import rejection, split_rows
from openrlhf_orz.data.curate.signature import Signature, hash64, signature
from openrlhf_orz.data.curate.similarity import Embed

BUILTIN = Path(__file__).with_name("eval_sets.npz")
BUILTIN_NGRAM = 8


def grams(found: Signature, n: int) -> list[int]:
    """Hashes of the N-grams of words, numbers and signs, without variables; a shorter text is one N-gram."""
    tokens = [text for kind, text in found.tokens if kind != "v"] if len(found.tokens) > 4 * n else None
    tokens = tokens if tokens and len(tokens) >= n else [text for _, text in found.tokens]
    if len(tokens) <= n:
        return [hash64(" ".join(tokens))]
    return list(dict.fromkeys(hash64(" ".join(tokens[i : i + n])) for i in range(len(tokens) - n + 1)))


@dataclass
class EvalSets:
    """Evaluation questions: their names, and for each N-gram the numbers of the questions that have it."""

    n: int
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # N-grams of each
    exact: dict[int, int] = field(default_factory=dict)
    index: dict[int, list[int]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)  # of the sets given as text, for the embeddings

    def add(self, name: str, question: str) -> None:
        found = signature(question)
        self.add_hashes(name, found.exact, grams(found, self.n))
        self.texts.append(question)

    def add_hashes(self, name: str, exact: int, hashes: Iterable[int]) -> None:
        number = len(self.names)
        self.names.append(name)
        hashes = list(hashes)
        self.sizes.append(len(hashes))
        self.exact.setdefault(exact, number)
        for value in hashes:
            self.index.setdefault(value, []).append(number)

    def overlap(self, question: str) -> tuple[str, float] | None:
        """The evaluation question of which `question` has the largest share, and that share; None without any."""
        found = signature(question)
        same = self.exact.get(found.exact)
        if same is not None:
            return self.names[same], 1.0
        counts: Counter[int] = Counter()
        for value in grams(found, self.n):
            counts.update(self.index.get(value, ()))
        if not counts:
            return None
        best = min(counts, key=lambda number: (-counts[number] / self.sizes[number], number))
        return self.names[best], counts[best] / self.sizes[best]


def load_builtin(sets: EvalSets) -> None:
    """Add the packaged sets; their N-grams have BUILTIN_NGRAM words."""
    with np.load(BUILTIN, allow_pickle=False) as data:
        ends = np.cumsum(data["sizes"])
        for name, exact, end, size in zip(data["names"], data["exact"], ends, data["sizes"]):
            sets.add_hashes(str(name), int(exact), map(int, data["grams"][end - size : end]))


def save_builtin(named: Iterable[tuple[str, str]], path: Path = BUILTIN) -> int:
    """Write the hashes of (name, question) pairs; returns how many. No text is kept."""
    names, exact, sizes, hashes = [], [], [], []
    for name, question in named:
        found = signature(question)
        values = grams(found, BUILTIN_NGRAM)
        names.append(name)
        exact.append(found.exact)
        sizes.append(len(values))
        hashes += values
    np.savez_compressed(
        path,
        names=np.array(names),
        exact=np.array(exact, np.uint64),
        sizes=np.array(sizes, np.int32),
        grams=np.array(hashes, np.uint64),
    )
    return len(names)


def decontaminate(
    rows: Iterable[dict],
    sets: EvalSets,
    options: Decontaminate,
    embed: Embed | None = None,
    eval_vectors: np.ndarray | None = None,
) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections, which name the evaluation question and the overlap."""

    def judge(row: dict) -> tuple[str, str] | None:
        found = None if row["meta"].get("generated") else sets.overlap(row["question"])
        if found is None or found[1] < options.overlap:
            return None
        return "eval_exact" if found[1] == 1.0 else "eval_ngram", f"{found[0]}: {found[1]:.2f}"

    kept, rejected = split_rows(rows, "decontaminate", judge)
    if embed is None or eval_vectors is None or not len(eval_vectors) or not kept:
        return kept, rejected
    close = embed([row["question"] for row in kept]) @ eval_vectors.T
    best = close.argmax(axis=1)
    named = sets.names[len(sets.names) - len(sets.texts) :]
    still = []
    for row, number, value in zip(kept, best, close.max(axis=1)):
        if value >= options.embedding_similarity and not row["meta"].get("generated"):
            rejected.append(rejection(row, "decontaminate", "eval_embedding", f"{named[number]}: {value:.2f}"))
        else:
            still.append(row)
    return still, rejected
