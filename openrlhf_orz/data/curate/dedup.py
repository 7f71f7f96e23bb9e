"""Stage 5: one row of every group of duplicates stays; the groups are written with who was dropped for whom.

Exact: the same words, numbers and signs. N-gram: MinHash finds questions with like words and the same mathematics,
which are then compared themselves. Embedding: the same among paraphrases. See `signature` for what makes two
questions one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from openrlhf_orz.data.curate.config import Dedup
from openrlhf_orz.data.curate.minhash import Union, bands, candidates, runs
from openrlhf_orz.data.curate.same_question import same_question
from openrlhf_orz.data.curate.shards import Stage, read_lines, rejection, write_lines
from openrlhf_orz.data.curate.signature import hash64, signature

_PAIRS_AT_ONCE = 20_000
_FAMILY_SHARE, _FAMILY_SIZE = 0.01, 20  # a family may have so large a share of the rows, or so many of them


def answer_key(answer: str) -> str:
    """Answers with one key are the same; others may still be."""
    text = re.sub(r"\\(?:left|right|text|mathrm|textbf|displaystyle|,|;|!| )|[\s${}]|\\(?=[%$])", "", answer)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".").replace("^\\circ", "").lower()
    text = re.sub(r"^[a-z]=", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"(\.\d*?)0+$", r"\1", text).rstrip(".") if "." in text else text


def features(source: Path, target: Path) -> None:
    """Write what one shard's rows are compared by: exact and guard hashes, bands, answers, where each line begins."""
    signatures, answers, generated, offsets = [], [], [], []
    position = 0
    with source.open("rb") as lines:
        for line in lines:
            offsets.append(position)
            position += len(line)
    for row in read_lines(source):
        signatures.append(signature(row["question"]))
        answers.append(hash64(answer_key(row["answer"])))
        generated.append(bool(row["meta"].get("generated")))
    band, family = bands(signatures)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        np.savez(
            file, band=band, family=family, offsets=np.array(offsets, np.int64), generated=np.array(generated, bool),
            exact=np.array([s.exact for s in signatures], np.uint64), answers=np.array(answers, np.uint64),
            guard=np.array([s.guard for s in signatures], np.uint64),
        )  # fmt: skip
    partial.rename(target)


class Pool:
    """All rows of the stage before, their features in memory and their lines on disk."""

    def __init__(self, files: list[Path], features: list[Path]):
        loaded = [dict(np.load(path, allow_pickle=False)) for path in features]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([part[name] for part in loaded])

        self.files = files
        self.sizes = [len(part["exact"]) for part in loaded]
        self.starts = np.concatenate(([0], np.cumsum(self.sizes)))
        self.exact, self.guard, self.answers = joined("exact"), joined("guard"), joined("answers")
        self.generated, self.offsets = joined("generated"), joined("offsets")
        self.band, self.family = joined("band"), joined("family")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def load(self, numbers: np.ndarray) -> dict[int, dict]:
        """The rows of these numbers (ascending)."""
        import json

        found = {}
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        for shard in np.unique(shards):
            with self.files[shard].open("rb") as file:
                for number in numbers[shards == shard]:
                    file.seek(int(self.offsets[number]))
                    found[int(number)] = json.loads(file.readline())
        return found


