"""Stage 4: of every group of duplicates one row stays; clusters.jsonl says which row went for which.

Exact: the same words, numbers and signs. N-gram: MinHash finds questions with similar words and the same mathematics,
which are then compared in full. Embedding: the same among paraphrases. `similarity.same_question` says when two
questions are one.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openrlhf_orz.data.curate.config import Dedup
from openrlhf_orz.data.curate.framing import unframed
from openrlhf_orz.data.curate.shards import Stage, rejection
from openrlhf_orz.data.curate.signature import hash64, signature
from openrlhf_orz.data.curate.similarity import (
    DisjointSets,
    Embed,
    bands,
    candidate_pairs,
    reworded,
    runs,
    same_question,
)
from openrlhf_orz.data.json_lines import partial_of, read_records, write_records

_PAIRS_AT_ONCE = 20_000
_FAMILY_SHARE, _FAMILY_SIZE = 0.01, 20  # a family has at most this share of the rows, or this many


def answer_key(answer: str) -> str:
    """A short spelling: answers with equal keys are equal; answers with different keys may be equal, too."""
    text = re.sub(r"\\(?:left|right|text|mathrm|textbf|displaystyle|,|;|!| )|[\s${}]|\\(?=[%$])", "", answer)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".").replace("^\\circ", "").lower()
    text = re.sub(r"^[a-z]=", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"(\.\d*?)0+$", r"\1", text).rstrip(".") if "." in text else text


def features(source: Path, target: Path) -> None:
    """Write the features by which a shard's rows are compared: hashes, bands, answers, and where each line begins."""
    signatures, answers, generated, offsets = [], [], [], []
    position = 0
    with source.open("rb") as lines:
        for line in lines:
            offsets.append(position)
            position += len(line)
    for row in read_records(source):
        signatures.append(signature(row["question"]))
        answers.append(hash64(answer_key(row["answer"])))
        generated.append(bool(row["meta"].get("generated")))
    band, family = bands(signatures)
    with partial_of(target).open("wb") as file:
        np.savez(
            file,
            band=band,
            family=family,
            offsets=np.array(offsets, np.int64),
            generated=np.array(generated, bool),
            answers=np.array(answers, np.uint64),
            exact=np.array([s.exact for s in signatures], np.uint64),
            guard=np.array([s.guard for s in signatures], np.uint64),
        )
    partial_of(target).rename(target)


class PooledRows:
    """All rows of the stage before: their features in memory, their lines on disk."""

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
        found = {}
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        for shard in np.unique(shards):
            with self.files[shard].open("rb") as file:
                for number in numbers[shards == shard]:
                    file.seek(int(self.offsets[number]))
                    found[int(number)] = json.loads(file.readline())
        return found


def link(pool: PooledRows, options: Dedup, embed: Embed | None) -> tuple[np.ndarray, np.ndarray]:
    """The root of each row's group, (n,), after exact and N-gram comparison; and after embeddings, too."""
    groups = DisjointSets(len(pool))
    if options.exact:
        for group in runs(pool.exact, np.arange(len(pool))):
            for other in group[1:]:
                groups.join(int(group[0]), int(other))
    members = np.flatnonzero((groups.roots() == np.arange(len(pool))) & ~pool.generated)
    if options.ngram:
        for pairs in candidate_pairs(pool.band, pool.guard, members):
            _verify(pool, np.unique(pairs, axis=0), groups, options)
    first = groups.roots()
    if embed is not None:
        members = np.flatnonzero((first == np.arange(len(pool))) & ~pool.generated)
        for pairs in _embedding_pairs(pool, members, options, embed):
            for i, j in pairs:
                groups.join(int(i), int(j))
    return first, groups.roots()


def _verify(pool: PooledRows, pairs: np.ndarray, groups: DisjointSets, options: Dedup) -> None:
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        part = part[[groups.root(int(i)) != groups.root(int(j)) for i, j in part]]
        signatures = {n: signature(row["question"]) for n, row in pool.load(np.unique(part)).items()}
        for i, j in part:
            i, j = int(i), int(j)
            if groups.root(i) != groups.root(j):
                same = bool(pool.answers[i] == pool.answers[j])
                thresholds = options.same_answer, options.other_answer
                if same_question(signatures[i], signatures[j], same, *thresholds) is not None:
                    groups.join(i, j)


def _embedding_pairs(pool: PooledRows, members: np.ndarray, options: Dedup, embed: Embed) -> Iterator[np.ndarray]:
    """Pairs (m, 2) with the same answer whose embeddings are close, and which `reworded` takes for one question."""
    for group in runs(pool.answers[members], members):
        rows = pool.load(group)
        questions = [rows[int(number)]["question"] for number in group]
        vectors = embed([unframed(question) for question in questions])
        signatures = [signature(question) for question in questions]
        for i in range(len(group) - 1):
            close = np.flatnonzero(vectors[i + 1 :] @ vectors[i] >= options.embedding_similarity) + i + 1
            pairs = [(group[i], group[j]) for j in close if reworded(signatures[i], signatures[j])]
            if pairs:
                yield np.array(pairs)


