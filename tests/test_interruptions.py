"""Killed or stopped at random instants, every stage and the loop end as if they had not been."""

from __future__ import annotations

import pytest

from commands import Commands
from interruptions import INPUTS, Interrupter

TIMES = 4


@pytest.fixture(scope="module")
def interrupter(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Interrupter:
    return Interrupter(commands, tmp_path_factory.mktemp("interruptions"), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", INPUTS)
def test_an_interrupted_stage_ends_as_if_it_had_not_been(
    interrupter: Interrupter, stage: str
) -> None:
    assert interrupter.stage(stage, TIMES).interrupted == TIMES


@pytest.mark.slow
def test_an_interrupted_loop_ends_as_if_it_had_not_been(interrupter: Interrupter) -> None:
    assert interrupter.loop(TIMES).interrupted >= TIMES
