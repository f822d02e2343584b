"""Models, adapters and rollouts on a hub: what arrives loads again and says what made it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save

import castctl
from castctl import embedded
from castctl.cli.push import push as push_command
from castctl.errors import UserError
from castctl.hub.folder import fill_model
from castctl.recipe.public import hub_id, public_name, public_recipe
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run, create_run
from conftest import Cli
from hub import TOKEN, Hub
from runs import small_recipe, train_small

Push = Callable[..., None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps, evaluated before, between and after."""
    recipe = small_recipe("cast", "train.steps=2", "eval.every=1")
    return train_small(tmp_path_factory.mktemp("push") / "R", recipe)[0]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A step of an adapter."""
    recipe = small_recipe("cast", "train.steps=1", "model.lora={r: 4}", "eval.limit=2")
    return train_small(tmp_path_factory.mktemp("push") / "L", recipe)[0]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one, with a token that it knows."""
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


def push(run: Run, name: str, **options: Any) -> None:
    push_command(str(run.path), name, quiet=True, **options)


# What arrives


def test_python_pushes_what_the_command_does(run: Run, hub: Hub) -> None:
    pushed = castctl.push(run.path, "me/typed", checkpoint=2, private=True, quiet=True)
    push(run, "me/commanded", checkpoint="2")
    typed, commanded = hub.model("me/typed"), hub.model("me/commanded")
    assert typed.private and typed.commits == commanded.commits == [pushed.what] == ["step 2 of R"]
    assert typed.files.keys() == commanded.files.keys()
    assert typed.files["model.safetensors"] == commanded.files["model.safetensors"]
    assert pushed.url == f"{hub.url}/me/typed" and "/me/typed/commit/" in pushed.commit
    assert castctl.push(run, "lab/typed", rollouts=True, quiet=True).what == "rollouts of R"
    assert hub.dataset("lab/typed").files["README.md"]
    with pytest.raises(UserError, match="rollouts are no model; leave checkpoint, merged out"):
        castctl.push(run, "lab/typed", rollouts=True, checkpoint="best", merged=True)
    with pytest.raises(UserError, match="files that castctl did not push"):
        hub.model("me/typed").files["README.md"] = b"mine"
        castctl.push(run, "me/typed", quiet=True)