def families(pool: PooledRows, roots: np.ndarray) -> np.ndarray:
    """The root of each row's family, (n,): rows with the same words and other numbers, which no split separates.

    A family that is too large (a template of synthetic rows) falls apart into its groups of duplicates.
    """
    groups = DisjointSets(len(pool))
    members = np.flatnonzero(~pool.generated)
    for column in range(pool.family.shape[1]):
        for group in runs(pool.family[members, column], members):
            for other in group[1:]:
                groups.join(int(group[0]), int(other))
    for number in np.flatnonzero(roots != np.arange(len(pool))):
        groups.join(int(number), int(roots[number]))
    found = groups.roots()
    sizes = np.bincount(found, minlength=len(pool))
    return np.where(sizes[found] > max(_FAMILY_SIZE, _FAMILY_SHARE * len(pool)), roots, found)


def choose(rows: list[dict], rank: Callable[[str], int]) -> tuple[int, bool]:
    """The index of the row of a group that stays, and whether the group's answers conflict.

    The answer that most rows give wins; then the longest answer, then the best source, then the first row.
    """
    keys = [answer_key(row["answer"]) for row in rows]
    votes = Counter(keys)
    order = sorted(
        range(len(rows)),
        key=lambda i: (-votes[keys[i]], -len(rows[i]["answer"]), rank(rows[i]["source"]), i),
    )
    return order[0], len(votes) > 1


@dataclass
class DedupDecision:
    """Which rows stay; arrays have one element a row, and rows are named by their numbers."""

    kept_for: np.ndarray  # the row of the same group that stays
    first: np.ndarray  # the root of the group after exact and N-gram comparison
    family: np.ndarray  # the root of the family
    kept_ids: dict[int, str]  # ids of the rows that stay for others
    clusters: int  # number of groups
    conflicts: int  # number of groups whose answers conflict


def decide_duplicates(
    pool: PooledRows,
    stage: Stage,
    options: Dedup,
    embed: Embed | None,
    agree: Callable[[str, str], bool] | None,
) -> DedupDecision:
    """Group the rows, choose one of each group, and write clusters.jsonl.

    `agree(answer, reference)` settles whether two answers with different keys are the same.
    """
    first, roots = link(pool, options, embed)
    members: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(roots != np.arange(len(pool))):
        members[int(roots[number])].append(int(number))
    decision = DedupDecision(np.arange(len(pool)), first, families(pool, roots), {}, len(members), 0)
    ranks = {source: i for i, source in enumerate(options.sources)}
    clusters = []
    for root in sorted(members):
        numbers = [root, *members[root]]
        loaded = pool.load(np.array(numbers))
        rows = [loaded[number] for number in numbers]
        chosen, conflict = choose(rows, lambda source: ranks.get(source, len(ranks)))
        if conflict and agree is not None:
            distinct = {answer_key(row["answer"]): row["answer"] for row in rows}
            conflict = not all(agree(answer, rows[chosen]["answer"]) for answer in distinct.values())
        decision.conflicts += conflict
        decision.kept_for[numbers] = numbers[chosen]
        decision.kept_ids[numbers[chosen]] = rows[chosen]["id"]
        shown = [
            {"id": row["id"], "answer": row["answer"], "source": row["source"], "how": _how(pool, decision, number)}
            for number, row in zip(numbers, rows)
        ]
        clusters.append({"kept": rows[chosen]["id"], "conflict": conflict, "members": shown})
    write_records(stage.folder / "clusters.jsonl", clusters)
    return decision


def _how(pool: PooledRows, decision: DedupDecision, number: int) -> str:
    """By which comparison a row was found to be a duplicate, or "kept"."""
    keeper = decision.kept_for[number]
    if number == keeper:
        return "kept"
    if pool.exact[number] == pool.exact[keeper]:
        return "exact"
    return "ngram" if decision.first[number] == decision.first[keeper] else "embedding"


def split_shard(pool: PooledRows, shard: int, decision: DedupDecision, stage: Stage, target: int) -> None:
    """Write the kept rows and the duplicates of one shard of the stage before."""
    rejected = []

    def kept() -> Iterator[dict]:
        for number, row in enumerate(read_records(pool.files[shard]), int(pool.starts[shard])):
            keeper = int(decision.kept_for[number])
            if keeper == number:
                row["meta"]["family"] = int(decision.family[number])
                yield row
            else:
                reason = f"duplicate_{_how(pool, decision, number)}"
                rejected.append(rejection(row, "dedup", reason, duplicate_of=decision.kept_ids[keeper]))

    stage.write(target, kept(), rejected)
