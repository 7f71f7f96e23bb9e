"""Whether two questions are one, by their signatures."""

from __future__ import annotations

from difflib import SequenceMatcher

from openrlhf_orz.data.curate.signature import DECIDE, SMALL, Signature

_FRAMED = 0.8  # share of the shorter question's words in the longer one


def similarity(one: Signature, other: Signature) -> float:
    """Jaccard similarity of words and word pairs, or of runs of letters, whichever is larger; 1 without words."""
    if not one.grams and not other.grams:
        return 1.0
    words = len(one.grams & other.grams) / len(one.grams | other.grams)
    return max(words, len(one.letters & other.letters) / len(one.letters | other.letters))


def only_slips(one: list[str], other: list[str]) -> bool:
    """Whether two texts differ in nothing but small words and typing errors."""
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


def same_question(one: Signature, other: Signature, same_answer: bool, low: float, high: float) -> float | None:
    """The similarity of two questions when they are one, else None.

    Their mathematics must agree: in order with variables renamed; or, with equal answers, the same runs of it in
    another order. Their words must be alike: at least `low` with equal answers, else `high`, and then but for typing
    errors and small words the same. Words that decide what is asked (smallest or largest, sum or product) must be the
    same ones, unless only one question has more of them and the answers agree.
    """
    if one.maths != other.maths and not (same_answer and sorted(one.chunks) == sorted(other.chunks)):
        return None
    if one.deciding != other.deciding:
        exchanged = one.deciding - other.deciding and other.deciding - one.deciding
        if exchanged or not same_answer:
            return None
    alike = similarity(one, other)
    if not same_answer:
        return alike if alike >= high and only_slips(one.words, other.words) else None
    if len(one.maths) < 3:  # with little mathematics to agree on, the words have to say more
        return alike if alike >= low + (high - low) / 4 else None
    # One may stand in a longer frame: "Here is a problem. ..."
    shared = len(one.grams & other.grams) / max(1, min(len(one.grams), len(other.grams)))
    return alike if alike >= low or shared >= _FRAMED else None
