"""Rules for families with parameters, congruences and functions in pieces."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from openrlhf_orz.reward.judge import ranges, shapes, values
from openrlhf_orz.reward.judge.brackets import spoken
from openrlhf_orz.reward.judge.lists import match_unordered
from openrlhf_orz.reward.judge.quantity import number
from openrlhf_orz.reward.rules import Decision, agree_by_rules

_KINDS = (
    r"(?:(?:positive|non-?negative|negative|non-?zero|natural|whole|real|complex|rational|arbitrary|any|all|every|each|some"
    r"|an?|the|constants?|integers?|reals?|numbers?|parameters?|values?|of|\\forall)(?![a-zA-Z])\s*)"
)
_NAMES = r"(?P<names>{0}(?:\s*(?:,|and)\s*{0})*)".format(r"[a-zA-Z](?![a-zA-Z(])")
_CLAUSE = re.compile(
    rf"(?s)(?P<lead>(?:where|for|with|when|if)\s+)?(?P<kinds>{_KINDS}*){_NAMES}\s*"
    rf"(?P<rest>(?:\\in|in\s)\s*(?:\\mathbb\{{(?P<set>[RZNQC])\}}(?:[\^_]\s*\{{?[*+\d\s\\geq>]+\}}?)*|{_KINDS}+)|(?:(?:is|are)\s+)?{_KINDS}+"
    r"|(?P<bound>(?:<|>|\\leq|\\geq|\\neq)[^|]*?))?\)?$"
)
_GAP = re.compile(r"[\s,;:(|]+(?:and\s+)?")
_ABOUT = re.compile(r"\\(?:in|forall|text|leq|geq|neq)(?![a-zA-Z])|[<>]|(?<![\\a-zA-Z])(?:for|where|constant)\s")


@dataclass(frozen=True)
class Family:
    """``n = 3k, k \\in \\mathbb{Z}``: what is said, the names behind it, their set ("" the reals), and bounds."""

    body: str
    names: tuple[str, ...]
    domain: str
    bounds: tuple[str, ...]


def _family(text: str) -> Family | None:
    """``text`` without the quantifiers, domains and conditions at its end; None if it has none."""
    if not _ABOUT.search(text) or "\\begin" in text:
        return None
    body = spoken(text)
    if body.startswith("\\{") and body.endswith("\\}"):
        body = body[2:-2].strip()
    names, domain, bounds = [], "", []
    while clause := next(_clauses(body), None):
        before, match, found = clause
        condition = f"{match['names']} {match['bound']}"
        if match["bound"] and (_bounded(before, found[0]) or ranges.parse_range(condition) is None):
            break
        body = before
        names += found
        kind = re.search(r"integer|natural|whole", match[0])
        natural = match["set"] == "N" or kind and re.search(r"positive|natural|negative", match[0])
        domain = domain or ("N" if natural else "Z" if kind else (match["set"] or "").strip("R"))
        bounds += [condition] if match["bound"] else []
    return Family(body, tuple(names), domain, tuple(bounds)) if {*names} & {*shapes.NAME.findall(body)} else None


def _clauses(body: str) -> Iterator[tuple[str, re.Match, list[str]]]:
    """The declarations that end ``body``, the longest first: what stands before, the declaration, its names."""
    for gap in _GAP.finditer(body, 1):
        match = _CLAUSE.match(body, gap.end())
        if match and (match["lead"] or match["kinds"] or match["rest"]):
            names = re.findall(r"\\?[a-zA-Z]+", re.sub(r"\band\b", "", match["names"]))
            # in `x, A, B` behind a space, x ends what is said
            if len(set(names)) == len(names) and (len(names) == 1 or gap[0].strip()):
                yield body[: gap.start()], match, names


def _bounded(body: str, name: str) -> bool:
    """Whether ``body`` is about the values of ``name``, as in ``x = \\pm 3, x > 0``: no family."""
    sides, signs = shapes.relations(body)
    called = "(" in sides[0]  # f(x) = x is about f
    return (not called and name in (sides[0], sides[-1])) or any(sign in "<>\\leq\\geq\\neq" for sign in signs)


def family_rule(gold: str, answer: str) -> Decision:
    """Names of parameters do not matter, nor where their count starts; a domain may go without saying."""
    left, right = _family(gold), _family(answer)
    if left is right is None:
        return None
    if right and not left and not all(_is_natural(bound, right.body) for bound in right.bounds):
        return False  # a part of what the reference says
    left, right = left or _undeclared(gold, answer, right), right or _undeclared(answer, gold, left)
    if left.domain != right.domain:
        return False
    free = len(left.names) == len(right.names) and not set(left.names) & set(right.names)
    name_of = dict(zip(right.names, left.names)) if free else {}
    body, bounds = (
        shapes.NAME.sub(lambda m: name_of.get(m[0], m[0]), text) for text in (right.body, ", ".join(right.bounds))
    )
    if left.bounds and bounds and not agree_by_rules(", ".join(left.bounds), bounds):
        return False
    if agree_by_rules(left.body, body):
        return True
    if left.domain != "Z" or len(left.names) != 1:
        return False
    return bool(values.same_progression(_value_of(left.body), _value_of(body), left.names[0]))


def _value_of(text: str) -> str:
    """What a label names in ``text``, or all of it."""
    sides, signs = shapes.relations(text)
    return sides[-1] if signs == ["="] and shapes.is_label(sides[0]) else text


def _undeclared(text: str, other: str, declared: Family | None) -> Family:
    """``text`` as a family like the ``declared`` one: constants and counts are its letters that ``other`` has not."""
    assert declared
    own = [
        name
        for name in dict.fromkeys(shapes.NAME.findall(text))
        if len(name) == 1 and name not in shapes.NAME.findall(other)
    ]
    counted = declared.domain in ("Z", "N") or all(name in "ABCDKc" for name in own)
    names = tuple(own) if counted and len(own) == len(declared.names) else declared.names
    return Family(text, names, declared.domain, ())


def _is_natural(bound: str, body: str) -> bool:
    """Whether ``bound`` goes without saying: ``x \\neq a``, positive, an index, or what ``body`` needs for a value."""
    (name, edge), (sign,) = shapes.relations(bound)
    lower = sign in (">", "\\geq")
    if sign == "\\neq" or lower and (edge == "0" or name in "ijklmn"):
        return True
    return not values.is_real_at(_value_of(body), name, f"{edge} {'-' if lower else '+'} 1")


_MOD = re.compile(r"\\[bp]mod\{(\d{1,4})\}")
_COUNTED = re.compile(r"(?:(?P<name>\\?[a-zA-Z]+)\s*=\s*)?(?P<value>[^a-zA-Z=]*(?P<count>[k-nt])?[^a-zA-Z=]*)$")
_NAMED = re.compile(r"\s*(\\?[a-zA-Z]+)\s*(?:\\equiv|=)")


def _congruence(text: str) -> tuple[str, int, frozenset[int]] | None:
    """The name, the modulus and the residues of ``n \\equiv 1, 4 \\pmod 5``."""
    name, modulus, found = "", 0, set()
    listed = shapes.items_of(text)
    for part in reversed(listed.parts if listed else (text,)):  # a modulus holds for the parts before it
        named, own, before = _NAMED.match(part), _MOD.search(part), modulus
        modulus = int(own[1]) if own else modulus
        if not modulus or before not in (0, modulus) or (named and name not in ("", named[1])):
            return None
        name = named[1] if named else name
        for spelled in shapes.both_signs(_MOD.sub("", _NAMED.sub("", part)).strip()):
            value = number(spelled)
            if value is None or value.denominator != 1:
                return None
            found.add(int(value))
    return name, modulus, frozenset(found)


def congruence_rule(gold: str, answer: str) -> Decision:
    """`x \\equiv 2 \\pmod 5` is `x \\equiv -3 \\pmod 5`; a remainder may be given with its modulus."""
    if not _MOD.search(gold + answer):
        return None
    left, right = _congruence(gold), _congruence(answer)
    if left and right:
        whole = math.lcm(left[1], right[1])
        sets = [{(r + k * m) % whole for r in rs for k in range(whole // m)} for _, m, rs in (left, right)]
        return sets[0] == sets[1] and (not left[0] or not right[0] or left[0] == right[0])
    one, other = (left, answer) if left else (right, gold)
    value, series = number(other), _family(other)
    named = _COUNTED.match(series.body if series else other)
    count = series.names[0] if series else named and named["count"]
    if one and len(one[2]) == 1 and named and count and (not series or series.domain == "Z"):
        other_name = one[0] and named["name"] not in (None, one[0])
        return not other_name and bool(
            values.same_progression(f"{one[1]}{count}+{min(one[2])}", named["value"], count)
        )
    if one is None or value is None or one[0] or "\\bmod" in gold + answer:
        return False
    return one[2] == {value} and 0 <= value < one[1] - 1  # 42 \pmod{43} only repeats the number


_REST = re.compile(r"\W*(?:text\{\s*)?(?:otherwise|else)\b")
_PIECES = re.compile(r"(?s)(?:([^&=]*)=\s*)?\\begin\{cases\}(.*)\\end\{cases\}$")


def pieces_rule(gold: str, answer: str) -> Decision:
    """The pieces of a function may stand in any order; one may be for all that is left."""
    found = [match for match in map(_PIECES.match, (gold, answer)) if match and shapes.is_label(match[1] or "")]
    tables = [[tuple(row.split("&")) for row in match[2].split("\\\\")] for match in found]
    if len(tables) < 2:
        return None if not tables or "=" in re.sub(r"\\begin.*", "", gold + answer) else False
    if any(len(row) != 2 for row in tables[0] + tables[1]):
        return None
    others = [[row for row in rows if _REST.match(row[1])] for rows in tables]
    if len(others[0]) != len(others[1]):  # what is left must be what the other side says
        rows, said = tables if others[0] else tables[::-1]
        ruled = [rule for _, rule in rows if not _REST.match(rule)]
        wanted = [rule for _, rule in said if not any(agree_by_rules(rule, known) for known in ruled)]
        given, left = ranges.parse_range(" \\text{ or } ".join(ruled)), ranges.parse_range(" ".join(wanted))
        if len(wanted) != 1 or not given or not left or not ranges.same_range(ranges.complement(given), left):
            return False
        rows[:] = [(value, wanted[0] if _REST.match(rule) else rule) for value, rule in rows]
    return match_unordered(tables[0], tables[1], lambda a, b: all(map(agree_by_rules, a, b)))
