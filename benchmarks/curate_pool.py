"""A labelled pool from real rows: what should be kept, and planted rows that each stage should find.

A pool row is a row for the pipeline (`question`, `answer`, `source`, `id`) with `label`: keep, choice, proof, parts,
guessable, chinese, other, exact, near, respelt or wrapped (a duplicate; `of` names its original), or differs (made
from a row by changing a number, a sign or what is asked: to be kept).
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import curate_texts as texts

_DOUBTFUL = re.compile(  # real rows that may be of a planted kind stay out of the pool
    r"\(A\)|\(a\)|\(i\)|\bA[.)]|which of|choice|option|prove|show that|true|false|yes|part|explain|figure|diagram"
    r"|shown|justif|verify|describe|draw|graph|image|!\[|http",
    re.I,
)
_FORMULA = re.compile(r"\$(?!\d[\d,.]*\s+[a-z])([^$]+)\$")  # not what stands between two prices
_STYLES = [
    lambda o: " ".join(f"({c}) {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"{c}. {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"{c}) {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"({c.lower()}) {v}" for c, v in o),
    lambda o: "\n$" + "\\qquad".join(f"\\textbf{{({c})}}\\ {v}" for c, v in o) + "$",
    lambda o: (
        "\n$\\text{(A)}\\ " + o[0][1] + " \\quad " + " \\quad ".join(f"\\text{{({c})}}\\ {v}" for c, v in o[1:]) + "$"
    ),
    lambda o: " " + " ".join(f"{c}) {v}" for c, v in o),
    lambda o: " " + "   ".join(f"{c}. {v}" for c, v in o),
    lambda o: "\nOptions: " + ", ".join(f"{c}: {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"{c}  {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"**{c}.** {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"[{c}] {v}" for c, v in o),
    lambda o: "\n" + "\n".join(f"{c}: {v}" for c, v in o),
    lambda o: "\nAnswer choices: " + " ".join(f"({c}) {v}" for c, v in o),
    lambda o: "（    ）\n" + " ".join(f"{c}．{v}" for c, v in o),
    lambda o: (
        " $\\mathrm{(A) \\ } "
        + o[0][1]
        + "\\qquad "
        + "\\qquad ".join(f"\\mathrm{{({c}) \\ }} {v}" for c, v in o[1:])
        + "$"
    ),
]


def _fill(template: str, chance: random.Random) -> str:
    return template.format(**{name: chance.randint(2, 97) for name in "abcd"})


def load(paths: list[str]) -> list[dict]:
    """Real rows with a question and an answer, in the files' order."""
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                row = json.loads(line)
                question = row.get("question") or row.get("prompt") or row.get("problem")
                rows.append({"question": question, "answer": str(row["answer"]), "id": f"{Path(path).stem}/{number}"})
    return rows


def choice(row: dict, chance: random.Random) -> dict | None:
    """A real question with a whole number as its answer, with options in one of the styles."""
    if not re.fullmatch(r"-?\d{1,6}", row["answer"]):
        return None
    value = int(row["answer"])
    values = chance.sample([value, *chance.sample([value + d for d in (-7, -3, -2, -1, 1, 2, 4, 5, 10)], 4)], 5)
    options = list(zip("ABCDE", map(str, values)))[: max(4, values.index(value) + 1)]
    letter = "ABCDE"[values.index(value)]
    return {
        "question": row["question"] + chance.choice(_STYLES)(options),
        "answer": chance.choice([letter, row["answer"]]),
    }


def exact(text: str, chance: random.Random) -> str:
    """The same question, spelt otherwise: spaces, delimiters, equivalent commands, case of the first letter."""
    for _ in range(chance.randint(1, 3)):
        text = chance.choice(
            [
                lambda t: t.replace(" ", "  "),
                lambda t: _FORMULA.sub(r"\\(\1\\)", t),
                lambda t: t.replace(". ", ".\n"),
                lambda t: t.replace("\\frac", "\\dfrac"),
                lambda t: t.replace("\\le ", "\\leq "),
                lambda t: "Problem 3. " + t,
                lambda t: t.rstrip(".") if t.endswith(".") else t + " ",
                lambda t: _FORMULA.sub(r"$ \1 $", t),
                lambda t: t[0].lower() + t[1:],
                lambda t: t.replace("'", "’"),
                lambda t: re.sub(r"\\cdot(?![a-z])", r"\\times", t),
            ]
        )(text)
    return text


