"""Exact numbers with their signs and exponents, currencies and units."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from sympy import factorint

DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_TEN_TO = r"(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?:(?P<whole>\d+)\s*)?\\frac\s*\{{\s*(?P<top>-?\s*{DECIMAL})\s*\}}"
    rf"\s*\{{\s*(?P<bottom>-?\s*{DECIMAL})\s*\}}"
    rf"|(?P<plain>{DECIMAL})(?:\s*{_TEN_TO}\s*(?P<exponent>\{{\s*[+-]?\d+\s*\}}|[+-]?\d+))?"
    rf"|(?P<start>\d*\.\d*)\\overline\s*\{{?(?P<cycle>\d+)\}}?"
    r"|10\s*\^\s*(?P<power>\{\s*[+-]?\d+\s*\}|\d))$"
)
_SLASH = re.compile(rf"({DECIMAL})\s*/\s*({DECIMAL})$")
MAX_DIGITS = 1000  # in an exact number; sums of this many digits cost microseconds
MAX_EXPONENT = 2000


def number(text: str) -> Fraction | None:
    """The rational number that ``text`` (tidy) is: an integer, decimal, fraction, mixed or scientific."""
    if not text or len(text) > MAX_DIGITS or not (text[-1].isdigit() or text[-1] in "}."):
        return None
    match = _NUMBER.match(_SLASH.sub(r"\\frac{\1}{\2}", text))
    if not match:
        return None
    group = {name: (value or "").strip("{} ").replace(" ", "") for name, value in match.groupdict().items()}
    if group["bottom"]:
        if not Fraction(group["bottom"]):
            return None
        value = Fraction(group["top"]) / Fraction(group["bottom"])
        if group["whole"] and not 0 <= value < 1:
            return None  # 2\frac{3}{2} is a product to some and a sum to others
        value += int(group["whole"] or 0)
    elif group["cycle"]:
        cycle, places = group["cycle"], len(group["start"].partition(".")[2])
        value = Fraction(group["start"] + "0") + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)
    else:
        exponent = int(group["exponent"] or group["power"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value = Fraction(group["plain"] or 1) * Fraction(10) ** exponent
    return -value if group["sign"] == "-" else value


def fraction(value: Fraction) -> str:
    """``value`` in the notation of the rules."""
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


_POWER = r"\d{1,9}(?:\s*\^\s*(?:\{\s*\d{1,12}\s*\}|\d(?!\d)))?"
_POWERS = re.compile(rf"{_POWER}(?:\s*\\(?:cdot|times)\s*{_POWER})*$")


def prime_powers(text: str) -> dict[int, int] | None:
    """The prime factors of a product of whole numbers and their powers, such as ``3 \\cdot 3^{6567339}``."""
    if not _POWERS.match(text):
        return None
    total: Counter[int] = Counter()
    for base, exponent in re.findall(r"(\d+)(?:\s*\^\s*\{?\s*(\d+))?", text):
        total.update({prime: times * int(exponent or 1) for prime, times in factorint(int(base)).items()})
    return +total  # without exponents 0


# Unit -> (dimension, size in the dimension's base unit). Names are singular and lower case.
UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _names in {
    "length": "mm=millimeter=millimetre=1/1000 cm=centimeter=centimetre=1/100 dm=1/10 m=meter=metre=1 "
    "km=kilometer=kilometre=1000 in=inch=inche=254/10000 ft=foot=feet=3048/10000 yd=yard=9144/10000 mi=mile=1609.344",
    "mass": "mg=1/1000 g=gm=gram=1 kg=kilogram=1000 lb=pound=45359237/100000 oz=ounce=28349523125/1000000000 "
    "ton=907184740/1000",
    "time": "ms=millisecond=1/1000 s=sec=second=1 min=minute=60 h=hr=hour=3600 day=86400 week=604800",
    "year": "yr=year=1 month=1/12",
    "length^3": "ml=milliliter=cc=1/1000000 l=liter=litre=1/1000",
    "gallon": "gal=gallon=1 quart=1/4 pint=1/8 cup=1/16",
    "money": "\\$=$=dollar=usd=buck=1 cent=¢=penny=pennie=1/100",
    "euro": "€=euro=eur=1",
    "sterling": "£=gbp=1",
    "rupee": "₹=rupee=r=rs=1",
    "yuan": "yuan=rmb=¥=1",
    "angle": "degree=deg=°=1",
    "radian": "radian=rad=1",
    "length/time": "mph=1609344/3600000 kmph=kph=1000/3600",
    "length^2": "acre=40468564224/10000000 hectare=10000",
    "force": "n=newton=1",
    "energy": "j=joule=1 kj=1000",
    "power": "w=watt=1 kw=1000",
    "frequency": "hz=hertz=1",
    "celsius": "celsiu=c=1",
    "fahrenheit": "fahrenheit=f=1",
    "information": "bit=1 byte=8",
}.items():
    for _entry in _names.split():
        *_spellings, _size = _entry.split("=")
        UNITS.update((_name, (_dimension, Fraction(_size))) for _name in _spellings)

_GENERIC = {"unit", "total", "in", "all", "altogether", "of", "the", "area", "length", "each", "exactly"}
_STOP_WORDS = (  # a text with one of them is no unit
    "about approximately approx roughly nearly almost around ish something or and not is are was but no maybe perhaps "
    "either to than if when where for any every some never wrong false true yes answer plus minus times point hundred "
    "thousand million billion trillion dozen half percent mod modulo remainder base by over because with am pm "
    "except unless other between more less at least most up squared cubed"
)
_STOP = set(_STOP_WORDS.split())
_CURRENCY = re.compile(
    r"^(?P<minus>-?)\s*(?P<unit>\\\$|[€£¥₹]|(?:\\text\{\s*)?(?:Rs\.?|USD|US\\\$)\s*\}?)\s*(?P<body>\S.*)$"
)
_TAIL = re.compile(
    r"\s*(?:\\text\{(?P<words>[^{}]*)\}\s*(?:\^\s*\{?\s*(?P<power>-?[123])\s*\}?)?"
    r"|\\text\{(?P<top>[^{}]*)\}\s*/\s*\\text\{(?P<bottom>[^{}]*)\}"
    r"|\\frac\{\s*\\text\{(?P<over>[^{}]*)\}\s*\}\{\s*\\text\{(?P<under>[^{}]*)\}\s*\}"
    r"|(?P<sign>\\\$|[€£¥₹¢]))$"
)
_WORD = r"[a-zA-Z]+(?:[./-][a-zA-Z]+)*\.?"
_WORDS = re.compile(
    rf"(?P<body>.*[\d}})])(?P<gap>\s*)(?P<words>{_WORD}(?: {_WORD}){{0,3}})(?:\s*\^\s*\{{?(?P<power>[23])\}}?)?$",
    re.DOTALL,
)
_DEGREE = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?(?P<scale>[CF]?)(?:elsius|ahrenheit)?\s*\}?$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")


@dataclass(frozen=True)
class Unit:
    """A unit of measure, or the noun of a count (``dimension`` "word:..."), with its size."""

    dimension: str
    size: Fraction = Fraction(1)


def singular(word: str) -> str:
    word = word.lower().strip(".")
    if word in UNITS:
        return word
    return word[:-1] if len(word) > 2 and word.endswith("s") else word


def unit_of(words: str, power: int = 1) -> Unit | None:
    """The unit that ``words`` name, None if they are no unit or noun phrase (or say nothing)."""
    words = re.sub(r"\bper\b", "/", words.lower()).replace("-", " ")
    tokens = [singular(token) for token in re.findall(r"[a-z€£¥₹¢°]+|\\\$|/", words)]
    if any(token in _STOP - {"squared", "cubed"} for token in tokens) or re.search(r"\d", words):
        return None
    for spelled, exponent in (("square", 2), ("sq", 2), ("squared", 2), ("cubic", 3), ("cubed", 3), ("cu", 3)):
        if spelled in tokens:
            tokens.remove(spelled)
            power = exponent
    meaningful = [token for token in tokens if token not in _GENERIC or (token == "in" and len(tokens) == 1)]
    if not meaningful:
        return Unit("unit" if "unit" in tokens else "") if tokens else None
    if power < 0 and len(meaningful) > 1:  # m s^{-2}
        meaningful.insert(-1, "/")
    sides, power = " ".join(meaningful).split("/"), abs(power)
    size, names = Fraction(1), []
    for position, side in enumerate(sides):
        token = side.strip()
        dimension, factor = UNITS.get(token, ("word:" + token, Fraction(1)))
        factor **= power if position == len(sides) - 1 else 1
        size = size / factor if position else size * factor
        names.append(dimension)
    return Unit("/".join(names) + (f"^{power}" if power != 1 else ""), size)


def split_unit(text: str) -> tuple[str, Unit | None, bool]:
    """The body of ``text``, its unit (None if it has none) and whether the unit is certain.

    A trailing letter may be a unit or a factor (``5m``): then the last item is False.
    """
    match = _CURRENCY.match(text)
    if match:
        name = re.sub(r"\\text\{|[}. ]", "", match["unit"]).replace("US\\$", "usd").lower()
        body, inner, _ = split_unit(match["minus"] + match["body"])
        named = inner is not None and inner.dimension != "money"
        return body, inner if named else Unit(*UNITS.get(name, ("money", Fraction(1)))), True
    match = _DEGREE.search(text)
    if match and match.start() and not _TRIGONOMETRIC.search(text):
        scale = {"C": "celsius", "F": "fahrenheit"}.get(match["scale"], "angle")
        return text[: match.start()].strip(), Unit(scale), True
    match = _TAIL.search(text)
    if match and match.start():
        top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
        words = match["words"] or match["sign"] or (f"{top} / {bottom}" if top and bottom else "")
        unit = unit_of(words, int(match["power"] or 1))
        if unit or not words.strip():
            return text[: match.start()].rstrip("\\ "), unit, True
        return text, None, True
    match = _WORDS.match(text)
    if not match or "\\int" in text:  # x dx is no unit
        return text, None, True
    words, unit = match["words"], unit_of(match["words"], int(match["power"] or 1))
    known = unit is not None and not unit.dimension.startswith("word:")
    sure = len(words) > 1 and (bool(match["gap"]) or known)
    product = not sure and re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", match["body"])
    named = known and (len(words) > 1 or words in "mghsLlNJWF") or sure and len(words) > 2
    return (match["body"], unit, sure) if unit and named and not product else (text, None, True)


def units_agree(gold: Unit | None, answer: Unit | None) -> Fraction | None:
    """The factor that turns the answer's number into the reference's unit, None if they conflict.

    A missing unit agrees with any: the question fixed it.
    """
    if gold is None or answer is None or not gold.dimension or not answer.dimension:
        return Fraction(1)
    if gold.dimension == answer.dimension:
        return answer.size / gold.size
    if "unit" in (gold.dimension, answer.dimension):  # no measure at all, or the lengths of a drawing
        other = answer.dimension if gold.dimension == "unit" else gold.dimension
        return Fraction(1) if other.startswith(("word:", "length")) else None
    nouns = [set(unit.dimension[5:].split()) for unit in (gold, answer) if unit.dimension.startswith("word:")]
    if len(nouns) == 2 and (nouns[0] <= nouns[1] or nouns[1] <= nouns[0]):
        return Fraction(1)
    return None
