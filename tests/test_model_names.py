"""Models go by the names that people gave them; where nobody knows one, its fingerprint stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from castctl import embedded
from castctl.models.loading import find_model, fingerprint
from castctl.runs.run import Run
from castctl.stages.names import called, model_names
from conftest import Cli
from runs import small_recipe, train_small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_small(tmp_path_factory.mktemp("names") / "run", small_recipe("cast"))[0]


def test_a_name_stands_where_its_fingerprint_does() -> None:
    names = {"0123456789abcdef": "Qwen/Qwen3-1.7B"}
    assert called("0123456789abcdef", names) == "Qwen/Qwen3-1.7B"
    assert called("0123456789abcdef snapshot teacher", names) == "Qwen/Qwen3-1.7B snapshot teacher"
    for other in ("fedcba9876543210", "run@step-00012", "run@step-00012 ema teacher"):
        assert called(other, names) == other


def test_the_models_of_a_run_are_known_by_what_they_hold(run: Run, tmp_path: Path) -> None:
    model = embedded.ensure().model
    copy = tmp_path / "copy"
    shutil.copytree(run.checkpoint(3), copy)
    changed = run.changed(model={"path": str(copy)})
    assert model_names(changed) == {fingerprint(model): "embedded", fingerprint(copy): str(copy)}
    assert model_names(None) == {}


def test_to_know_a_name_nothing_is_made_or_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTCTL_CACHE", str(tmp_path / "cache"))
    assert find_model("embedded") is find_model("nobody/nothing") is None
    assert find_model(str(tmp_path / "nowhere")) is None
    assert model_names(run) == {}
    assert not (tmp_path / "cache").exists()


def test_a_step_shows_names_and_its_files_keep_fingerprints(castctl: Cli, run: Run) -> None:
    step = str(run.step(0).path)
    known = fingerprint(embedded.ensure().model)
    shown = castctl("inspect", step).stdout
    assert "model embedded" in shown and known not in shown
    assert f'"model": "{known}"' in castctl("inspect", step, "--json").stdout


def test_another_sampler_is_warned_of_by_name(castctl: Cli, run: Run) -> None:
    other = str(run.checkpoint(3))
    said = castctl("score", "--run", str(run.path), "--step", "0", "--model", other, "--overwrite")
    assert f"was sampled by embedded, and is scored with {other}:" in said.stderr