def near(text: str, chance: random.Random) -> str:
    """The same question in other words: synonyms, a typing error, a frame, another name or variable."""
    kinds = chance.sample([_synonyms, _typo, _frame, _name, _variable, _drop], chance.randint(1, 2))
    for kind in kinds:
        text = kind(text, chance)
    return text


def respelt(text: str, chance: random.Random) -> str:
    """The same question with other LaTeX and spacing."""
    changes = [
        lambda t: re.sub(r"\\cdot(?![a-z])", r"\\bullet", t),
        lambda t: re.sub(r"(?<!\d)\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", t),
        lambda t: re.sub(r"\$([A-Z]{1,3}|\d+)\$", r"\1", t),
        lambda t: re.sub(r"(?<![\d$.,])(\d+) (cm|feet|meters|inches|miles|units)\b", r"$\1\\text{ \2}$", t),
        lambda t: re.sub(r"(?<![\\A-Za-z])([A-Z]{2})(?=\s*=)", r"\1^{}_{}", t),
        lambda t: "14. " + t,
    ]
    if "[asy]" not in text:
        for change in chance.sample(changes, 4):
            text = change(text)
    return text


WRAPPERS = {
    "bare": lambda q: q,
    "sentence before": lambda q: "Here is a problem from a contest. " + q,
    "year before": lambda q: "This was asked in a contest of 2024. " + q,
    "sentence behind": lambda q: q + " Think it through and put the final answer in a box.",
    "both": lambda q: f"A teacher asks the following. {q}\nAnswer with one number.",
    "instruction": lambda q: (
        "Solve the exercise below one step after another. The very last line you write must look like "
        f'"Result: X", where X is what you found.\n\n{q}\n\nDo not forget to write the result on its own line.'
    ),
    "boxed": lambda q: q + "\n\nThink step by step, then give your final answer inside \\boxed{}.",
    "bold": lambda q: f"**{q}**",
    "textbf": lambda q: rf"\textbf{{{q}}}",
    "capitals": str.upper,
    "json": lambda q: json.dumps({"question": q}),
    "json in json": lambda q: json.dumps(json.dumps({"question": q})),
    "program": lambda q: repr({"question": q}),
    "quotation": lambda q: "> " + q.replace("\n", "\n> "),
    "chat": lambda q: f"Question: {q}\nAnswer:",
}
_WRAPS = ("sentence before", "sentence behind", "instruction", "boxed", "bold", "capitals", "json", "chat")


def wrapped(text: str, chance: random.Random) -> str:
    return WRAPPERS[chance.choice(_WRAPS)](text)


def _synonyms(text, chance):
    return re.sub(
        r"\b[a-z]+\b", lambda m: texts.SYNONYMS.get(m.group(), m.group()) if chance.random() < 0.8 else m.group(), text
    )


def _words(text):
    """Places of plain words outside mathematics."""
    outside = re.sub(
        r"\$[^$]*\$|\\\[.*?\\\]|\\\w+|\[asy\].*?\[/asy\]", lambda m: " " * len(m.group()), text, flags=re.S
    )
    return list(re.finditer(r"(?<![\\{\w])[a-z]{5,}(?![\w}])", outside))


def _typo(text, chance):
    places = _words(text)
    for found in sorted(chance.sample(places, min(2, len(places))), key=lambda m: -m.start()):
        at = chance.randrange(found.start() + 1, found.end() - 1)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def _drop(text, chance):
    places = list(re.finditer(r"\b(?:the|a|that|of|also|then) ", text))
    for found in sorted(chance.sample(places, min(3, len(places))), key=lambda m: -m.start()):
        text = text[: found.start()] + text[found.end() :]
    return text


def _frame(text, chance):
    return chance.choice(texts.PREFIXES) + text if chance.random() < 0.6 else text + chance.choice(texts.SUFFIXES)


def _name(text, chance):
    found = re.search(
        r"\b(?:Natalia|Betty|Julie|James|Mark|Tina|Jill|Mary|John|Tom|Jack|Alice|Bob|Sarah|Mike|Anna|Ken|Randy)\b",
        text,
    )
    return text.replace(found.group(), chance.choice(texts.NAMES)) if found else _synonyms(text, chance)


