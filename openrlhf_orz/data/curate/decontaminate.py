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
from openrlhf_orz.data.curate.framing import readings
from openrlhf_orz.data.curate.shards import rejection, split_rows
from openrlhf_orz.data.curate.signature import hash64, plain_tokens
from openrlhf_orz.data.curate.similarity import Embed

BUILTIN = Path(__file__).with_name("eval_sets.npz")
BUILTIN_NGRAM = 8


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an evaluation question: no text.

    `n` is the length of its N-grams (a question of fewer tokens is one N-gram), `tokens` its length. `numbers` and
    `maths` are (count, hash) of its numbers, and of its numbers, operators, commands and letters, each in order.
    """

    name: str
    n: int
    tokens: int
    numbers: tuple[int, int]
    maths: tuple[int, int]
    grams: tuple[int, ...]


def fingerprint(name: str, question: str, n: int) -> Fingerprint:
    tokens = plain_tokens(question)
    n = max(1, min(n, len(tokens)))
    numbers, maths = _numbers(tokens), _maths(tokens)
    return Fingerprint(
        name,
        n,
        len(tokens),
        (len(numbers), hash64(" ".join(numbers))),
        (len(maths), hash64(" ".join(maths))),
        tuple(dict.fromkeys(grams(tokens, n))),
    )


def grams(tokens: list[str], n: int) -> list[int]:
    """Hashes of the runs of `n` tokens."""
    return [hash64(" ".join(tokens[i : i + n])) for i in range(len(tokens) - n + 1)]


def _numbers(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token[0] in "0123456789."]


def _maths(tokens: list[str]) -> list[str]:
    return [token for token in tokens if len(token) == 1 or not token.isalpha()]


def _holds(run: list[str], part: tuple[int, int]) -> bool:
    """Whether a run of tokens holds the part of this count and hash."""
    count, value = part
    return count == 0 or value in grams(run, count)


# From so many tokens of mathematics on a question is known by them, and its words may differ; with fewer nearly all
# of its N-grams must be there, or most where two numbers agree.
_TELLING_MATHS, _NEARLY_ALL, _MOST = 6, 0.9, 0.8


@dataclass
class EvalSets:
    """Evaluation questions, and for each N-gram the numbers of the questions that have it."""

    n: int
    questions: list[Fingerprint] = field(default_factory=list)
    index: dict[int, list[int]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)  # of the sets given as text, the last ones, for the embeddings

    def add(self, name: str, question: str) -> None:
        self.add_fingerprint(fingerprint(name, question, self.n))
        self.texts.append(question)

    def add_fingerprint(self, found: Fingerprint) -> None:
        for value in found.grams:
            self.index.setdefault(value, []).append(len(self.questions))
        self.questions.append(found)

    def overlap(self, question: str, least: float) -> tuple[str, float, bool] | None:
        """The evaluation question that `question` holds, the share of its N-grams, and whether it is all of the text.

        Held is one of which the text has the share `least`, and its mathematics in one piece and in order: a question
        with another number is another question. With little mathematics the share must be 0.9 (0.8 with two numbers),
        and all numbers agree.
        """
        best: tuple[str, float, bool] | None = None
        for text in readings(question):
            tokens = plain_tokens(text)
            counts: Counter[int] = Counter()
            for n in {found.n for found in self.questions}:
                for value in dict.fromkeys(grams(tokens, n)):
                    counts.update(i for i in self.index.get(value, ()) if self.questions[i].n == n)
            for number, count in counts.items():
                found = self.questions[number]
                share = count / len(found.grams)
                if share < least or (best and share <= best[1]):
                    continue
                telling = found.maths[0] >= _TELLING_MATHS and _holds(_maths(tokens), found.maths)
                nearly_all = _NEARLY_ALL if found.numbers[0] < 2 else _MOST
                if telling or (share >= nearly_all and _holds(_numbers(tokens), found.numbers)):
                    best = found.name, share, share == 1.0 and len(tokens) == found.tokens
        return best


_COLUMNS = {"n": np.int32, "tokens": np.int32, "numbers": np.uint64, "maths": np.uint64}


def load_builtin(sets: EvalSets) -> None:
    """Add the packaged sets; their N-grams have BUILTIN_NGRAM words."""
    with np.load(BUILTIN, allow_pickle=False) as data:
        ends, hashes = np.cumsum(data["sizes"]), data["grams"].tolist()
        columns = [data[name].tolist() for name in ("names", *_COLUMNS)]
        for name, n, tokens, numbers, maths, end, size in zip(*columns, ends, data["sizes"]):
            values = tuple(hashes[end - size : end])
            sets.add_fingerprint(Fingerprint(name, n, tokens, tuple(numbers), tuple(maths), values))


def save_builtin(named: Iterable[tuple[str, str]], path: Path = BUILTIN) -> int:
    """Write the fingerprints of (name, question) pairs; returns how many. No text is kept."""
    found = [fingerprint(name, question, BUILTIN_NGRAM) for name, question in named]
    np.savez_compressed(
        path,
        names=np.array([one.name for one in found]),
        sizes=np.array([len(one.grams) for one in found], np.int32),
        grams=np.array([value for one in found for value in one.grams], np.uint64),
        **{name: np.array([getattr(one, name) for one in found], kind) for name, kind in _COLUMNS.items()},
    )
    return len(found)


def decontaminate(
    rows: Iterable[dict],
    sets: EvalSets,
    options: Decontaminate,
    embed: Embed | None = None,
    eval_vectors: np.ndarray | None = None,
) -> tuple[list[dict], list[dict]]:
    """The kept rows and the rejections, which name the evaluation question and the overlap."""

    def judge(row: dict) -> tuple[str, str] | None:
        found = None if row["meta"].get("generated") else sets.overlap(row["question"], options.overlap)
        return found and ("eval_exact" if found[2] else "eval_ngram", f"{found[0]}: {found[1]:.2f}")

    kept, rejected = split_rows(rows, "decontaminate", judge)
    if embed is None or eval_vectors is None or not len(eval_vectors) or not kept:
        return kept, rejected
    close = embed([row["question"] for row in kept]) @ eval_vectors.T
    best = close.argmax(axis=1)
    named = [found.name for found in sets.questions[len(sets.questions) - len(sets.texts) :]]
    still = []
    for row, number, value in zip(kept, best, close.max(axis=1)):
        if value >= options.embedding_similarity and not row["meta"].get("generated"):
            rejected.append(rejection(row, "decontaminate", "eval_embedding", f"{named[number]}: {value:.2f}"))
        else:
            still.append(row)
    return still, rejected
