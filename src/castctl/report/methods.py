"""What `castctl methods` says: all methods in short, and one with every setting of its slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from castctl.errors import UserError
from castctl.methods import PRESETS, MethodSettings
from castctl.methods.presets import ALIASES, preset
from castctl.recipe.choices import ExplainedSetting, explained
from castctl.report.page import plain_table, title
from castctl.report.settings import TABLE_WIDTH, SettingsTable, facts_table
from castctl.settings import settings_in

NEEDED_BY_ALL = "policy_logprobs"


@dataclass(frozen=True)
class MethodFacts:
    """A method in short: the signals it reads beside the policy's log-probs, and its teacher, whose
    `kind` is `none` where there is none."""

    name: str
    summary: str
    paper: str
    aliases: list[str]
    needs: list[str]
    teacher: dict[str, str]

    @property
    def teacher_text(self) -> str:
        kind, context = self.teacher["kind"], self.teacher["context"]
        if kind == "none":
            return "none"
        return kind if context == "none" else f"{kind}, sees {context.replace('_', ' ')}"

    @property
    def needs_text(self) -> str:
        return ", ".join(self.needs) or "none"


def facts_of(name: str) -> MethodFacts:
    """A method in short, by its name or another; `UserError` naming the nearest where there is
    none."""
    try:
        name, found = preset(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    method = MethodSettings(name=name)
    return MethodFacts(
        name=name,
        summary=found.summary,
        paper=found.paper,
        aliases=[alias for alias, of in ALIASES.items() if of == name],
        needs=sorted(method.needs - {NEEDED_BY_ALL}),
        teacher={"kind": method.teacher.kind, "context": method.teacher.context},
    )


def all_facts() -> list[MethodFacts]:
    """Every method in short."""
    return [facts_of(name) for name in PRESETS]


@dataclass(frozen=True)
class MethodsTable:
    """A row a method, or a paragraph where rows would not fit."""

    methods: list[MethodFacts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= TABLE_WIDTH:
            yield self._table()
        else:
            for method in self.methods:
                yield from _paragraph(method)

    def _table(self) -> RenderableType:
        headings = ("method", "what it does", "arXiv", "teacher", "signals it needs")
        table = plain_table(*headings, right=False)
        for column in table.columns:
            column.no_wrap = column.header in ("method", "arXiv", "signals it needs")
        for method in self.methods:
            paper, needs = method.paper.removeprefix("arXiv "), "\n".join(method.needs) or "none"
            cells = (method.summary, paper, method.teacher_text, needs)
            table.add_row(Text(method.name, "bold"), *map(Text, cells))
        return table


def _paragraph(method: MethodFacts) -> Iterator[RenderableType]:
    yield Text.assemble((method.name, "bold"), "  ", (method.paper, "dim"))
    needed = f"teacher: {method.teacher_text}; signals: {method.needs_text}"
    yield Padding(Text.assemble(f"{method.summary}\n", (needed, "dim")), (0, 0, 0, 4))


@dataclass(frozen=True)
class Slot:
    """A slot of a method: what it is for, and its settings, its kind the first."""

    name: str
    meaning: str
    settings: list[ExplainedSetting]

    @property
    def read(self) -> list[ExplainedSetting]:
        """Its settings, or its kind alone where it is off and nothing else is set."""
        kind = self.settings[0]
        off = kind.value == "none" and not any(each.origin for each in self.settings[1:])
        return [kind] if off else self.settings


def slots_of(name: str) -> list[Slot]:
    """The slots of a method as its preset fills them; what is in none stands under `method`."""
    default, method = MethodSettings(), MethodSettings(name=name)
    grouped: dict[str, list[ExplainedSetting]] = {}
    for setting in settings_in(method, default, "method."):
        if setting.key != "method.name":
            section = setting.key.rpartition(".")[0].removeprefix("method.")
            origin = f"preset {name}" if setting.changed else None
            grouped.setdefault(section, []).append(explained(setting, origin))
    fields = MethodSettings.model_fields
    return [
        Slot(section, (fields[section].description or "") if section in fields else "", settings)
        for section, settings in grouped.items()
    ]


def method_page(name: str) -> Group:
    """One method: its facts, and each slot with its settings."""
    facts = facts_of(name)
    pages: list[RenderableType] = [
        Text.assemble((facts.name, "bold"), f"  {facts.paper}"),
        Text(f"{facts.summary}."),
        Text(),
        facts_table(
            {
                **({"also called": ", ".join(facts.aliases)} if facts.aliases else {}),
                "teacher": facts.teacher_text,
                "signals": f"{NEEDED_BY_ALL}, {facts.needs_text}" if facts.needs else NEEDED_BY_ALL,
                "read in scoring by": ", ".join(MethodSettings(name=name).scoring_passes),
            }
        ),
    ]
    for slot in slots_of(facts.name):
        pages += [title(slot.name)]
        pages += [Text(slot.meaning, "dim")] if slot.meaning else []
        pages += [SettingsTable(slot.read, origins=False)]
    return Group(*pages)


def method_json(name: str) -> dict[str, Any]:
    """The same for programs, with every setting of every slot."""
    facts = facts_of(name)
    slots = {slot.name: asdict(slot) for slot in slots_of(facts.name)}
    passes = {"scoring_passes": list(MethodSettings(name=name).scoring_passes)}
    return {**asdict(facts), **passes, "slots": to_jsonable_python(slots)}
