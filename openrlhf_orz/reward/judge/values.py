"""Are two expressions the same value? Parsed by Math-Verify's parser, compared exactly.

Expressions are evaluated to 50 digits, at random-looking points of their symbols: unlike ``simplify`` this is quick
for wrong answers too, and unlike rounding to six places it tells 1.414 from the square root of two.
``math_verify.verify`` compares what cannot be evaluated.
"""

from __future__ import annotations

import functools
import logging
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Basic, Expr, Float, I, MatrixBase, Poly, Rational, Symbol, log, nan, oo, preorder_traversal, zoo
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.function import AppliedUndef
from sympy.functions.elementary.integers import RoundFunction

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

# The rules handle units, percent and boxes before; Math-Verify would drop a trailing letter as a unit.
_CONFIG = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_CASED = ConversionConfig(lowercase_symbols=False)  # R is not r
_parse = functools.partial(latex2sympy, convert_degrees=False, normalization_config=None, conversion_config=_CASED)
_PRIMED = re.compile(r"(\\?[a-zA-Z])(_\{?\w+\}?)?\s*('+)")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\\circ")
_DIVISOR = re.compile(r"\\(gcd|lcm|min|max)\s*\(([^()]*[a-zA-Z][^()]*)\)")
DIGITS = 50
_GUARD_DIGITS = 15  # the last of these digits, which may differ
_MAX_DIGITS = 10_000
_HUGE = 10**30
_ZERO = Rational(1, 10**95)
POSITIVE_SEEDS = [(137, 61, 29), (89, 211, 17), (1009, 311, 53)]
NEGATIVE_SEEDS = [(-73, 59, 31), (-227, 97, 19)]


def _divisor(match: re.Match) -> str:
    """A symbol for ``\\gcd(n,k)``: SymPy would return 1, as for any two polynomials."""
    arguments = sorted(argument.strip() for argument in match[2].split(","))
    return f"D_{{{zlib.crc32(repr((match[1], arguments)).encode())}}}"


def _primed(match: re.Match) -> str:
    """A symbol of its own for ``y''``: the parser would drop the primes."""
    return f"{match[1]}_{{{''.join(re.findall('[a-zA-Z0-9]', match[2] or ''))}P{len(match[3])}}}"


T = TypeVar("T")


def none_on_error(function: Callable[..., T]) -> Callable[..., T | None]:
    """SymPy raises errors of all kinds: the function returns None then, unless memory is out."""

    @functools.wraps(function)
    def guarded(*arguments):
        try:
            return function(*arguments)
        except MemoryError:
            raise
        except Exception:
            return None

    return guarded


@functools.lru_cache(maxsize=2048)
@none_on_error
def parse_expression(text: str) -> Basic | MatrixBase | None:
    """``text`` (tidy LaTeX) as a SymPy object, None if it cannot be parsed. Cached, as references repeat."""
    latex = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", _DIVISOR.sub(_divisor, text))
    latex = normalize_latex(_PRIMED.sub(_primed, latex), _CONFIG)
    parsed = _parse(latex, is_real=not should_treat_as_complex(latex))
    return parsed if isinstance(parsed, (Basic, MatrixBase)) else None


def same_value(gold: str, answer: str) -> bool | None:
    """Whether two spans are equal as expressions, None if one cannot be parsed."""
    left, right = parse_expression(gold), parse_expression(answer)
    return None if left is None or right is None else same_parsed(left, right)


def same_parsed(left: Basic | MatrixBase, right: Basic | MatrixBase) -> bool:
    """Whether two parsed objects are equal, the reference first."""
    if any(isinstance(side, MatrixBase) or side.has(MatrixBase) for side in (left, right)):
        left, right = _done(left), _done(right)
        if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
            return left.shape == right.shape and all(same_parsed(a, b) for a, b in zip(left, right))
        return False
    if isinstance(left, Expr) and isinstance(right, Expr):
        decided = evaluate_equal(left, right)
        if decided is not None:
            return decided
    return bool(verify([left], [right], timeout_seconds=None))