def _variable(text, chance):
    if (
        not re.search(r"\$[^$]*(?<![A-Za-z\\])x(?![A-Za-z])[^$]*\$", text)
        or re.search(r"[A-Za-z]x|x[A-Za-z]", text)
        or re.search(r"(?<![A-Za-z\\])t(?![A-Za-z])", text)
    ):
        return _frame(text, chance)
    return re.sub(r"(?<![A-Za-z\\])x(?![A-Za-z])", "t", text)


DUPLICATES = {"exact": exact, "near": near, "respelt": respelt, "wrapped": wrapped}


def differs(text: str, chance: random.Random) -> str | None:
    """Another question: one number, sign or word that decides is changed; None where there is none to change."""
    swaps = {
        "smallest": "largest",
        "largest": "smallest",
        "sum": "product",
        "product": "sum",
        "minimum": "maximum",
        "maximum": "minimum",
        "more": "fewer",
        "area": "perimeter",
        "even": "odd",
    }
    options = []
    numbers = list(
        re.finditer(
            r"(?<![\d.\\])\d+(?![\d.])",
            re.sub(r"\[asy\].*?\[/asy\]", lambda m: " " * len(m.group()), text, flags=re.S),
        )
    )
    if numbers:
        found = chance.choice(numbers)
        options += [text[: found.start()] + str(int(found.group()) + chance.randint(1, 9)) + text[found.end() :]] * 3
    sign = re.search(r"(?<=[\w}])\s*([+-])\s*(?=[\w\\])(?=[^$]*\$)", text)
    if sign and text[: sign.start()].count("$") % 2:
        options.append(text[: sign.start(1)] + ("-" if sign.group(1) == "+" else "+") + text[sign.end(1) :])
    word = re.search(rf"\b(?:{'|'.join(swaps)})\b", text)
    if word:
        options.append(text[: word.start()] + swaps[word.group()] + text[word.end() :])
    return chance.choice(options) if options else None


def build(rows: list[dict], size: int, seed: int) -> list[dict]:
    """A shuffled pool: `size` real rows, and of each planted kind about a tenth of that."""
    chance = random.Random(seed)
    rows = [row for row in rows if not _DOUBTFUL.search(row["question"]) and len(row["question"]) < 2500]
    rows = list({" ".join(re.findall(r"\w+|[-+*/=^]", row["question"].lower())): row for row in rows}.values())
    chance.shuffle(rows)
    real, spare = rows[:size], iter(rows[size:])
    pool = [{**row, "label": "keep"} for row in real]
    share = max(20, size // 10)
    made: list[tuple[str, str, str, str | None]] = []
    while sum(kind == "choice" for kind, *_ in made) < share:
        found = choice(next(spare), chance)
        if found:
            made.append(("choice", found["question"], found["answer"], None))
    for _ in range(share):
        claim = _fill(chance.choice(texts.CLAIMS), chance)
        made.append(("proof", chance.choice(texts.PROOF_FORMS).format(claim=claim), str(chance.randint(1, 99)), None))
        x, y = (_fill(task, chance) for task in chance.sample(texts.PART_TASKS, 2))
        made.append(("parts", chance.choice(texts.PARTS).format(x=x, y=y), str(chance.randint(1, 99)), None))
        question, answer = chance.choice(texts.YES_NO)
        made.append(("guessable", _fill(question, chance), answer, None))
        made.append(("chinese", _fill(chance.choice(texts.CHINESE), chance), str(chance.randint(1, 99)), None))
        language = chance.choice(list(texts.OTHER))
        made.append(("other", _fill(chance.choice(texts.OTHER[language]), chance), str(chance.randint(1, 99)), None))
    for kind, change in DUPLICATES.items():
        for row in chance.sample(real, share):
            made.append((kind, change(row["question"], chance), row["answer"], row["id"]))
    for row in chance.sample(real, share):
        question = differs(row["question"], chance)
        if question:
            same = chance.random() < 0.3
            made.append(("differs", question, row["answer"] if same else str(chance.randint(100, 999)), None))
    seen = {row["question"] for row in pool}
    for number, (kind, question, answer, of) in enumerate(made):
        if question in seen and kind not in DUPLICATES:
            continue
        seen.add(question)
        pool.append({"question": question, "answer": answer, "id": f"made/{number}", "label": kind, "of": of})
    chance.shuffle(pool)
    return pool
