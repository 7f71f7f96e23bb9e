"""The table of mends: what Math-Verify grades wrongly, one named rule each, in the order asked.

Names are functions of ``scalars``, ``relations`` and ``lists``. Their cases are in
tests/unit/reward/cases.txt; ``Grader(plain=True)`` goes without them.
"""

MENDS: dict[str, str] = {
    "unfinished": "dots in an answer do not complete it",
    "clock": "times keep am and pm; ratios compare as ratios",
    "exact_number": "numbers are equal exactly, not to six places",
    "percent": "5% is 0.05, and 5 where percent was asked for; 5 is not 500%",
    "base": "the base of a number is part of it",
    "family": "the name of an integer parameter does not matter, nor where its count starts",
    "interval": "intervals, unions and solved inequalities are sets; no set swallows a number",
    "listing": "lists have the reference's elements, and its order where it has one",
    "choice": "a choice letter is that letter, not a symbol or Euler's number",
    "words": "words are compared as words, not as products of letters",
    "relation": "a relation is not cut to its right side; an equation that always holds is no answer",
    "unit": "units may be left out or converted, never exchanged",
    "expression": "expressions are equal when they have one value everywhere, to 50 digits",
}