def _done(expression: Basic | MatrixBase) -> Basic | MatrixBase:
    done = none_on_error(expression.doit)()
    return expression if done is None else done


def exact(expression: Expr) -> Expr:
    """Decimals as the rationals they spell, ``i`` as the imaginary unit, ``f(2)`` as a symbol."""
    swaps = {call: Symbol(str(call)) for call in expression.atoms(AppliedUndef)}
    swaps.update({f: Rational(str(f)) for f in expression.atoms(Float)})
    swaps.update({s: I for s in expression.free_symbols if s.name == "i"})
    return expression.xreplace(swaps) if swaps else expression


def _sorted(expression: Expr) -> Expr:
    """With the factors and terms in SymPy's order (the parser leaves them as written), symbols by name alone."""
    expression = expression.xreplace({symbol: Symbol(symbol.name) for symbol in expression.atoms(Symbol)})
    return expression.replace(lambda node: node.is_Mul or node.is_Add, lambda node: node.func(*node.args))


@none_on_error
def evaluate_equal(left: Expr, right: Expr) -> bool | None:
    """Equality by evaluation; None when the points do not settle it."""
    bound = left.has(ExprWithLimits) and right.has(ExprWithLimits)
    if bound:  # the variable of a sum or an integral has no name
        left, right = left.as_dummy(), right.as_dummy()
    left, right = exact(left), exact(right)
    if left.is_Rational and right.is_Rational or left in (oo, -oo) or right in (oo, -oo):
        return bool(left == right)
    if bound and _sorted(left) == _sorted(right):
        return True  # a sum up to n takes seconds at a point
    symbols = left.free_symbols | right.free_symbols
    if not symbols:
        return _equal_constants(left, right)
    if len(symbols) > 12:
        return None
    seeds = [*POSITIVE_SEEDS]
    if left.has(RoundFunction) or right.has(RoundFunction):  # floors hide what is small
        seeds += [(top * 97, bottom, step * 89) for top, bottom, step in seeds]
    seen = [_equal_at(left, right, sample_point(symbols, seed)) for seed in seeds]
    if False in seen:
        return False
    if True not in seen:
        return None
    for at in (sample_point(symbols, seed) for seed in NEGATIVE_SEEDS):
        if _equal_at(left, right, at) is False and _defined(left, at) and _defined(right, at):
            return None
    return True


def _equal_constants(left: Expr, right: Expr) -> bool | None:
    """Equality to 50 digits, to more where longer numbers are written, and exactly where these would not tell."""
    equal = _equal_at(left, right, {})
    value = number_at(left, {}) if equal else None
    size = 1 if value is None else abs(value)
    if equal and (size > _HUGE or size < _ZERO):  # 2^{2008} and 2^{2008}-2 share 604 digits
        left, right = _done(left), _done(right)
        if left.is_Rational and right.is_Rational:
            return bool(left == right)
        return None if size > _HUGE else True
    reach = _digits_written(left, right)
    if equal and DIGITS < 2 * reach < _MAX_DIGITS:  # 2^{1/2^{1000}} is not 1
        return _equal_at(left, right, {}, DIGITS + reach)
    return equal


def may_be_rounding(gold: str, answer: str) -> bool:
    """Whether ``answer`` could be a rounding of ``gold``: within a fiftieth; True if that cannot be decided."""
    left, right = parse_expression(gold), parse_expression(answer)
    if not isinstance(left, Expr) or not isinstance(right, Expr) or left.free_symbols | right.free_symbols:
        return True
    if left.is_Integer and right.is_Integer:  # 64 \approx 65 is no rounding
        places = range(len(str(right)))
        if not any(right % 10**k == 0 and abs(left - right) * 2 <= 10**k for k in places):
            return False
    exactly, rounded = number_at(exact(left), {}), number_at(exact(right), {})
    return exactly is None or rounded is None or bool(abs(exactly - rounded) * 50 <= abs(exactly))