def test_a_model_arrives_and_loads(run: Run, hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    push(run, "me/trained", checkpoint="2", private=True)
    stored = hub.model("me/trained")
    assert stored.private and stored.commits == ["step 2 of R"]
    assert any("/3" in path for path in hub.paths if path.startswith("PUT")), "in several parts"
    kinds = {Path(name).suffix for name in stored.files}
    assert kinds == {"", ".json", ".jinja", ".md", ".png", ".safetensors", ".yaml"}
    folder = stored.write_to(tmp_path / "there")
    trained, there = (load_file(place / "model.safetensors")
                      for place in (run.checkpoint(2), folder))  # fmt: skip
    assert trained.keys() == there.keys()
    assert all(np.array_equal(trained[name], there[name]) for name in trained)
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 300_000
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_its_card_says_what_made_it(run: Run, hub: Hub) -> None:
    push(run, "me/trained", checkpoint="2")
    stored = hub.model("me/trained")
    said, text = stored.card, stored.files["README.md"].decode()
    assert said["library_name"] == "transformers" and said["tags"] == ["castctl", "rlvr", "cast"]
    assert "base_model" not in said and "license" not in said, "nobody knows them"
    for step in (0, 2):
        avg = _result(run, step)["avg"]
        found = f"{100 * avg['mean']:.1f} ({100 * avg['low']:.1f} to {100 * avg['high']:.1f})"
        label = f"step {step}" if step else "before training"
        assert f"| {label} | embedded | 4 | 2 | {found} |" in text
    assert "step 1 |" not in text and "arXiv 2606.00172" in text and "castctl train recipe" in text
    assert f"castctl {run.manifest['castctl']}" in text and "torch" in text
    for name in ("curve-reward.png", "curve-accuracy.png"):
        assert f"]({name})" in text and stored.files[name].startswith(b"\x89PNG")


def test_its_recipe_is_that_of_the_run(run: Run, hub: Hub, tmp_path: Path) -> None:
    push(run, "me/trained", checkpoint="2")
    folder = hub.model("me/trained").write_to(tmp_path)
    assert load_recipe(folder / "recipe.yaml") == run.recipe


def test_an_adapter_names_its_base(adapted: Run, hub: Hub, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    push(adapted, "me/low", checkpoint="1", base_model="lab/base")
    stored = hub.model("me/low")
    assert stored.card["base_model"] == "lab/base" and stored.card["library_name"] == "peft"
    assert b'"base_model_name_or_path": "lab/base"' in stored.files["adapter_config.json"]
    base = AutoModelForCausalLM.from_pretrained(embedded.ensure().model)
    before = base(torch.tensor([[5, 6, 7]])).logits.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about what peft asks it
        model = PeftModel.from_pretrained(base, stored.write_to(tmp_path / "there"))
    assert not torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)
    push(adapted, "me/unnamed", checkpoint="1")
    assert "base_model" not in hub.model("me/unnamed").card
    assert b'"embedded"' in hub.model("me/unnamed").files["adapter_config.json"]


def test_rollouts_arrive_and_load(run: Run, hub: Hub, tmp_path: Path) -> None:
    from datasets import load_dataset

    push(run, "lab/rollouts", rollouts=True)
    stored = hub.dataset("lab/rollouts")
    folder = stored.write_to(tmp_path / "there")
    [config] = stored.card["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert stored.card["size_categories"] == ["n<1K"]
    rows = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 32 and rows["step"] == [0] * 16 + [1] * 16
    for step in (0, 1):
        table = pq.read_table(folder / "data" / f"step-{step:05d}.parquet")
        for stage in ("rollouts", "rewards", "advantages"):
            made = run.step(step).table(stage)
            for name in set(table.column_names) & set(made.column_names):
                assert table[name].to_pylist() == made[name].to_pylist(), name
        assert {"reward", "base", "completion_token_ids"} <= set(table.column_names)
    assert "`verdict`, `reward`, `extracted`" in stored.files["README.md"].decode()


# Pushing again


def test_a_later_push_leaves_no_weights_of_an_earlier_one(run: Run, adapted: Run, hub: Hub) -> None:
    push(adapted, "me/model", checkpoint="1")
    stored = hub.model("me/model")
    stored.files |= {"notes.md": b"mine", "onnx/config.json": b"{}",
                     "model-00002-of-00002.safetensors": b"old"}  # fmt: skip
    push(run, "me/model", checkpoint="1")
    assert not {"adapter_config.json", "adapter_model.safetensors",
                "model-00002-of-00002.safetensors"} & stored.files.keys()  # fmt: skip
    assert {"notes.md", "onnx/config.json", ".gitattributes"} <= stored.files.keys()
    assert stored.commits == ["step 1 of L", "step 1 of R"]


def test_a_repository_of_somebody_elses_is_left_alone(run: Run, hub: Hub) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("me/other")
    stored = hub.model("me/other")
    stored.files |= {"README.md": b"---\ntags: [mine]\n---\n", "weights.safetensors": save({})}
    with pytest.raises(UserError, match="castctl did not push"):
        push(run, "me/other", checkpoint="1")
    assert not stored.commits
    push(run, "me/other", checkpoint="1", overwrite=True)
    assert stored.commits and stored.card["library_name"] == "transformers"
    with pytest.raises(UserError, match="is public"):
        push(run, "me/other", checkpoint="1", private=True)
    HfApi().create_repo("me/empty")
    push(run, "me/empty", checkpoint="1")


# What the hub refuses


@pytest.mark.parametrize(
    ("piece", "answer", "told"),
    [
        ("/create", (403, {"error": "no rights here"}), r"\(403: .*no rights here.*another owner"),
        ("/create", (404, {"error": "what?"}), "no such owner"),
        ("/commit/", (409, {"error": "a conflict"}), r"409: .*a conflict.*try again"),
        ("/commit/", (500, {"error": "oh"}), "500.*try again later"),
        ("/batch", (413, {"error": "too much"}), "413.*too much"),
        ("/validate-yaml", (400, {"errors": [{"message": "bad license"}]}), "bad license"),
    ],
)
def test_a_refusal_is_one_line(
    run: Run, hub: Hub, piece: str, answer: tuple[int, Any], told: str
) -> None:
    hub.refusals[piece] = answer
    with pytest.raises(UserError, match=told) as error:
        push(run, "me/trained", checkpoint="1")
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    assert not list(run.path.parent.glob(".castctl-*")), "nothing is left"


def test_who_may_not_push_is_told_before_anything_is_made(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(UserError, match="another owner"):
        push(run, "you/trained", checkpoint="1")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match="does not know this token"):
        push(run, "me/trained", checkpoint="1")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(UserError, match="no token"):
        push(run, "me/trained", checkpoint="1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:9"):
        push(run, "me/trained", checkpoint="1")
    assert not hub.repositories


# What must stay here


def test_places_go_by_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub_id("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B" and hub_id("owner/name") is None
    cached = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-1.7B/snapshots/0123abc"
    assert hub_id(cached) == "Qwen/Qwen3-1.7B"
    for path in ("/data/x/problems.jsonl", "../problems.jsonl", "problems.jsonl"):
        assert public_name(path) == "problems.jsonl"
    recipe = load_recipe(
        model={"path": "/secret/place/model"}, data={"path": "/secret/place/problems.jsonl"},
        overrides=["verifier.function=/secret/place/judge.py:f", "eval.task=/secret/place/t.jsonl",
                   "model.adapter=~/secret/a", "data.system_prompt=/no_think"],
    )  # fmt: skip
    said = yaml.safe_dump(public_recipe(recipe))
    assert "secret" not in said and "judge.py:f" in said and "/no_think" in said


def test_a_card_never_holds_a_place_or_a_secret(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    for number, words in enumerate((f"see {Path.home()}/notes", "key 0123456789abcdef")):
        recipe = small_recipe("cast", f"data.system_prompt={words}")
        other = create_run(recipe, str(tmp_path / f"other-{number}"), "test")
        os.symlink(run.checkpoint(1), _parent(other.checkpoint(1)))
        (tmp_path / f"out-{number}").mkdir()
        with pytest.raises(UserError, match="would hold"):
            fill_model(other, 1, "me/x", tmp_path / f"out-{number}", merged=False, base=None)


def test_text_of_a_run_cannot_end_its_block(run: Run, tmp_path: Path) -> None:
    recipe = small_recipe("cast", "data.system_prompt=|-\n  ````\n  # heading\n  ---")
    other = create_run(recipe, str(tmp_path / "other"), "test")
    os.symlink(run.checkpoint(1), _parent(other.checkpoint(1)))
    (tmp_path / "out").mkdir()
    fill_model(other, 1, "me/x", tmp_path / "out", merged=False, base=None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`````yaml" in card and "was not evaluated" in card and "](curve" not in card


# The command


def test_a_dry_run_writes_a_folder_alone(run: Run, castctl: Cli, tmp_path: Path) -> None:
    given = ("push", str(run.path), "me/x", "--dry-run")
    done = castctl(*given, "--checkpoint", "2", "--folder", "there")
    assert done.stdout.strip() == "there" and (tmp_path / "there" / "README.md").is_file()
    again = castctl(*given, "--checkpoint", "2", "--folder", "there", code=2)
    assert "name a folder that is not" in again.stderr
    beside = castctl(*given, "--rollouts")
    assert beside.stdout.strip() == str(run.path.with_name("R-rollouts"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nameless",), "has no owner"),
        (("me/a b",), "no name of a repository"),
        (("me/x", "--checkpoint", "0"), "no model to push"),
        (("me/x", "--checkpoint", "7"), "no checkpoint at the start of step 7"),
        (("me/x", "--rollouts", "--merged"), "rollouts are no model; leave merged out"),
        (("me/x", "--checkpoint", "first"), "write last, best"),
    ],
)
def test_a_mistake_is_one_line(run: Run, castctl: Cli, words: tuple[str, ...], told: str) -> None:
    assert told in castctl("push", str(run.path), *words, "--dry-run", code=2).stderr


@pytest.mark.slow
def test_a_process_pushes_with_nothing_but_its_environment(run: Run, hub: Hub) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "castctl", "push", str(run.path), "me/x", "--checkpoint", "last"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/me/x\n"), done.stderr
    assert hub.model("me/x").commits == ["step 2 of R"]


def _result(run: Run, step: int) -> dict[str, Any]:
    from castctl.stages.evaluate.results import read_result

    result = read_result(run.eval_folder("embedded", step))
    assert result is not None
    return result


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True)
    return folder
