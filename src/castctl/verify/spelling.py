"""Spellings of a final answer that math-verify misreads, brought into one that it reads.

Nothing here may turn a wrong answer into a right one: each rule keeps the value that a reader
takes from the text, and applies to nothing that could be meant otherwise. All take time linear
in the text.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from castctl.verify.characters import in_latex
from castctl.verify.decimals import as_fractions, exact
from castctl.verify.notation import NAMES, latex
from castctl.verify.wrapping import FONT, SPACE, SPACES, stripped, unwrapped

_DIGITS = "[0-9]{1,30}"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.{_DIGITS})?|\.{_DIGITS})"
_NUMBER = rf"-?{_UNSIGNED}"
_NO_MORE_DIGITS = r"(?!(?:[., ~]|\{,\}|\\[ ,;:!]){0,9}[0-9])"  # √4 000 is perhaps √4000

_CHINESE = (
    "平方千米|平方厘米|平方分米|平方米|立方厘米|立方分米|立方米|千米/小?时|米/秒|千米|公里|厘米|"
    "分米|毫米|微米|米|千克|公斤|毫克|克|吨|斤|毫升|升|小时|分钟|秒|天|周|个月|月|年|岁|元|角|分|"
    "个|只|人|名|位|件|本|支|枝|张|块|辆|棵|头|条|页|次|种|组|份|度|倍|套|台|箱|瓶|袋|盒|根|颗"
)
_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])"

_UNIT = rf"{FONT} ?\{{[^{{}}]{{1,20}}\}}(?:\^\{{?-?[0-9]\}}?)?"
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
        (r"\\(?:approxeq|simeq|thickapprox)(?![A-Za-z])|[≈≃]", r"\\approx "),
        (r"\A(?:\\(?:approx|sim)(?![A-Za-z])|=) *(?=-?[0-9.]|\\)", ""),
        (r"\A\\therefore(?![A-Za-z])[ ~]*", ""),
        (r"(?<!\\right)(?<!\.)\.\Z", ""),  # a full stop; `\right.` and `...` end in none
        (rf"√({_UNSIGNED}){_NO_MORE_DIGITS}", r"\\sqrt{\1}"),
        (r"\\[bB]igg?[lrm]?(?= ?[][()|/\\])", ""),  # of brackets: \big( is (
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\geqq(?![A-Za-z])", r"\\ge"),
        (r"\\leqq(?![A-Za-z])", r"\\le"),
        (
            rf"\\(?:text|textrm|mathrm|mbox) ?\{{{SPACES}(or|and){SPACES}\}}{SPACES}",
            r" \\text{ \1 } ",
        ),
        (r"(?:\\ ){1,3}(or|and)(?:\\ ){1,3}", r" \\text{ \1 } "),
        (r"(?<![一-鿿])或(?![一-鿿])", r" \\text{ or } "),
        (r"(?<![一-鿿])[和且](?![一-鿿])", r" \\text{ and } "),
        (r"\A\](?=[^][]*\[\Z)", "("),
        (r"\A\](?=[^][]*\]\Z)", "("),
        (r"(?<=[^][])\[\Z", ")"),
        (r"\{ ?\\rm ([ei]) ?\}|\\mathrm ([ei])(?![A-Za-z])", r" \1\2"),
        (
            r"(?<=[0-9)}{^+-])\\(?:mathrm|operatorname|textrm|text) ?\{ ?([ei]) ?\}",
            r"\1",
        ),  # upright
        (r"\\(?:mathrm|operatorname|textrm|text) ?\{ ?([ei]) ?\}", r" \1"),
        (rf"\A{FONT}\{{ ?({_NUMBER}) ?\}}\Z", r"\1"),
        (rf"\A{FONT}\{{ ?({_NUMBER}) ?([A-Za-z一-鿿][^{{}}\\0-9]{{0,60}})\}}\Z", r"\1\\text{ \2}"),
        (rf"\A{FONT}\{{ ?([^{{}}\\]*[一-鿿][^{{}}\\]*)\}}\Z", r"\1"),
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
        (
            rf"\A({_NUMBER}) ([a-z]{{2,12}}/[a-z]{{1,9}}|[a-z]{{3,12}}(?: [a-z]{{2,12}}){{0,3}})\Z",
            _with_unit,
        ),
        (rf"\A({_NUMBER}){SPACES}\^(?:\\circ|\{{ ?\\circ ?\}}) ?(?:\\text\{{)?[CF]\}}?\Z", r"\1"),
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
_PERCENT = re.compile(rf"({_NUMBER}|-?\\frac\{{({_DIGITS})\}}\{{({_DIGITS})\}}) ?\\?%")
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
_LAST_UNIT = rf"(?P<unit>{SPACE}*{FONT}\{{[^{{}}]{{0,60}}\}}(?:\^\{{?-?[0-9]\}}?)?)?"
_SCIENTIFIC = re.compile(
    rf"(?:({_NUMBER}) ?{_TIMES} ?|(-?))10 ?(?:\^|\*\*) ?"
    rf"(?:\{{ ?([-+]?[0-9]{{1,3}}) ?\}}|([0-9])|(-[0-9]{{1,3}}))(?![0-9.]){_LAST_UNIT}"
)
_E_NOTATION = re.compile(
    rf"(?<![A-Za-z0-9.\\_^])({_UNSIGNED})[eE]([+-]?[0-9]{{1,3}})(?![A-Za-z0-9.^!])"
)
_TOWER = re.compile(r"\^\{([0-9]{1,2})\^(?:\{([0-9]{1,2})\}|([0-9]))\}")
_LONGEST = 5000
"""Characters beyond which a text is left as it is: no answer is so long."""
_LARGEST_EXPONENT = 10**6
# math-verify takes them for units: \frac{a}{b} c, 10-4t, \frac{1}{2} ab, 2ab.
_LAST_LETTER = re.compile(r"(?<![,;] )(?<=[\s})0-9])(?:(ab|bc|rs|mp)|[a-df-hj-zA-Z])\Z")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|or|is|of|in)(?![A-Za-z])|\\(?:text|mbox)")
_PLAIN_NUMBER = re.compile(rf"{_NUMBER}\s*")


def spellings(text: str) -> list[str]:
    """The answer in spellings that math-verify reads as it is meant; any of them may be meant.

    math-verify takes 50\\% for 50 and for 0.5, but -50\\% for -0.5 and 12.5\\% for 0.125 alone.
    """
    text = respelled(text)
    match = _PERCENT.fullmatch(text)
    if match is None or (match[2] and int(match[2]) < int(match[3])):
        return [text]
    return [text, match[1]]


@lru_cache(maxsize=1024)
def respelled(text: str) -> str:
    """The answer in one spelling that math-verify reads; itself where there is nothing to do."""
    text = stripped(unwrapped(text).removesuffix(r"\checkmark"))
    if len(text) > _LONGEST:
        return text
    text = in_latex(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if _GROUPED.fullmatch(text):
        return re.sub("[^-0-9]", "", text)
    if match := _SCIENTIFIC.fullmatch(text):
        mantissa = match[1] or f"{match[2]}1"
        exponent = match[3] or match[4] or match[5]
        return exact(Fraction(Decimal(f"{mantissa}e{exponent}"))) + (match["unit"] or "")
    if match := _SCALED.fullmatch(text):
        return exact(Fraction(Decimal(f"{match[1]}e{_SCALES[match[2]]}")))
    if (match := _MIXED.fullmatch(text)) and int(match[2]) < int(match[3]):
        return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    text = _E_NOTATION.sub(_in_e_notation, text)
    text = latex(as_fractions(text))
    text = _TOWER.sub(_tower, text)
    return stripped(_LAST_LETTER.sub(_factor, text) if not _WORD.search(text) else text)


def ratio(text: str) -> list[str]:
    """The three or more terms of a ratio, 1:2:3; none of any other text."""
    terms = [stripped(term) for term in _COLON.split(respelled(text))]
    return terms if len(terms) > 2 and all(terms) else []


def _in_e_notation(match: re.Match[str]) -> str:
    number = exact(Fraction(Decimal(f"{match[1]}e{match[2]}")))
    return number if match[0] == match.string else f"{{{number}}}"


def _tower(match: re.Match[str]) -> str:
    value = int(match[1]) ** int(match[2] or match[3])
    return f"^{{{value}}}" if value <= _LARGEST_EXPONENT else match[0]


def _factor(match: re.Match[str]) -> str:
    """Letters at the end, kept as a factor unless they may be the unit of a number."""
    number = _PLAIN_NUMBER.fullmatch(match.string, 0, match.start())
    return match[0] if number and not match[1] else f"{{{match[0]}}}"