def within_distance(text: str, value: Fraction, distance: Fraction) -> bool | None:
    """Whether the constant ``text`` is within ``distance`` of ``value``, None if it is no expression."""
    parsed = parse_expression(text)
    number = number_at(exact(parsed), {}) if isinstance(parsed, Expr) else None
    if number is None or not number.is_real:
        return None if parsed is None else False
    return bool(abs(number - Rational(value)) <= Rational(distance))


def is_real_at(text: str, name: str, at: str) -> bool:
    """Whether the expression ``text`` has a real value where the symbol ``name`` is the constant ``at``."""
    parsed, place = parse_expression(text), parse_expression(at)
    if not isinstance(parsed, Expr) or not isinstance(place, Expr):
        return True
    point = sample_point(parsed.free_symbols, POSITIVE_SEEDS[0])
    value = number_at(exact(parsed), point | {s: exact(place) for s in point if s.name == name})
    return value is not None and bool(value.is_real)


@none_on_error
def same_progression(gold: str, answer: str, name: str) -> bool | None:
    """Whether two expressions linear in the integer ``name`` take the same values; None if one is not linear."""
    lines = []
    for parsed in map(exact, map(parse_expression, (gold, answer))):
        symbol = next(s for s in parsed.free_symbols if s.name == name)
        lines.append(Poly(parsed, symbol).all_coeffs())
    (step, start), (other_step, other_start) = lines
    shift = (other_start - start) / step
    same_step = evaluate_equal(step, other_step) or evaluate_equal(step, -other_step)
    return bool(same_step and evaluate_equal(shift, shift.evalf(DIGITS).round()))


def sample_point(symbols: set[Symbol], seed: tuple[int, int, int]) -> dict[Symbol, Rational]:
    """Values for the symbols, by name and far from special ones; ``seed`` is one of POSITIVE_SEEDS."""
    top, bottom, step = seed
    sign = -1 if top < 0 else 1
    names = sorted({s.name for s in symbols})  # one name may be real on one side and complex on the other
    at = {name: Rational(top + sign * (step * n * n + 7 * n), bottom + 11 * n) for n, name in enumerate(names)}
    return {s: at[s.name] for s in symbols}


def _digits_written(*sides: Expr) -> int:
    """Digits, about, of the longest number in ``sides``, those of powers such as 2^{1000} included."""
    bits = 0
    for node in (node for side in sides for node in preorder_traversal(side)):
        base, times = (node.base, node.exp) if node.is_Pow else (node, Rational(1))
        if base.is_Rational and (times == 1 or times.is_Integer):
            bits = max(bits, max(int(base.p).bit_length(), int(base.q).bit_length()) * abs(int(times)))
    return bits * 3 // 10


def _equal_at(left: Expr, right: Expr, point: dict[Symbol, Rational], digits: int = DIGITS) -> bool | None:
    first, second = number_at(left, point, digits), number_at(right, point, digits)
    if first is None or second is None:
        return None
    difference, size = abs(first - second), max(abs(first), abs(second))
    close = difference <= size / 10 ** (digits - _GUARD_DIGITS)
    if point and size > _HUGE and close:  # 2^{4950} hides what is added to it
        rest = (left - right).subs(point)
        return bool(rest == 0) if rest.is_Rational else None
    return bool(close or size < _ZERO)


def _defined(expression: Expr, point: dict[Symbol, Rational]) -> bool:
    """Whether all roots and logarithms are of positive numbers at ``point``; else log(ab) is not log a + log b."""
    for node in preorder_traversal(expression):
        if isinstance(node, log) or (node.is_Pow and not node.exp.is_integer):
            value = number_at(node.args[0], point)
            if value is not None and not value.is_positive:
                return False
    return True


def number_at(expression: Expr, point: dict[Symbol, Rational], digits: int = DIGITS) -> Expr | None:
    """The value of ``expression`` at ``point``, None if it is not a finite complex number."""
    value = expression.evalf(digits, subs=point, maxn=digits + 150)
    if not value.is_number or value.has(nan, zoo, oo) or not value.is_comparable and not value.is_complex:
        return None
    real, imaginary = value.as_real_imag()
    return value if real.is_Number and imaginary.is_Number else None
