"""What a diagnostic reads, and whether a step has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from castctl.shards.part import Metadata, read_metadata
from castctl.shards.stage import StepFolder
from castctl.stages.signals import rows_left_out

Told = Literal["privileged", "answer_free"]
OTHER = "other"
"""The context of a teacher that is told what another problem's answer is."""


@dataclass(frozen=True)
class Need:
    """`signals` that must be there, the `teacher` they are of, and whether advantages with `flips`
    are read; `rollouts/` and `rewards/` always are. `welcome` signals are read where they are."""

    signals: frozenset[str] = frozenset()
    teacher: Told | None = None
    flips: bool = False
    welcome: frozenset[str] = frozenset()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages read, in the order of their making."""
        stages = ["rollouts", "rewards"]
        if self.signals:
            stages.append("signals")
        if self.flips:
            stages.append("advantages")
        return tuple(stages)

    def parts_of(self, folder: StepFolder) -> list[int]:
        """The parts of a step that hold all of it: those of a run that is still being written are
        read as far as they are whole. None where completions were left out of a signal: those that
        are there are no fair sample."""
        if self.lacks_rows(folder):
            return []
        there = [set(folder.parts(stage)) for stage in self.stages]
        return [part for part in sorted(set.intersection(*there)) if self._is_met(folder, part)]

    def lacks_rows(self, folder: StepFolder) -> bool:
        """Whether completions were left out of a signal that is read, since training reads none of
        them."""
        return bool(self.signals) and any(
            rows_left_out(made, name)
            for part in folder.parts("signals")
            for made in [read_metadata(folder.part_path("signals", part), "signals")]
            for name in self.signals
        )

    def _is_met(self, folder: StepFolder, part: int) -> bool:
        if self.signals and not self._has_signals(folder, part):
            return False
        if not self.flips:
            return True
        flipped = folder.read("advantages", part).table["flipped"]
        return flipped.null_count < len(flipped)

    def _has_signals(self, folder: StepFolder, part: int) -> bool:
        metadata = read_metadata(folder.part_path("signals", part), "signals") or {}
        told = teacher_context(metadata)
        # Whoever made the log-probs elsewhere knows what the teacher was told; we do not.
        fits = self.teacher is None or told is None or TOLD[told != "none"] == self.teacher
        if not fits or ("signals" in metadata and not self.signals <= metadata["signals"].keys()):
            return False
        table = folder.read("signals", part).table
        # Where no completion has a peer, a teacher that was asked has said nothing.
        silent = {"teacher_logprobs"} if told == "peer" else set()
        return all(table[name].null_count < len(table) for name in self.signals - silent)


TOLD: dict[bool, Told] = {True: "privileged", False: "answer_free"}


def teacher_context(signals: Metadata) -> str | None:
    """What the teacher of a part's log-probs was told, by the part's metadata, `other` where that
    is of another problem; None where it does not say."""
    made = signals.get("signals", {}).get("teacher_logprobs")
    if isinstance(made, dict) and "others" in made:
        return OTHER
    return str(made.get("context", "none")) if isinstance(made, dict) else None
