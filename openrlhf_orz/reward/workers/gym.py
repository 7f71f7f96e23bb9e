"""Scores an answer by the scorer of its reasoning-gym task, where that scorer only compares and the answer has a form
that the scorer reads as a whole. Runs in a worker.

Many scorers read the first number, the known letters or the first places of an answer and pass over the rest:
``20 or 30`` was right for 20, ``0`` for 0.234375, ``NaN`` for ``8.0 + 3.0i``. :func:`same_form` stands before them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from contextlib import suppress

from openrlhf_orz.reward.verdict import Verdict

# The scorers of reasoning-gym 0.1.25 that only compare and count. Left out are those that run an answer or a reference
# as code (eval, SymPy's parse_expr), hand it to a scorer of its naming (composite), or are of no use as a verifier.
SCORERS = frozenset(
    """
    ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation
    caesar_cipher calendar_arithmetic chain_sum circuit_logic coin_flip color_cube_rotation complex_arithmetic
    count_bits count_primes course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery
    family_relationships figlet_font fraction_simplification futoshiki game_of_life gcd group_anagrams gsm_symbolic
    isomorphic_strings jugs kakurasu knight_swap knights_knaves largest_island lcm leg_counting letter_counting
    letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack
    number_filtering number_format number_sequence palindrome_generation palindrome_partitioning path_star
    polynomial_equations power_function products quantum_lock ransom_note rearc rectangle_count rotate_matrix
    rotten_oranges self_reference sentence_reordering shortest_path simple_equations simple_geometry
    sokoban string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals
    tower_of_hanoi tsumego word_ladder word_sequence_reversal word_sorting zebra_puzzles
    """.split()
)
_ONE_NUMBER = re.compile(r"([+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)(?:/(\d+))?")
_NUMBERS = re.compile(r"-?\s*\d+(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]{2,}")
# What answers consist of where the scorer passes over all else.
_SIGNS = {
    "sokoban": re.compile(r"[UDLR]+"),
    "quantum_lock": re.compile(r"[A-Ca-c\s,>→-]+"),
    "kakurasu": re.compile(r"[01\s]+"),
    "survo": re.compile(r"[\d\s]+"),
}
_LOOSEST = 0.005  # of a number's size: three significant digits, as power_function has it


def _value(text: str) -> float | None:
    """``text`` as one number, also with commas or as a fraction; None if it is more or less than that."""
    match = _ONE_NUMBER.fullmatch(text)
    try:
        return float(match[1].replace(",", "")) / float(match[2] or 1) if match else None
    except (ZeroDivisionError, OverflowError):
        return None


def same_form(reference: str, answer: str, question: str = "") -> bool:
    """Whether ``answer`` is one answer of the reference's form, so that a scorer may be asked about it.

    A number is one number, of the reference's size to three digits. Other answers have no more numbers than the
    reference, and no more negative ones. What is one word or chain stays one. In a sentence, words are those of the
    reference and the question, and no more than in the reference. Only a list may look like a list.
    """
    reference, answer = reference.strip(), answer.strip()
    if not answer or not reference:
        return False
    wanted = _value(reference)
    if wanted is not None:
        given = _value(answer)
        return given is not None and abs(given - wanted) <= _LOOSEST * abs(wanted)
    numbers, stated = _NUMBERS.findall(answer), _NUMBERS.findall(reference)
    if len(numbers) > len(stated) or "".join(numbers).count("-") > "".join(stated).count("-"):
        return False
    if "[" in (reference[0], answer[0]) or "{" in (reference[0], answer[0]):
        return reference[0] == answer[0]  # JSON, which the scorer reads whole
    if len(reference.split()) == 1:
        return len(re.sub(r",\s+", ",", answer).split()) == 1
    words, said = (_WORD.findall(text.casefold()) for text in (answer, reference))
    return len(words) <= len(said) and {*words} <= {*said, *_WORD.findall(question.casefold())}


@functools.cache
def _scorer(task: str) -> Callable[[str, dict], float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)  # makes a data set: up to a second


def warm(entry: str) -> None:
    """Import what :func:`score_entry` needs for ``entry``. Raises ImportError without the package reasoning-gym."""
    import reasoning_gym  # noqa: F401  it takes seconds, which are not the answer's

    with suppress(ValueError, TypeError, KeyError, RecursionError):
        task = json.loads(entry)["metadata"]["source_dataset"]
        if task in SCORERS:
            _scorer(task)


def score_entry(entry: str, answer: str) -> tuple[Verdict, str]:
    """RIGHT if ``answer`` is that of ``entry``, a row of a reasoning-gym data set as JSON, or has the full score.

    Partial scores are WRONG, as a reward is 0 or 1.
    """
    item = json.loads(entry)
    task, reference = item["metadata"]["source_dataset"], str(item["answer"])
    if task not in SCORERS:
        return Verdict.REFUSED, "reasoning_gym"
    if answer.strip() and _lines(answer) == _lines(reference):  # scorers of grids do not know theirs once it was JSON
        return Verdict.RIGHT, "reasoning_gym"
    fair = same_form(reference, answer, str(item.get("question", "")))
    fair = fair and (task not in _SIGNS or _SIGNS[task].fullmatch(answer) is not None)
    value = _scorer(task)(answer, item) if fair else 0
    right = isinstance(value, (int, float)) and value >= 1.0
    return (Verdict.RIGHT if right else Verdict.WRONG), "reasoning_gym"


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]
