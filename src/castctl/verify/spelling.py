"""Spellings of a final answer that math-verify misreads, brought into one that it reads.

Nothing here may turn a wrong answer into a right one: each rule keeps the value that a reader
takes from the text, and applies to nothing that could be meant otherwise. All take time linear
in the text.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from castctl.verify.notation import NAMES, latex

_DIGITS = "[0-9]{1,30}"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.{_DIGITS})?|\.{_DIGITS})"
_NUMBER = rf"-?{_UNSIGNED}"
_NO_MORE_DIGITS = r"(?!(?:[., ~]|\{,\}|\\[ ,;:!]){0,9}[0-9])"  # √4 000 is perhaps √4000
_FONT = r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf|rm)"

_LEADING = re.compile(r"(?:\s|~|\\[ ,;:!])*")
_GNILIART = re.compile(r"(?:[ ,;:!]\\(?!\\)|\s|~)*")  # trailing ones, of the text turned round

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0xFFE1: "£", 0xFFE5: "¥"}
_FRACTIONS = {
    "½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15",
    "⅖": "25", "⅗": "35", "⅘": "45", "⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58",
    "⅞": "78",
}  # fmt: skip
_SYMBOLS = (
    str.maketrans(
        {"°": r"^\circ ", "∞": r"\infty ", "∅": r"\emptyset ", "。": ".", "、": ",", "\u3000": " "}
        | {
            "–": "-",
            "—": "-",
            "·": r"\cdot ",
            "∶": ":",
            "℃": r"^\circ ",
            "⩽": r"\le ",
            "≦": r"\le ",
        }
        | {"⩾": r"\ge ", "≧": r"\ge ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "}
        | {char: rf"\frac{{{pair[0]}}}{{{pair[1]}}}" for char, pair in _FRACTIONS.items()}
    )
    | _FULL_WIDTH
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]{1,30}")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]{1,30}")

_DELIMITERS = (
    (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"),
    ("**", "**"), ("__", "__"), ("*", "*"),
)  # fmt: skip
_WRAPPER = re.compile(
    r"(?:\\(?:mathbf|textbf|boldsymbol|bm|pmb|mathit|textit|underline|emph)\s*\{|\{\s*\\(?:bf|it|rm)\s)"
    r"|(?P<text>\\(?:text|textrm|mathrm|mbox)\s*\{)"
)
# Mathematics in \text{}: 3 and 4, x = 5, $\frac{1}{2}$.
_FORMULA = re.compile(
    r"\s*(?:\$[^$]*\$|(?=.*[0-9])(?:[^A-Za-z\u4e00-\u9fff{}\\:]|(?<![A-Za-z])(?:[A-Za-z]|and|or)(?![A-Za-z]))*)"
    r"\s*",
    re.S,
)

_CHINESE = (
    "平方千米|平方厘米|平方分米|平方米|立方厘米|立方分米|立方米|千米/小?时|米/秒|千米|公里|厘米|"
    "分米|毫米|微米|米|千克|公斤|毫克|克|吨|斤|毫升|升|小时|分钟|秒|天|周|个月|月|年|岁|元|角|分|"
    "个|只|人|名|位|件|本|支|枝|张|块|辆|棵|头|条|页|次|种|组|份|度|倍|套|台|箱|瓶|袋|盒|根|颗"
)
_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])"

_SPACES = r"(?:\s|~|\\[ ,;:!]){0,5}"
_UNIT = rf"{_FONT} ?\{{[^{{}}]{{1,20}}\}}(?:\^\{{?-?[0-9]\}}?)?"
_UNITS = rf"(?:{_UNIT}(?: |\\cdot ?|\\[ ,;:!]){{0,3}}){{1,3}}"
_ARGUMENT = r"(?: ?(\\[A-Za-z]+|[0-9])| ([A-Za-z]))"


def _with_unit(match: re.Match[str]) -> str:
    """18 eggs, where the words are none of mathematics."""
    words = set(re.findall("[a-z]+", match[2]))
    return match[0] if words & NAMES else rf"{match[1]}\text{{ {match[2]}}}"


def _with_braces(match: re.Match[str]) -> str:
    second = f"{{{match[4]}}}" if match[4] else ""
    return f"{match[1]}{{{match[2] or match[3]}}}{second}"


_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\A(?:\\approx(?![a-z])|≈|=) *(?=-?[0-9.]|\\)", ""),
        (r"\A\\therefore(?![A-Za-z])[ ~]*", ""),
        (r"(?<!\\right)(?<!\.)\.\Z", ""),  # a full stop; `\right.` and `...` end in none
        (rf"√({_UNSIGNED}){_NO_MORE_DIGITS}", r"\\sqrt{\1}"),
        (r"\\[bB]igg?[lrm]?(?= ?[][()|/\\])", ""),  # of brackets: \big( is (
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\geqq(?![A-Za-z])", r"\\ge"),
        (r"\\leqq(?![A-Za-z])", r"\\le"),
        (
            rf"\\(?:text|textrm|mathrm|mbox) ?\{{{_SPACES}(or|and){_SPACES}\}}{_SPACES}",
            r" \\text{ \1 } ",
        ),
        (r"(?:\\ ){1,3}(or|and)(?:\\ ){1,3}", r" \\text{ \1 } "),
        (r"(?<![一-鿿])或(?![一-鿿])", r" \\text{ or } "),
        (r"(?<![一-鿿])[和且](?![一-鿿])", r" \\text{ and } "),
        (r"\A\](?=[^][]*\[\Z)", "("),
        (r"\A\](?=[^][]*\]\Z)", "("),
        (r"(?<=[^][])\[\Z", ")"),
        (r"\{ ?\\rm ([ei]) ?\}|\\mathrm ([ei])(?![A-Za-z])", r" \1\2"),
        (rf"\A({_NUMBER}) ?\\text\{{ ?to ?\}} ?({_NUMBER})\Z", r"\1:\2"),
        (
            r"(?<=[0-9)}{^+-])\\(?:mathrm|operatorname|textrm|text) ?\{ ?([ei]) ?\}",
            r"\1",
        ),  # upright
        (r"\\(?:mathrm|operatorname|textrm|text) ?\{ ?([ei]) ?\}", r" \1"),
        (rf"\A{_FONT}\{{ ?({_NUMBER}) ?\}}\Z", r"\1"),
        (rf"\A{_FONT}\{{ ?({_NUMBER}) ?([A-Za-z一-鿿][^{{}}\\0-9]{{0,60}})\}}\Z", r"\1\\text{ \2}"),
        (rf"\A{_FONT}\{{ ?([^{{}}\\]*[一-鿿][^{{}}\\]*)\}}\Z", r"\1"),
        (rf"\A({_NUMBER}) ?(?:dollars?|euros?|USD|EUR|GBP|RMB|¢|€|£|¥)\Z", r"\1"),
        (
            rf"(\\[dt]?(?:frac|binom)){_ARGUMENT} ?(?:(\\[A-Za-z]+|[A-Za-z0-9])|(?=\{{))",
            _with_braces,
        ),
        (r"(\\[dt]?frac\{[^{}]*\}) ?(\\[A-Za-z]+)(?![A-Za-z{])", r"\1{\2}"),
        (r"\\sqrt ?(\\[A-Za-z]+)(?![A-Za-z{])", r"\\sqrt{\1}"),
        (r"\\sqrt ?(\[[^][]*\]) ?([A-Za-z0-9])(?![0-9])", r"\\sqrt\1{\2}"),
        (rf"\A(?:\\?\$|€|£|¥|\\pounds) ?({_NUMBER})\Z", r"\1"),
        (rf"\A({_NUMBER}) ?(?:[mckd]m|ft|in|yd|mi)\^\{{?[23]\}}?\Z", r"\1"),
        (rf"\A\+ ?({_NUMBER})\Z", r"\1"),
        (rf"(?<=[0-9}}]) ?(?:\\text\{{ ?(?:{_CHINESE}) ?\}}|(?:{_CHINESE}))\Z", ""),
        (rf"\A(?:US ?\\?\$|USD|EUR|GBP|RMB) ?({_NUMBER})\Z", r"\1"),
        (rf"\A({_NUMBER})(?:st|nd|rd|th)\Z", r"\1"),
        (
            rf"\A({_NUMBER}) ([a-z]{{2,12}}(?:/[a-z]{{1,9}}|(?: [a-z]{{2,12}}){{0,3}}))\Z",
            _with_unit,
        ),
        (rf"\A({_NUMBER}){_SPACES}\^(?:\\circ|\{{ ?\\circ ?\}}) ?(?:\\text\{{)?[CF]\}}?\Z", r"\1"),
        (rf"\A({_NUMBER}) ?\((?:{_CHINESE})\)\Z", r"\1"),
        (r"√\(([^()]{1,40})\)", r"\\sqrt{\1}"),
        # 9.8 \frac{\text{m}}{\text{s}^2}: a unit, written as a fraction
        (
            rf"(?<=[0-9}}])(?:\s|\\[ ,;:!]){{1,5}}\\[dt]?frac\{{{_UNITS}\}}\{{{_UNITS}\}}\Z",
            "",
        ),
        (
            rf"({_TRIG}(?:\^\{{?[0-9]\}}?)? ?(?:\\left)?[({{]?) ?({_NUMBER}) ?"
            r"\^(?:\\circ(?![a-z])|\{ ?\\circ ?\})",
            r"\1\\frac{\2\\pi}{180}",
        ),
    )
]
_PERCENT = re.compile(rf"({_NUMBER}|-?\\frac\{{{_DIGITS}\}}\{{{_DIGITS}\}}) ?\\?%")
_COLON = re.compile(r"(?<!\\): *(?!=)")
_MIXED = re.compile(rf"(-?{_DIGITS}) ([1-9][0-9]?)/({_DIGITS})")  # 1 234/5 is perhaps 1234/5
_GROUPED = re.compile(r"-?[0-9]{1,3}(?:(?: |\\,|\\;|\\ )[0-9]{3}){1,10}")
_SCALED = re.compile(
    rf"({_NUMBER})(?: ?\\text\{{)? ?(hundred|thousand|million|billion|trillion|[百千万亿])"
    rf"(?: dollars?|{_CHINESE})?\}}?"
)
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
    "百": 2, "千": 3, "万": 4, "亿": 8,
}  # fmt: skip
_TIMES = r"(?:\\times|\\cdot|\u00d7|\*)"
_LAST_UNIT = rf"(?P<unit>(?:\s|~|\\[ ,;:!])*{_FONT}\{{[^{{}}]{{0,60}}\}}(?:\^\{{?-?[0-9]\}}?)?)?"
_SCIENTIFIC = re.compile(
    rf"(?:({_NUMBER}) ?{_TIMES} ?|(-?))10 ?(?:\^|\*\*) ?"
    rf"(?:\{{ ?([-+]?[0-9]{{1,3}}) ?\}}|([0-9])|(-[0-9]{{1,3}}))(?![0-9.]){_LAST_UNIT}"
)
_E_NOTATION = re.compile(
    rf"(?<![A-Za-z0-9.\\_^])({_UNSIGNED})[eE]([+-]?[0-9]{{1,3}})(?![A-Za-z0-9.^!])"
)
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,15})\.([0-9]{0,15})"
    r"\\(?:overline|bar|dot)\{?([0-9])(?:([0-9]{0,15}))\}?(?:([0-9]{0,9})\\dot\{?([0-9])\}?)?(?![0-9])(?:\.{3}|\\[lc]?dots(?![A-Za-z]))?"
)
_IN_BRACKETS = re.compile(r"(?<![0-9.])([0-9]{0,15}\.[0-9]{0,15})\(([0-9]{1,15})\)(?![0-9])")
_DOTS = re.compile(
    r"(?<![0-9.])([0-9]{0,15}\.[0-9]{0,15}?)([0-9])\2{2,15}(?:\\[lc]?dots(?![A-Za-z])|\.{3}|…)"
)
_ENDS = re.compile(r"\A[^0-9]*[0-9]*\.[0-9]+[^0-9.(\\]*\Z")
_TOWER = re.compile(r"\^\{([0-9]{1,2})\^(?:\{([0-9]{1,2})\}|([0-9]))\}")
_LONGEST = 5000
"""Characters beyond which a text is left as it is: no answer is so long."""
_LARGEST_EXPONENT = 10**6
# math-verify takes them for units: \frac{a}{b} c, 10-4t, \frac{1}{2} ab, 2ab.
_LAST_LETTER = re.compile(r"(?<=[\s})0-9])(?:(ab|bc|rs|mp)|[a-df-hj-zA-Z])\Z")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|or|is|of|in)(?![A-Za-z])|\\(?:text|mbox)")
_PLAIN_NUMBER = re.compile(rf"{_NUMBER}\s*")
_LABEL = rf"(?:{_FONT})? ?\{{? ?\(([A-J])\)(?: ?\}})?"
_GAP = rf"(?P<gap>{_SPACES})"
_CHOICE = (
    re.compile(rf"{_FONT} ?\{{ ?\(?([A-J])[.:)](?P<gap> )(?P<value>[^{{}}\\ ][^{{}}]*)\}}"),
    re.compile(rf"{_FONT} ?\{{ ?\(?([A-J])[.:)]{_SPACES}\}}{_GAP}(?P<value>.*)", re.S),
    re.compile(rf"\( ?{_FONT} ?\{{ ?([A-J]) ?\}} ?\){_GAP}(?P<value>.*)", re.S),
    re.compile(
        rf"(?:{_FONT} ?\{{ ?)?(?:[Oo]ption|[Cc]hoice) \(?([A-J])\)?(?: ?\}})?(?P<gap>)(?P<value>)"
    ),
    re.compile(rf"{_LABEL}(?P<gap>(?:\s|~|\\[ ,;:!]|\\q?quad(?![A-Za-z]))*)(?P<value>.*)", re.S),
    re.compile(rf"(?:{_FONT} ?\{{ ?)([A-J])[.:)]? ?\}}(?P<gap>)(?P<value>)"),
    re.compile(r"([A-J])(?P<gap>[.:)] )(?P<value>.+)", re.S),
    re.compile(r"([A-J])[.)]?(?P<gap>)(?P<value>)"),
)
# What hedges, denies or names another choice; a product as (A)(x+1) is none either.
_NO_VALUE = re.compile(
    r"\\(?:text|emph|mbox|math[a-z]+|lor|vee|lnot|neg|neq?|not|[a-z]*phantom|begin|vert)"
    r"|(?<!\\)%|[,;=<>|]|\([A-J]\)|(?<![A-Za-z\\])(?:or|and|not|nor|[A-J])(?![A-Za-z])"
)
_NAMED = re.compile(rf"{_FONT} ?\{{([A-Z0-9][^{{}}]*)\}}")  # None of these, and not: or more
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_TUPLE = re.compile(r"(?:\\left)? ?[(\[][^()\[\]]*(?:\\right)? ?[)\]]")
_DOLLAR = re.compile(r"(?<!\\)\$")
_QUAD = re.compile(r"\\q?quad\Z")
_TIME = re.compile(
    r"(?:(?:\\text|\\mathrm)\{ ?)?(?P<hour>[0-9]{1,2})"
    r"(?:(?:\\!)*\{?:\}?(?:\\!)*(?P<minute>[0-5][0-9]))?\}?"
    r"(?:(?:\s|~|\\[ ,;:!])*(?:(?:\\text|\\mathrm)\{ ?)?(?P<half>[AaPp])\.?(?:\\!)*[Mm]\.?\}?)?"
)


_FONTS = re.compile(rf"{_FONT}\s*\{{([^{{}}]*)\}}")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])|\\[,;:! ]|~")
_BRACES = re.compile(r"\\.|[{}]", re.S)
_PHRASE = re.compile(
    rf"(?:{_FONT} ?\{{ ?)?(?P<words>[A-Za-z][A-Za-z',& -]{{0,200}}[A-Za-z])[ .!]*(?:\}}[ .!]*)?"
)
_IS_WORDS = re.compile(
    r"[A-Za-z]{4}|\b(?i:yes|no)\b"
)  # a product of as many letters is rarely written unsorted
_OR = re.compile(r"\bor\b")
_LISTS = re.compile(r"[,&]|\b(?:and|or)\b")


class Choice(NamedTuple):
    """An answer that names one of the offered choices: its letter, and its value if told."""

    letter: str
    value: str


def spellings(text: str) -> list[str]:
    """The answer in spellings that math-verify reads as it is meant; any of them may be meant.

    math-verify takes 50\\% for 50 and for 0.5, but -50\\% for -0.5 and 12.5\\% for 0.125 alone.
    """
    text = respelled(text)
    match = _PERCENT.fullmatch(text)
    return [text, match[1]] if match else [text]


@lru_cache(maxsize=1024)
def respelled(text: str) -> str:
    """The answer in one spelling that math-verify reads; itself where there is nothing to do."""
    text = _stripped(_unwrapped(text).removesuffix(r"\checkmark"))
    if len(text) > _LONGEST:
        return text
    text = text.translate(_SYMBOLS)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if _GROUPED.fullmatch(text):
        return re.sub("[^-0-9]", "", text)
    if match := _SCIENTIFIC.fullmatch(text):
        mantissa = match[1] or f"{match[2]}1"
        exponent = match[3] or match[4] or match[5]
        return _exact(Fraction(Decimal(f"{mantissa}e{exponent}"))) + (match["unit"] or "")
    if match := _SCALED.fullmatch(text):
        return _exact(Fraction(Decimal(f"{match[1]}e{_SCALES[match[2]]}")))
    if (match := _MIXED.fullmatch(text)) and int(match[2]) < int(match[3]):
        return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    text = _E_NOTATION.sub(_in_e_notation, text)
    text = _repeating_alike(text)
    text = _REPEATING.sub(_repeating, text)
    text = latex(text)
    text = _TOWER.sub(_tower, text)
    return _stripped(_LAST_LETTER.sub(_factor, text) if not _WORD.search(text) else text)


def choice(text: str) -> Choice | None:
    r"""The letter of a choice and what stands beside it, as in `\textbf{(E)}\ 42`."""
    text = _DOLLAR.sub("", _undelimited(_stripped(text)))
    for pattern in _CHOICE:
        if match := pattern.fullmatch(text):
            value = _stripped(_QUAD.sub("", match["value"]))
            product = value and not match["gap"] and "}" not in text[: match.start("value")]
            told = _NAMED.sub(r"\1", _THOUSANDS.sub("", value))
            told = told.replace(",", " ") if _TUPLE.fullmatch(told) else told
            return None if product or _NO_VALUE.search(told) else Choice(match[1], value)
    return None


def time_of_day(text: str) -> tuple[int, int, str] | None:
    """Hour, minute and `a`, `p` or nothing for the half of the day; None for no time."""
    match = _TIME.fullmatch(_unwrapped(text))
    if match is None or int(match["hour"]) > 24 or not (match["minute"] or match["half"]):
        return None
    hour, half = int(match["hour"]), (match["half"] or "").lower()
    return hour, int(match["minute"] or 0), half


def ratio(text: str) -> list[str]:
    """The three or more terms of a ratio, 1:2:3; none of any other text."""
    terms = [_stripped(term) for term in _COLON.split(respelled(text))]
    return terms if len(terms) > 2 and all(terms) else []


def same_words(text: str, other: str) -> bool | None:
    r"""Whether two answers in words, `\text{True}` and `true`, are one; None where one is no words,
    or both are of so few letters that they may be products."""
    one, two = (
        _PHRASE.fullmatch(_undelimited(_stripped(each)).strip('"“”')) for each in (text, other)
    )
    if one is None or two is None:
        return None
    first, second = (" ".join(each["words"].split()) for each in (one, two))
    if first == second:
        return True
    if not (_IS_WORDS.search(first) or _IS_WORDS.search(second)):
        return None
    if first.casefold() == second.casefold():
        return True
    if not _OR.search(first + second) and _each(first) == _each(second):
        return True
    return None if _LISTS.search(first) and _LISTS.search(second) else False


def _each(text: str) -> list[str]:
    return sorted(each.strip() for each in _LISTS.split(text.casefold()) if each.strip())


def bare(text: str) -> str:
    """A spelling without fonts and spaces, where spaces part no numbers or words."""
    return _LOOSE_SPACE.sub("", _FONTS.sub(r"\1", text))


def _unwrapped(text: str) -> str:
    """Without delimiters and fonts around all of it."""
    for _ in range(5):
        text = _undelimited(_stripped(text))
        match = _WRAPPER.match(text)
        if match is None or not text.endswith("}") or not _closes_last(text[match.end() : -1]):
            break
        inner = text[match.end() : -1]
        if match["text"] and not _FORMULA.fullmatch(inner):
            break
        text = inner
    return text


def _closes_last(inner: str) -> bool:
    """Whether the braces of a group's content balance, so that the group ends behind it."""
    depth = 0
    for brace in _BRACES.findall(inner):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def _undelimited(text: str) -> str:
    r"""Without the `\(...\)`, `$...$` or `**...**` around all of it."""
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
            and not inner.endswith("\\")
        ):
            return _stripped(inner)
    return text


