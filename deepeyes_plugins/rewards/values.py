r"""Answers parsed to values, and comparison of values of one kind.

A text is read to a number, percentage, quantity, list, bracketed pair or interval, set, matrix,
union, named value (``x = 5``), system of them, expression, or else stays a text. Equal or different
is said only where a mathematician would be sure; whether two expressions are equal is put to an
oracle, computer algebra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest

from deepeyes_plugins.rewards.latex import canonical, enclosed, parts
from deepeyes_plugins.rewards.units import CURRENCIES, Unit, unit

Oracle = Callable[[str, str], bool | None]
"""Whether two LaTeX expressions are equal; ``None`` if it cannot tell."""

LARGEST_EXPONENT = 300
"""Maximum exponent of a power of ten; larger ones are left to computer algebra with its timeout."""
LONGEST_EXPRESSION = 200
"""Maximum characters of an expression for computer algebra."""
LONGEST_UNIT = 40
"""Maximum characters of a unit."""
MOST_ITEMS = 12
"""Maximum items of a set or unordered list."""
APART = Fraction(1, 10)
"""Relative difference below which quantities may be equal after rounding in another unit."""


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number; ``rounded`` if decimals or a power of ten may have been."""

    value: Fraction
    rounded: bool = False

    @property
    def latex(self) -> str:
        """The number for computer algebra."""
        top, bottom = self.value.as_integer_ratio()
        return str(top) if bottom == 1 else rf"\frac{{{top}}}{{{bottom}}}"


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression for computer algebra."""

    latex: str


@dataclass(frozen=True, slots=True)
class Text:
    """Anything else, such as words, dates, times, ranges, ratios: equal only as spelled."""

    text: str


@dataclass(frozen=True, slots=True)
class Percentage:
    """A number of hundredths."""

    number: Number


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit."""

    size: Number | Expression
    unit: Unit


@dataclass(frozen=True, slots=True)
class Ordered:
    """Ordered items, with any brackets or none."""

    opening: str
    items: tuple[Value, ...]
    closing: str


@dataclass(frozen=True, slots=True)
class Set:
    """Unordered items without repetition: sets, alternatives, solutions."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Union:
    """A union of intervals or sets."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of cells."""

    kind: str
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A named value."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class System:
    """Values of several names, a system."""

    members: tuple[Named, ...]


Value = (
    Number
    | Expression
    | Text
    | Percentage
    | Quantity
    | Ordered
    | Set
    | Union
    | Matrix
    | Named
    | System
)


def read(text: str) -> Value | None:
    """Read an answer in LaTeX or plain text.

    Returns:
        ``None`` for what is empty, too long, or whose braces do not match.
    """
    spelled = canonical(text)
    return _value(spelled) if spelled else None


