"""Files of other tools, each read as what its columns say it is."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
from castctl.stages.evaluate.foreign import Completions, read_completions
from castctl.stages.evaluate.foreign_lighteval import details_files, is_details_file, read_details
from castctl.stages.evaluate.foreign_lm_eval import is_sample_file, read_samples, sample_files


def read_foreign(source: Path, data: DataSettings) -> list[Completions]:
    """The completions in a file, or in each file of a folder that a tool wrote.

    `data` names the columns of a file of rows. Raises `UserError` where there are none.
    """
    if not source.is_dir():
        if is_details_file(source):
            return [read_details(source)]
        lm_eval = is_sample_file(source)
        return [read_samples(source) if lm_eval else read_completions(source, data)]
    read = [read_samples(file) for file in sample_files(source)]
    read += [read_details(file) for file in details_files(source)]
    if not read:
        raise UserError(
            f"{source} holds no rollouts, no eval/TASK/step-NNNNN, no samples and no details; name "
            "an evaluation's folder, a run, or a file of completions"
        )
    return _own_names(read)


def _own_names(read: list[Completions]) -> list[Completions]:
    """With the parent folder's name before a name that several have, and a number where that
    does not help, so that no two are graded into one folder."""
    shared = Counter(each.name for each in read)
    named: list[Completions] = []
    taken = set(shared)
    for each in read:
        if shared[each.name] > 1:
            own = f"{each.path.absolute().parent.name}-{each.name}"
            numbers = (f"{own}-{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([own], numbers) if name not in taken)
            taken.add(name)
            each = replace(each, name=name)
        named.append(each)
    return named