def _in_e_notation(match: re.Match[str]) -> str:
    number = _exact(Fraction(Decimal(f"{match[1]}e{match[2]}")))
    return number if match[0] == match.string else f"{{{number}}}"


def _repeating_alike(text: str) -> str:
    text = _IN_BRACKETS.sub(r"\1\\overline{\2}", text)
    return _DOTS.sub(r"\1\\overline{\2}", text)


def endless(text: str) -> bool | None:
    """Whether a text is of a decimal that goes on for ever, or ends; None where it is of none."""
    text = text.translate(_SYMBOLS)
    if _REPEATING.search(_repeating_alike(text)):
        return True
    return False if _ENDS.search(text) else None


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} and 0.\dot{1}4\dot{2} as fractions."""
    whole, before, first, more, between, last = (part or "" for part in match.groups())
    period = first + more + between + last
    unit = 10 ** len(before)
    value = Fraction(int(f"0{whole}{before}"), unit)
    return _exact(value + Fraction(int(period), unit * (10 ** len(period) - 1)))


def _tower(match: re.Match[str]) -> str:
    value = int(match[1]) ** int(match[2] or match[3])
    return f"^{{{value}}}" if value <= _LARGEST_EXPONENT else match[0]


def _factor(match: re.Match[str]) -> str:
    """Letters at the end, kept as a factor unless they may be the unit of a number."""
    number = _PLAIN_NUMBER.fullmatch(match.string, 0, match.start())
    return match[0] if number and not match[1] else f"{{{match[0]}}}"


def _exact(number: Fraction) -> str:
    """As an integer or a fraction: math-verify rounds decimals, 2 millionths to none."""
    top, bottom = number.numerator, number.denominator
    if bottom == 1:
        return str(top)
    return rf"{'-' * (top < 0)}\frac{{{abs(top)}}}{{{bottom}}}"


def _stripped(text: str) -> str:
    """Without the spaces around it, LaTeX's among them."""
    text = _LEADING.sub("", text, count=1)
    return _GNILIART.sub("", text[::-1], count=1)[::-1]