def link(pool: Pool, options: Dedup, embed: Callable[[list[str]], np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    """For each row the root of its group after exact and N-gram, and after embedding, comparison."""
    union = Union(len(pool))
    if options.exact:
        for group in runs(pool.exact, np.arange(len(pool))):
            for other in group[1:]:
                union.join(int(group[0]), int(other))
    members = np.flatnonzero((union.roots() == np.arange(len(pool))) & ~pool.generated)
    if options.ngram:
        for pairs in candidates(pool.band, pool.guard, members):
            _verify(pool, np.unique(pairs, axis=0), union, options)
    first = union.roots()
    if embed is not None:
        members = np.flatnonzero((first == np.arange(len(pool))) & ~pool.generated)
        for pairs in _embedding_pairs(pool, members, options, embed):
            for i, j in pairs:
                union.join(int(i), int(j))
    return first, union.roots()


def _verify(pool: Pool, pairs: np.ndarray, union: Union, options: Dedup) -> None:
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        part = part[[union.root(int(i)) != union.root(int(j)) for i, j in part]]
        signatures = {n: signature(row["question"]) for n, row in pool.load(np.unique(part)).items()}
        for i, j in part:
            i, j = int(i), int(j)
            if union.root(i) != union.root(j):
                same = bool(pool.answers[i] == pool.answers[j])
                if (
                    same_question(signatures[i], signatures[j], same, options.same_answer, options.other_answer)
                    is not None
                ):
                    union.join(i, j)


def _embedding_pairs(pool: Pool, members: np.ndarray, options: Dedup, embed: Callable) -> list:
    """Pairs with the same mathematics and answer whose embeddings are close."""
    found = []
    keys = pool.guard[members] ^ (pool.answers[members] * np.uint64(0x9E3779B97F4A7C15))
    for group in runs(keys, members):
        rows = pool.load(group)
        questions = [rows[int(number)]["question"] for number in group]
        vectors = embed(questions)
        decides = [signature(question).deciding for question in questions]
        for i in range(len(group) - 1):
            close = np.flatnonzero(vectors[i + 1 :] @ vectors[i] >= options.embedding_similarity) + i + 1
            pairs = [(group[i], group[j]) for j in close if decides[i] == decides[j]]
            if pairs:
                found.append(np.array(pairs))
    return found


def families(pool: Pool, roots: np.ndarray) -> np.ndarray:
    """A looser group for each row, by words alone: the same task with other numbers. For splits without leakage.

    A family too large (a template of the synthetic kind) falls apart into its groups of duplicates.
    """
    union = Union(len(pool))
    members = np.flatnonzero(~pool.generated)
    for column in range(pool.family.shape[1]):
        for group in runs(pool.family[members, column], members):
            for other in group[1:]:
                union.join(int(group[0]), int(other))
    for number in np.flatnonzero(roots != np.arange(len(pool))):
        union.join(int(number), int(roots[number]))
    found = union.roots()
    sizes = np.bincount(found, minlength=len(pool))
    return np.where(sizes[found] > max(_FAMILY_SIZE, _FAMILY_SHARE * len(pool)), roots, found)


def choose(rows: list[dict], rank: Callable[[str], int]) -> tuple[int, bool]:
    """Which row of a group stays, and whether its answers conflict.

    With conflicting answers one of those that most rows give; then the longest answer, then the best source, then
    the first row.
    """
    keys = [answer_key(row["answer"]) for row in rows]
    votes = Counter(keys)
    order = sorted(
        range(len(rows)),
        key=lambda i: (-votes[keys[i]], -len(rows[i]["answer"]), rank(rows[i]["source"]), i),
    )
    return order[0], len(votes) > 1


def decide(
    pool: Pool, stage: Stage, options: Dedup, embed: Callable | None, agree: Callable[[str, str], bool] | None
) -> dict:
    """Group, choose, and write clusters.jsonl; returns the arrays that `split_shard` needs.

    `agree(answer, reference)` settles whether two answers with different keys are the same.
    """
    first, roots = link(pool, options, embed)
    family = families(pool, roots)
    kept_for = np.arange(len(pool))
    clusters, heads = [], {}
    duplicates = np.flatnonzero(roots != np.arange(len(pool)))
    groups: dict[int, list[int]] = defaultdict(list)
    for number in duplicates:
        groups[int(roots[number])].append(int(number))
    ranks = {source: i for i, source in enumerate(options.sources)}
    conflicts = 0
    for root in sorted(groups):
        numbers = [root, *groups[root]]
        loaded = pool.load(np.array(numbers))
        rows = [loaded[number] for number in numbers]
        head, conflict = choose(rows, lambda source: ranks.get(source, len(ranks)))
        if conflict and agree is not None:
            distinct = {answer_key(row["answer"]): row["answer"] for row in rows}
            kept_answer = rows[head]["answer"]
            conflict = not all(agree(answer, kept_answer) for answer in distinct.values())
        conflicts += conflict
        keeper = numbers[head]
        kept_for[numbers] = keeper
        heads[keeper] = rows[head]["id"]
        members = [
            {"id": row["id"], "answer": row["answer"], "source": row["source"], "how": _how(pool, first, n, keeper)}
            for n, row in zip(numbers, rows)
        ]
        clusters.append({"kept": rows[head]["id"], "conflict": conflict, "members": members})
    write_lines(stage.folder / "clusters.jsonl", clusters)
    sizes = np.bincount(family, minlength=len(pool))
    return {"kept_for": kept_for, "first": first, "family": family, "family_sizes": sizes, "heads": heads,
            "clusters": len(clusters), "conflicts": conflicts}  # fmt: skip


def _how(pool: Pool, first: np.ndarray, number: int, keeper: int) -> str:
    if number == keeper:
        return "kept"
    if pool.exact[number] == pool.exact[keeper]:
        return "exact"
    return "ngram" if first[number] == first[keeper] else "embedding"


def split_shard(pool: Pool, shard: int, decided: dict, stage: Stage, target: int) -> None:
    """Write the kept rows and the duplicates of one shard of the stage before."""
    start, rejected = int(pool.starts[shard]), []
    family, kept_for = decided["family"], decided["kept_for"]

    def kept():
        for i, row in enumerate(read_lines(pool.files[shard])):
            number = start + i
            keeper = int(kept_for[number])
            if keeper == number:
                row["meta"]["family"] = int(family[number])
                yield row
            else:
                how = _how(pool, decided["first"], number, keeper)
                rejected.append(rejection(row, "dedup", f"duplicate_{how}", duplicate_of=decided["heads"][keeper]))

    stage.write(target, kept(), rejected)