_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:[ ]\d{3})+|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)(?:
      (?P<decimal>{_DECIMAL})
    | (?P<whole>\d*)\.(?P<fixed>\d*)(?:\\overline\{{(?P<lined>\d+)\}}|\((?P<bracketed>\d+)\))
    | (?P<mixed>\d+)(?:\ (?P<over>\d+)/(?P<under>\d+)|\\frac\{{(?P<top>\d+)\}}\{{(?P<low>\d+)\}})
    | (?P<slash>{_WHOLE}/{_WHOLE})
    | \\frac\{{(?P<above>[-+]?{_DECIMAL})\}}\{{(?P<below>[-+]?{_DECIMAL})\}}
    | (?:(?P<times>\d+(?:\.\d+)?)(?:\\times|\\cdot|\ ?x\ ?))?10\^\{{(?P<power>[-+]?\d{{1,4}})\}}
    | (?P<mantissa>\d+(?:\.\d+)?)[eE](?P<exponent>[-+]?\d{{1,4}})
    )""",
    re.VERBOSE,
)
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "万": 10**4,
    "亿": 10**8,
}
_SCALED = re.compile(rf"(?P<number>.*\d) ?(?P<scale>{'|'.join(_SCALES)})(?![a-z])")
_PERCENT = re.compile(r"(?P<number>.+?) ?(?:%|percent|per cent)")
_CURRENCY = re.compile(rf"(?P<sign>[-+]?)(?P<unit>[{CURRENCIES}]) ?(?P<size>.+)")
_BEFORE_UNIT = re.compile(r"(?<=[\d})])|(?<=\\pi)|(?<=million)|(?<=billion)|(?<=[万亿])")
_COMPOUND = re.compile(r"(?:\d+(?:\.\d+)? ?[A-Za-z\u4e00-\u9fff]+(?: and | |(?=\d)|\Z)){2,4}")
_COMPOUND_PART = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z\u4e00-\u9fff]+)")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|omega))"
    r"(?:_\{\w+\})?(?:\((?:-?\d+|[A-Za-z](?:,[A-Za-z])*)\))?|\([A-Za-z](?:, ?[A-Za-z])+\)"
    r"|(?:\\(?:angle|triangle) ?)?[A-Z]{1,3}|[A-Za-z]{4,}(?: [A-Za-z]+)*"
)
_ORDER = re.compile(r"<|>|\\[lg]e(?![A-Za-z])")
_EQUALS = re.compile(r"=|\\in(?![A-Za-z])")
_SEMICOLONS = re.compile(r";")
_SPACED_COMMAS = re.compile(r", ")
_COMMAS = re.compile(r",")
_ALTERNATIVES = re.compile(r",? ?(?<![A-Za-z\\])(?:or|and)(?![A-Za-z]) ?|或")
_CONJUNCTION = re.compile(r",|(?<![A-Za-z])and(?![A-Za-z])")
_UNIONS = re.compile(r"\\cup(?![A-Za-z])")
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[pbBvV]?matrix|array)\}(?P<cells>.*)\\end\{(?P=kind)\}", re.DOTALL
)
_ROW_BREAK = re.compile(r"\\\\(?:\[[^\]]*\])?")


def _value(text: str) -> Value:
    if number := _number(text) or _percentage(text) or _quantity(text):
        return number
    if match := _MATRIX.fullmatch(text):
        return _matrix(match["kind"], match["cells"]) or Text(text)
    if (bracketed := enclosed(text)) is not None:
        return _bracketed(text, *bracketed)
    alternatives = parts(text, _ALTERNATIVES)
    if len(alternatives) > 1:
        return _together(text, alternatives, ordered=False)
    items = _items(text)
    if len(items) > 1:
        return _together(text, items, ordered=True)
    sides = parts(text, _EQUALS)
    if len(sides) == 2 and all(sides):
        return _named(text, *sides)
    if range_ := _bounded(text):
        return range_
    intervals = parts(text, _UNIONS)
    if len(intervals) > 1:
        return Union(tuple(map(_value, intervals))) if all(intervals) else Text(text)
    return _either_sign(text) or _expression(text) or Text(text)


def _number(text: str) -> Number | None:
    if match := _SCALED.fullmatch(text):
        number = _number(match["number"])
        return number and Number(number.value * _SCALES[match["scale"]], rounded=True)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    try:
        value = _magnitude(match)
    except (ValueError, ZeroDivisionError):  # Too many digits for Python, or a division by zero.
        return None
    if value is None:
        return None
    is_scientific = match["times"] is not None or match["mantissa"] is not None
    rounded = is_scientific or ("." in text and match["fixed"] is None)
    return Number(-value if match["sign"] == "-" else value, rounded)


def _magnitude(match: re.Match[str]) -> Fraction | None:
    found = {name: text for name, text in match.groupdict().items() if text is not None}

    def exact(text: str) -> Fraction:
        return Fraction(text.replace(",", "").replace(" ", "").rstrip("."))

    if "decimal" in found:
        return exact(found["decimal"])
    if "slash" in found:
        above, below = found["slash"].split("/")
        return exact(above) / exact(below)
    if "above" in found:
        return exact(found["above"]) / exact(found["below"])
    if "mixed" in found:
        part = Fraction(
            int(found.get("over") or found["top"]), int(found.get("under") or found["low"])
        )
        return int(found["mixed"]) + part if part < 1 else None
    if "fixed" in found:
        period = found.get("lined") or found["bracketed"]
        fixed = exact(f"0{found['whole']}.{found['fixed']}0")
        return fixed + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(found["fixed"]))
    exponent = int(found.get("power") or found["exponent"])
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    return exact(found.get("times") or found.get("mantissa") or "1") * Fraction(10) ** exponent


def _percentage(text: str) -> Percentage | None:
    match = _PERCENT.fullmatch(text)
    number = _number(match["number"]) if match else None
    return Percentage(number) if number else None


def _quantity(text: str) -> Quantity | None:
    size: Number | Expression | None
    if match := _CURRENCY.fullmatch(text):
        currency = unit(match["unit"])
        size = _number(match["sign"] + match["size"])
        return Quantity(size, currency) if size and currency else None
    if _COMPOUND.fullmatch(text):
        return _sum([(Fraction(size), unit(name)) for size, name in _COMPOUND_PART.findall(text)])
    for cut in _BEFORE_UNIT.finditer(text):
        counted = unit(text[cut.end() :].strip()) if len(text) - cut.end() <= LONGEST_UNIT else None
        if counted is None:
            continue
        before = text[: cut.end()]
        size = _number(before) or _expression(_unwrapped(before))
        if isinstance(size, Expression) and (counted.is_letter or _UNITLESS.search(before)):
            return None
        return Quantity(size, counted) if size else None
    return None


def _sum(terms: Sequence[tuple[Fraction, Unit | None]]) -> Quantity | None:
    """Sum ``1 hour 30 minutes``: units of one dimension, the larger first."""
    total = Fraction(0)
    first = terms[0][1]
    factors = []
    for size, counted in terms:
        if first is None or counted is None or counted.dimension != first.dimension:
            return None
        factors.append(counted.factor)
        total += size * counted.factor / first.factor
    if first is None or factors != sorted(set(factors), reverse=True):
        return None
    return Quantity(Number(total), first)


def _either_sign(text: str) -> Set | None:
    r"""Read ``a\pm b`` as two values; with decimals it is a tolerance."""
    if text.count(r"\pm") != 1 or "." in text:
        return None
    values = [_value(text.replace(r"\pm", sign).removeprefix("+").strip()) for sign in "+-"]
    return None if any(isinstance(value, Text) for value in values) else Set(tuple(values))


def _unwrapped(text: str) -> str:
    """Remove parentheses or braces around the whole text."""
    while (bracketed := enclosed(text)) and bracketed[0] in ("(", "{") and bracketed[1]:
        text = bracketed[1]
    return text


def _bracketed(text: str, opening: str, inside: str, closing: str) -> Value:
    if (match := _MATRIX.fullmatch(inside)) and match["kind"] == "array":
        kind = {"()": "pmatrix", "[]": "bmatrix"}.get(opening + closing)
        return (kind and _matrix(kind, match["cells"])) or Text(text)
    items = _items(inside)
    if not all(items):
        return Text(text)
    if opening in ("{", "(") and len(items) == 1 and closing in ("}", ")"):
        return _value(inside)
    if (opening, closing) in ((r"\{", r"\}"), ("{", "}")):
        return Text(text) if "|" in inside or ":" in inside else Set(tuple(map(_value, items)))
    if len(items) > 1 and opening in ("(", "[") and closing in (")", "]"):
        return Ordered(opening, tuple(map(_value, items)), closing)
    return Text(text)


def _items(text: str) -> list[str]:
    """Split a list; if spaces follow its commas, other commas group digits."""
    for separators in (_SEMICOLONS, _SPACED_COMMAS, _COMMAS):
        items = parts(text, separators)
        if len(items) > 1:
            return items
    return items


def _together(text: str, items: Sequence[str], *, ordered: bool) -> Value:
    """Return a list, the solutions for one name, or a system of several names.

    Of words and inequalities, "and" and "or" are not the same.
    """
    is_inequality = _ORDER.search(text) is not None
    if not all(items) or (is_inequality and (ordered or _CONJUNCTION.search(text))):
        return Text(text)
    values = [_value(item) for item in items]
    if not ordered and any(isinstance(value, Text) for value in values):
        return Text(text)
    first = values[0]
    if isinstance(first, Named) and not any(isinstance(value, Named) for value in values[1:]):
        return Named(first.name, Set((first.value, *values[1:])))
    if isinstance(first, Named):
        members = tuple(value for value in values if isinstance(value, Named))
        names = {member.name for member in members}
        if len(members) < len(values):
            return Text(text)
        if len(names) == 1:
            found = tuple(member.value for member in members)
            return Named(first.name, Union(found) if is_inequality else Set(found))
        return System(members) if len(names) == len(members) else Text(text)
    return Ordered("", tuple(values), "") if ordered else Set(tuple(values))


def _named(text: str, left: str, right: str) -> Value:
    if not _NAME.fullmatch(left) and _NAME.fullmatch(right):
        left, right = right, left
    if _NAME.fullmatch(left):
        return Named(left.replace(" ", ""), _value(right))
    return _expression(text) or Text(text)


def _bounded(text: str) -> Named | None:
    """Read an inequality for one name, ``x>5`` or ``1<x<2``, as an interval."""
    sides = parts(text, _ORDER)
    signs = [
        sign if sign in "<>" else {r"\le": "<=", r"\ge": ">="}[sign]
        for sign in _ORDER.findall(text)
    ]
    if len(sides) - 1 != len(signs) or not 2 <= len(sides) <= 3 or not all(sides):
        return None
    if signs[0][0] == ">":  # Read from the smaller side.
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    names = [bool(_NAME.fullmatch(side)) for side in sides]
    if any(">" in sign for sign in signs) or sum(names) != 1 or not (len(sides) == 2 or names[1]):
        return None
    at = names.index(True)
    low = _value(sides[at - 1]) if at else Expression(r"-\infty")
    high = _value(sides[at + 1]) if at + 1 < len(sides) else Expression(r"\infty")
    opening = "[" if at and "=" in signs[at - 1] else "("
    closing = "]" if at + 1 < len(sides) and "=" in signs[at] else ")"
    return Named(sides[at], Ordered(opening, (low, high), closing))


def _matrix(kind: str, cells: str) -> Matrix | None:
    rows = [[cell.strip() for cell in row.split("&")] for row in _ROW_BREAK.split(cells)]
    rows = rows[:-1] if rows[-1] == [""] else rows
    if not rows or not all(cell for row in rows for cell in row) or r"\begin" in cells:
        return None
    return Matrix(kind, tuple(tuple(map(_value, row)) for row in rows))


_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|times|div|ln|log|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan"
    r"|alpha|beta|gamma|delta|theta|phi|lambda|mu|omega|le|ge|neq|infty)"
)
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|omega)(?![a-z])")
_EXPRESSION_TOKEN = re.compile(r"\\[A-Za-z]+|[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|[-+/^_{}()|!=<> \[\]]")
_PRODUCTS_OF_LETTERS = {"abc", "xyz"}
_WORDS = {"or", "and", "to", "of", "is", "in", "at", "if", "no", "by", "as", "am", "pm", "vs"}
# What computer algebra reads differently, or what has several readings.
_MISREAD = re.compile(
    r"""
      [-\d\s./]+ \Z                                         # a range, a date, a score
    | \d+ (?: \\times\d+ )+ \Z                              # a size: 1920 × 1080
    | .*? (?: \d\ \d | \d_ | \d\ ?\\frac\{\d+\}\{\d+\}       # digits apart, a base, mixed
      # 2(3) and 2(1/2): to math-verify 2 + 3 and mixed
      | \d\)?\(-?(?:[\d./]+|\\frac\{\d+\}\{\d+\})\) | \([\d.]+\)\d
      | [A-Z]\ ?(?:\\cdot\ ?|\\times\ ?)?[A-Z]              # products that need not commute
      | [A-Za-z]\\times\ ?[A-Za-z]
      | /(?:\d+[A-Za-z\\(] | [A-Za-z]{2} | [A-Za-z][\d\\(]) # 1/2x
      | (?<![A-Za-z])(?:[A-Za-z]\(-?[\d.]+\) | [fghFGHP]\()   # f(0), f(x+1): no products
      | \\frac\{d.{0,12}?\}\{d[A-Za-z]                       # dy/dx
      | (?: [-+=<>/^] | \^\{[-+]*\} | \\(?:cdot|times|div|le|ge|neq) ) \Z
      )
    """,
    re.VERBOSE | re.DOTALL,
)
_POINT = re.compile(r"\d*\.\d+")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|neq)(?![A-Za-z])")
_ANGLE_FUNCTION = r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])"
_UNITLESS = re.compile(rf"{_RELATION.pattern}|{_ANGLE_FUNCTION}")
"""Found in no number of units: in ``\\cos 60°`` the degrees are the angle's."""


def _expression(text: str) -> Expression | None:
    """Return ``text`` if computer algebra reads it unambiguously."""
    if len(text) > LONGEST_EXPRESSION or _MISREAD.match(text):
        return None
    at = 0
    calculates = False
    after_letter = False
    while at < len(text):
        token = _EXPRESSION_TOKEN.match(text, at)
        if token is None:
            return None
        found = token[0]
        if after_letter and found[0].isdigit():  # x1 is a name, 4x6 a size, 3x 4y are two answers.
            return None
        after_letter = found.isalpha() or (after_letter and found == " ")
        after_letter = after_letter or _GREEK.fullmatch(found) is not None
        if found[0] == "\\":
            if not _COMMANDS.fullmatch(found):
                return None
        elif found.isalpha() and len(found) > 1:
            if found in _WORDS or (unit(found) and len(found) > 1):
                return None
            if len(found) > 2 and found not in _PRODUCTS_OF_LETTERS:
                return None
        calculates = calculates or not (found.isalpha() or found in " ()[]{}|")
        at = token.end()
    if not calculates or (_RELATION.search(text) and not _letters(text)):
        return None
    return Expression(text)


def _letters(text: str) -> set[str]:
    """Return the variables: letters of no command, except ``e``, and Greek ones by name."""
    return set(_GREEK.findall(text)) | set(re.sub(r"\\[A-Za-z]+|[^A-Za-df-z]", "", text))


def same(a: Value, b: Value, oracle: Oracle) -> bool | None:
    """Return whether two values are equal; ``None`` if undecided."""
    if a == b:
        return True
    match a, b:
        case Number(), Number():
            if a.value == b.value:
                return True
            return None if a.rounded or b.rounded else False
        case (Number() | Expression(), Number() | Expression()):
            return _same_expression(a.latex, b.latex, oracle)
        case Percentage(), Percentage():
            return same(a.number, b.number, oracle)
        case Percentage(), Number():
            return _same_share(a, b)
        case Number(), Percentage():
            return _same_share(b, a)
        case Quantity(), Quantity():
            return _same_quantity(a, b, oracle)
        case (Quantity(), Number() | Expression()):
            return _same_without_unit(a, b, oracle)
        case (Number() | Expression(), Quantity()):
            return _same_without_unit(b, a, oracle)
        case Named(), Named():
            return same(a.value, b.value, oracle) if a.name == b.name else None
        case Named(value=Expression(latex=value)), Expression() if "=" in b.latex:
            return _same_expression(f"{a.name}={value}", b.latex, oracle)
        case Expression(), Named(value=Expression(latex=value)) if "=" in a.latex:
            return _same_expression(a.latex, f"{b.name}={value}", oracle)
        case Named(), System():
            return None
        case Named(), _:
            return same(a.value, b, oracle)
        case _, Named():
            return same(a, b.value, oracle)
        case System(), System():
            return _same_system(a, b, oracle)
        case Ordered(), Ordered():
            return _same_order(a, b, oracle)
        case Set(), Set():
            return _same_set(a.items, b.items, oracle)
        case Union(), Union():
            return _same_set(a.items, b.items, oracle)
        case Set(), Ordered(opening="") if len(a.items) == len(b.items):
            return _same_set(a.items, b.items, oracle) or None
        case Ordered(opening=""), Set() if len(a.items) == len(b.items):
            return _same_set(a.items, b.items, oracle) or None
        case Matrix(), Matrix() if a.kind == b.kind:
            return _same_matrix(a, b, oracle)
    return None


def _same_expression(a: str, b: str, oracle: Oracle) -> bool | None:
    if a == b:
        return True
    return oracle(_exact(a), _exact(b)) if _letters(a) == _letters(b) else None


def _exact(latex: str) -> str:
    """Write decimals as fractions, which computer algebra does not round."""
    return _POINT.sub(lambda found: rf"({Number(Fraction(found[0])).latex})", latex)


def _same_share(a: Percentage, b: Number) -> bool | None:
    """Compare with a percentage: 7 % equals 0.07; 7 is undecided without the question."""
    return a.number.value / 100 == b.value or None


def _same_quantity(a: Quantity, b: Quantity, oracle: Oracle) -> bool | None:
    if a.unit.dimension != b.unit.dimension:
        return None
    if a.unit.factor == b.unit.factor:
        return same(a.size, b.size, oracle)
    if not (isinstance(a.size, Number) and isinstance(b.size, Number)):
        return None
    first, second = a.size.value * a.unit.factor, b.size.value * b.unit.factor
    if first == second:
        return True
    return False if abs(first - second) > APART * max(abs(first), abs(second)) else None


def _same_without_unit(a: Quantity, b: Number | Expression, oracle: Oracle) -> bool | None:
    """Compare a number with a quantity, whose unit the question may name."""
    return None if a.unit.is_letter else same(a.size, b, oracle) or None


def _same_system(a: System, b: System, oracle: Oracle) -> bool | None:
    others = {member.name: member.value for member in b.members}
    if {member.name for member in a.members} != others.keys():
        return None
    return _all(same(member.value, others[member.name], oracle) for member in a.members)


def _same_order(a: Ordered, b: Ordered, oracle: Oracle) -> bool | None:
    """Compare item by item; a list without brackets may be solutions in any order."""
    if (a.opening, a.closing) != (b.opening, b.closing):
        return None
    if len(a.items) != len(b.items):
        return None
    found = _all(same(x, y, oracle) for x, y in zip(a.items, b.items, strict=True))
    if found is False and a.opening == "" and _same_set(a.items, b.items, oracle) is not False:
        return None
    return found


def _same_set(a: Sequence[Value], b: Sequence[Value], oracle: Oracle) -> bool | None:
    """Return whether every item of each has an equal one in the other."""
    if max(len(a), len(b)) > MOST_ITEMS:
        return None
    table = [[same(x, y, oracle) for y in b] for x in a]
    return _all(_any(line) for line in (*table, *zip_longest(*table)))


def _same_matrix(a: Matrix, b: Matrix, oracle: Oracle) -> bool | None:
    if [len(row) for row in a.rows] != [len(row) for row in b.rows]:
        return None
    pairs = zip(sum(a.rows, ()), sum(b.rows, ()), strict=True)
    return _all(same(x, y, oracle) for x, y in pairs)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return True if True in found else None if None in found else False
