"""Rows for grader.py: references, right and wrong answers to them, and hostile answers."""

from __future__ import annotations

import json
import random
import re

from openrlhf_orz.reward import guards

HOSTILE = [
    "9^{9^{9}}", "(10^9)!", r"\sin^{10^9}(x)", r"\binom{10^9}{5 \cdot 10^8}", "{" * 400 + "1" + "}" * 400,
    "7" * 1_000_000, "\x00" * 9, r"\sum_{n=1}^{10^9} \frac{1}{n}", r"\int_0^\infty e^{-x^x} \sin(x^x) dx",
    "e^{e^{e^{e}}}", "x+" * 450 + "1", r"\def\a{\a\a}\a", r"\tan(\sin(\cos(\tan(\sin(\cos(x))))))",
    r"\frac{x^{99}-1}{x-1} \cdot \frac{x^{98}-1}{x^2-1}", "(x+y+z)^{999}", r"\lfloor 10^{999} \pi \rfloor",
    "(((1,2),3),4)", r"\log(\log(\log(\log(\log(10)))))",
]  # fmt: skip


def response(answer: str) -> str:
    return f"so it is </think> <answer> \\boxed{{{answer}}} </answer>"


def rewritten(gold: str, chance: random.Random) -> str:
    """Another spelling of a reference."""
    spellings = [
        lambda g: re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", g),
        lambda g: g.replace("\\frac", "\\dfrac"),
        lambda g: f"{g}.0" if re.fullmatch(r"-?\d+", g) else g,
        lambda g: f"x = {g}" if re.fullmatch(r"-?\d+", g) else g,
        lambda g: g.replace(",", ", "),
        lambda g: f"{g} ",
    ]
    return chance.choice(spellings)(gold)


def pairs(paths: list[str], rows: int) -> list[tuple[str, str]]:
    """(reference, answer): distinct references, half of the answers right."""
    golds = {}
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            golds.update({str(json.loads(line)["answer"]): None for line in lines})
    chance = random.Random(0)
    golds = [gold for gold in golds if gold.strip() and not guards.refusal("0", gold)]
    chance.shuffle(golds)
    chosen = [golds[n % len(golds)] for n in range(rows)]
    return [(g, rewritten(g, chance) if n % 2 else chance.choice(golds)) for n, g in enumerate(chosen)]
