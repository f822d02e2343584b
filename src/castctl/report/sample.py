"""One completion with its tokens coloured by a value, and prompts side by side."""

from __future__ import annotations

import math

from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from castctl.inspection.prompts import PromptsView
from castctl.inspection.sample import Coloring, SampleView, Token
from castctl.inspection.scales import CENTRES
from castctl.report.colors import FULL, NEGATIVE, POSITIVE, rgb
from castctl.report.marks import LONGEST_LINE, block, line, number
from castctl.report.tables import show

WHITE = (245, 245, 245)
"""Of a value that says nothing."""


def show_sample(view: SampleView, color: Coloring, scale: float) -> None:
    """Print a completion: coloured on a terminal, fully at a distance of `scale` from the value
    that says nothing; else a line a token."""
    show(_head(view))
    if not view.tokens:  # of a server or a file
        show(Text(f"\n{block(view.completion)}"))
        return
    console = Console()
    if console.is_terminal and not console.no_color and console.color_system is not None:
        show(_colored(view, color, scale))
        return
    print(f"\n{'#':>6} {'id':>8} {color:>12}            token")
    for index, token in enumerate(view.tokens):
        answer = _in_answer(view, index)
        marks = f"{'flipped' if token.flipped else '':8}{'*' if answer else '':2}"
        value = number(getattr(token, color), 6)
        print(f'{index:>6} {token.id:>8} {value:>12}  {marks}"{_token_line(token)}"')
    if view.answer_span is not None:
        print("* belongs to the extracted answer")


def _head(view: SampleView) -> Group:
    """Problem, answer, verdict and reward of a completion."""
    facts = [
        ("problem", block(view.problem)),
        ("answer", line(view.answer) if view.answer is not None else "not known"),
        ("extracted", line(view.extracted) if view.extracted is not None else "nothing"),
        ("verdict", f"{view.verdict or 'not judged'}, reward {number(view.reward) or 'not known'}"),
        (
            "tokens",
            f"{len(view.tokens)}, {sum(map(_is_flipped, view.tokens))} flipped, "
            f"ended by {line(view.finish_reason)}"
            if view.tokens
            else f"none to show, ended by {line(view.finish_reason)}",
        ),
    ]
    if view.rewards:
        told = (f"{name.replace('_', ' ')} {number(value)}" for name, value in view.rewards.items())
        facts.append(("rewards", ", ".join(told)))
    if view.group_kind is not None:
        kind = view.group_kind.replace("_", " ")
        facts.append(("group", f"{kind}, base advantage {number(view.base)}"))
    grid = Table.grid(padding=(0, 2))
    for name, text in facts:
        grid.add_row(Text(name, "dim"), Text(text))
    title = f"{line(view.prompt_id, 60)}/{view.sample}, step {view.step}"
    return Group(Text(title, "bold"), grid)


def _colored(view: SampleView, color: Coloring, scale: float) -> Group:
    centre = CENTRES.get(color, 0.0)
    values = [getattr(token, color) for token in view.tokens]
    text = Text()
    for index, (token, value) in enumerate(zip(view.tokens, values, strict=True)):
        style = _style(None if value is None else (value - centre) / scale)
        if token.flipped:
            style += Style(underline=True)
        if _in_answer(view, index):
            style += Style(bold=True)
        if token.text is None:
            text.append(str(token.id), style)
            text.append(" ")
            continue
        # A line break is shown and kept, so that the solution reads as it was written.
        text.append(block(token.text, LONGEST_LINE).replace("\n", "↵\n"), style)
    pages: list[RenderableType] = ["", _legend(color, scale), "", text]
    if view.tokens and view.tokens[0].text is None:
        pages += ["", Text(block(view.completion))]
    return Group(*pages)


def _style(share: float | None) -> Style:
    """Black on the colour of negative numbers (-1) over white (0) to that of positive ones (1); no
    colour where there is no value."""
    if share is None or math.isnan(share):
        return Style(dim=True)
    end, strength = rgb(POSITIVE if share > 0 else NEGATIVE), FULL * min(abs(share), 1.0)
    mixed = (w + (e - w) * strength for w, e in zip(WHITE, end, strict=True))
    return Style(color="black", bgcolor=Color.from_rgb(*mixed))


def _legend(color: Coloring, scale: float) -> Text:
    centre = CENTRES.get(color, 0.0)
    legend = Text(f"{color}  {number(centre - scale, 4)} and less ")
    for step in range(-5, 6):
        legend.append("  ", _style(step / 5))
    legend.append(f" {number(centre + scale, 4)} and more   ")
    legend.append("flipped", Style(underline=True))
    legend.append("   ")
    legend.append("extracted answer", Style(bold=True))
    return legend


def _in_answer(view: SampleView, index: int) -> bool:
    return view.answer_span is not None and view.answer_span[0] <= index < view.answer_span[1]


def _is_flipped(token: Token) -> bool:
    return token.flipped is True


def _token_line(token: Token) -> str:
    return str(token.id) if token.text is None else line(token.text)


def prompts_page(view: PromptsView) -> Group:
    """What student and teacher were asked, side by side."""
    own = "The teacher read the student's own prompt." if view.scored else "No teacher read it."
    if view.peers:
        own = "No completion of it has a correct peer, so no teacher read it."
    pages: list[RenderableType] = []
    for prompt in view.prompts:
        pages.append(Text(f"prompt {line(prompt.prompt_id, 60)}", "bold"))
        student = Text(_prompt_text(prompt.student_ids, prompt.student))
        if prompt.teacher_ids is None:
            pages += [student, Text(own, "dim"), ""]
        else:
            table = Table(show_lines=True, expand=True)
            for heading in ("student", "teacher"):
                table.add_column(heading, ratio=1, overflow="fold")
            teacher = Text(_prompt_text(prompt.teacher_ids, prompt.teacher))
            table.add_row(student, teacher)
            pages += [table, ""]
        if prompt.bilateral_ids is not None:
            bilateral = Text(_prompt_text(prompt.bilateral_ids, prompt.bilateral))
            pages += [Text("prompt of a bilateral ratio", "dim"), bilateral, ""]
    for warning in (view.warning, *view.golds):
        if warning is not None:
            pages += [Text(line(warning, 1000), "yellow"), ""]
    if view.total > len(view.prompts):
        more = view.total - len(view.prompts)
        pages.append(Text(f"… {more} more prompts: --limit shows them", "dim"))
    return Group(*pages)


def _prompt_text(ids: list[int], text: str | None) -> str:
    return block(text) if text is not None else line(" ".join(map(str, ids)), 2000)
