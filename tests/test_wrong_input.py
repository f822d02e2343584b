"""Wrong input gets one line that says what is wrong and what to do, code 2, and no leftovers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import castctl
from castctl import embedded
from commands import Commands
from conftest import Cli

QUICK = (
    "-n", "4", "--max-tokens", "48", "--limit", "8", "--set", "train.prompts_per_step=4",
    "--set", "train.part_size=2", "--set", "eval.limit=4", "--set", "eval.k=2",
)  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What the user reads of an error."""
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("castctl: "), done.stderr
    return last


def refused(castctl: Cli, *arguments: str) -> str:
    """The line that a refused command ends in; every run it began is gone again."""
    before = set(Path("runs").glob("*")) if Path("runs").exists() else set()
    line = last_line(castctl(*arguments, code=2))
    after = set(Path("runs").glob("*")) if Path("runs").exists() else set()
    assert before == after
    return line


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Options and settings

SETTINGS = [
    ("method.shapin.lam=1", "unknown key method.shapin; the nearest one is method.shaping"),
    ("sampling.temprature=1", "the nearest one is sampling.temperature"),
    ("nonsense=1", "unknown key nonsense; the sections are seed, model"),
    ("data.chat_template_options={2026-01-01: 1}", "datetime.date; put the key into quotes"),
    ("sampling.n=2026-13-45", "sampling.n: input should be a valid integer"),
    ("method.shaping.flip=both", "method.shaping.kind must say which: "),
    ("method.shaping.kind=abacus", "method.shaping.kind must say which: none, cast"),
    ("method.zero_variance={kind: zero, b_wrong: 1}", "does not belong to the kind chosen"),
    ("sampling.n=lots", "sampling.n: input should be a valid integer"),
    ("sampling.stop=Q", r'sampling.stop: write a list of strings, such as ["\n\nProblem:"]'),
    ('sampling.stop=["Q", ""]', "sampling.stop: an empty string is in every completion; take it"),
    ("sampling.stop=[\ufffd]", "sampling.stop: U+FFFD stands for bytes that are no text; take it"),
    ("sampling.n=0", "sampling.n: input should be greater than or equal to 1, got 0"),
    ("optimizer.lr=.nan", "optimizer.lr: input should be a finite number"),
    ("optimizer.betas=[0.9,2]", "optimizer.betas.1: input should be less than 1, got 2"),
    ("train=3", "train: write its settings as a mapping, such as {steps: 3}"),
    ("nonsense", "write it as section.key=value"),
    ("sampling.n=1", "grpo compares completions of one prompt; set sampling.n (-n) to 2 or more"),
    ("sampling.temperature=0", "temperature 0 gives equal completions"),
    ("eval.temperature=0", "set eval.k=1"),
    ("sampling.top_p=0.9", "nothing trains on that"),
    ("sampling.presence_penalty=0.2", "sampling.presence_penalty=0.2 draws from another distrib"),
    ("sampling.presence_penalty=-2.1", "presence_penalty: input should be greater than or equal"),
    ("eval.presence_penalty=2.1", "eval.presence_penalty: input should be less than or equal to 2"),
    ("sampling.repetition_penalty=0", "repetition_penalty: input should be greater than 0, got 0"),
    ("eval.repetition_penalty=-1", "eval.repetition_penalty: input should be greater than 0"),
    ("eval.repetition_penalty=.inf", "repetition_penalty: input should be a finite number"),
    ("sampling.allow_truncated=true", "key sampling.allow_truncated is no more: nothing trains"),
    ("method.importance_cap=2", "write method.correction.high or method.correction.kind=none"),
    ("method.correction.low=0.5", "leave it out, or set method.correction.kind to mask"),
    ("method.correction={kind: none, level: token}", "method.correction.kind to truncate or mask"),
    ("method.correction={kind: mask, low: 2}", "set low to at most 1 and high to at least 1"),
    ("train.minibatches=99", "it has train.prompts_per_step=16 of them; lower it"),
    ("method.shaping.kind=cast", "set method.teacher.kind to snapshot, ema,"),
    ("model.device=abacus", "no device 'abacus'"),
    ("logging.trackers=[abacus]", "input should be 'tensorboard', 'wandb' or 'trackio'"),
    ("verifier.correct_from=0", "greater than 0"),
    ("verifier.function=rules.py", "name the function too, as in rules.py:FUNCTION"),
    ("verifier.function=rules.py:check", "there is no Python file"),
    ("eval.task=nothing", "no benchmark or file is called nothing"),
    ("data.prompt_template=hello", "leaves the problem out; write {{ problem }} into it"),
    ("data.chat_template_options={messages: 1}", "cannot set messages"),
]


@pytest.mark.parametrize(("setting", "words"), SETTINGS)
def test_a_setting(castctl: Cli, setting: str, words: str) -> None:
    assert words in refused(castctl, "train", "--set", setting)


RECIPES = [
    ("methd: {name: cast}", "r.yaml: unknown key methd; the nearest one is method"),
    ("method: {importance_cap: 2}", "r.yaml: unknown key method.importance_cap; write method.corr"),
    ("sampling: {n: lots}", "r.yaml: sampling.n: input should be a valid integer"),
    ("optimizer: {lr: -1}", "r.yaml: optimizer.lr: input should be greater than 0, got -1"),
    ("method: {name: nonsense}", "no method 'nonsense'; there are grpo,"),
    ("- a list", "r.yaml: a recipe is a mapping of sections"),
    ("a: [", "r.yaml is not YAML"),
]


@pytest.mark.parametrize(("text", "words"), RECIPES)
def test_a_recipe(castctl: Cli, text: str, words: str) -> None:
    Path("r.yaml").write_text(text)
    assert words in refused(castctl, "train", "r.yaml")


COMMANDS = [
    (("nonsense",), "nonsense"),
    (("rollout", "--nonsense"), "--nonsense"),
    (("rollout", "--limit", "0"), "--limit"),
    (("train", "--method", "nonsense"), "no method 'nonsense'; there are grpo,"),
    (("train", "no-recipe.yaml"), "no recipe at no-recipe.yaml"),
    (("train", "--resume"), "no run to resume"),
    (("train", "--resume", "--steps", "5"), "no run to resume"),
    (("train", "--resume", "--seed", "5"), "keeps its recipe, but for --steps"),
    (("train", "--resume", "--dry-run"), "leave --from and --dry-run out"),
    (("train", "--from", "nowhere"), "no run at"),
    (("score",), "start with `castctl rollout`"),
    (("score", "--run", "nobody"), "no run at"),
    (("rollout", "--shard", "3/2"), "--shard 3/2: write i/n"),
    (("rollout", "--device", "abacus"), "no device 'abacus'"),
    (("eval", "--checkpoint", "worst"), "--checkpoint worst"),
    (("rollout", "--max-tokens", "5000"), "pass the model's 4096 positions"),
    (("rollout", "--shard", "0/2"), "shard 0/2 needs --run"),
]


@pytest.mark.parametrize(("arguments", "words"), COMMANDS)
def test_an_option(castctl: Cli, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(castctl, *arguments)


def test_a_tracker_that_is_not_installed(castctl: Cli) -> None:
    missing = [name for name in ("wandb", "trackio") if find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed")
    line = refused(castctl, "train", "--set", f"logging.trackers=[{missing[0]}]", "--steps", "1")
    assert f"tracker {missing[0]} is not installed" in line


def test_a_folder_of_ones_own_is_no_run_and_stays(castctl: Cli) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    for name in ("mine", "./mine", "."):
        line = last_line(castctl("rollout", "--run", name, "--model", "./typo", code=2))
        assert "is there and is no run; name another" in line
    Path("empty").mkdir()
    castctl("rollout", "--run", "empty", "--model", "./typo", code=2)
    assert Path("mine/notes.txt").read_text() == "precious"


# Data

DATA = [
    ("missing.jsonl", None, "missing.jsonl"),
    ("none.jsonl", "", "none.jsonl is empty"),
    ("header.csv", "problem,answer\n", "holds no problem (0 rows"),
    ("blank.jsonl", '{"problem": " ", "answer": "2"}\n', "holds no problem (1 rows, all empty)"),
    ("broken.jsonl", '{"problem":\n', "line 1: not valid JSON"),
    ("broken.parquet", "PAR1", "cannot be read as .parquet"),
    ("strange.txt", "1 + 1", "of no known kind"),
    ("open.jsonl", '{"problem": "1 + 1 = ?"}\n', "none of the 1 problems has an answer"),
    ("other.jsonl", '{"Frage": "1 + 1 = ?"}\n', "set data.problem_column to one of: Frage"),
]


@pytest.mark.parametrize(("name", "text", "words"), DATA)
def test_data(castctl: Cli, name: str, text: str | None, words: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    assert words in refused(castctl, "rollout", "--data", name)


def test_an_unknown_column(castctl: Cli) -> None:
    Path("ok.jsonl").write_text('{"problem": "1 + 1 = ?", "answer": "2"}\n')
    line = refused(castctl, "train", "--data", "ok.jsonl", "--set", "data.answer_column=gold")
    assert "data.answer_column is gold, but the columns are: problem, answer" in line


def test_answers_that_cannot_be_parsed_stop_the_scoring(castctl: Cli) -> None:
    Path("odd.jsonl").write_text(
        '{"problem": "47 + 38 = ?", "answer": "}"}\n{"problem": "48 + 27 = ?", "answer": "{"}\n'
    )
    castctl("rollout", "--data", "odd.jsonl", "--run", "r", *QUICK, "--set", "train.part_size=1")
    line = last_line(castctl("score", "--run", "r", code=2))
    assert "more than verifier.max_error_share=0.05; most often: UnparsableAnswer" in line
    assert not list(Path("runs/r/step-00000").glob("rewards/*"))


# Models


def _model(change: Callable[[Path], object]) -> None:
    shutil.copytree(embedded.ensure().model, "model")
    change(Path("model"))


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _not_a_number(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _other_weights(folder: Path, vocabulary: int) -> None:
    """Put a model of another architecture beside the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


MODELS: list[tuple[Callable[[Path], object], str]] = [
    (shutil.rmtree, "no model folder at ./model"),
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON object"),
    (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the model"),
    (lambda folder: os.truncate(folder / "model.safetensors", 5000), "cannot load the model"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer that loads"),
    (_without_template, "the tokenizer has no chat template; set data.chat=false"),
    (_not_a_number, "weights of the qwen3 model are broken"),
    (
        lambda folder: _other_weights(folder, vocabulary=100),
        "the tokenizer knows 320 tokens but the model",
    ),
]


@pytest.mark.parametrize(("change", "words"), MODELS, ids=[words for _, words in MODELS])
def test_a_model(castctl: Cli, change: Callable[[Path], object], words: str) -> None:
    _model(change)
    line = refused(castctl, "rollout", "--model", "./model", "--data", "embedded", *QUICK)
    assert words in line


# Parts


@pytest.fixture(scope="module")
def finished(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of CAST, `a` and `b` of different seeds, all checkpoints kept."""
    folder = tmp_path_factory.mktemp("finished")
    keep = ("--set", "train.keep=all", "--set", "train.checkpoint_every=1")
    for name, seed in (("a", "0"), ("b", "1")):
        arguments = ("train", "--method", "cast", "--run", name, "--seed", seed, "--steps", "2")
        done = commands.start(*arguments, *keep, *QUICK, cwd=folder).wait()
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture
def step(finished: Path, tmp_path: Path) -> Path:
    """Step 1 of a run of this test's own."""
    shutil.copytree(finished / "a", tmp_path / "runs/a")
    return Path("runs/a/step-00001")


def rewritten(
    part: Path, change: Callable[[list[dict]], object], metadata: dict | None = None
) -> None:
    """Change a part's rows in place; without metadata it becomes one made elsewhere."""
    table = pq.read_table(part)
    rows = table.to_pylist()
    change(rows)
    made = {b"castctl": json.dumps(metadata).encode()} if metadata else None
    schema = table.schema.with_metadata(made)
    pq.write_table(pa.Table.from_pylist(rows, schema), part)


def test_a_part_cut_short(castctl: Cli, step: Path) -> None:
    part = step / "rollouts/part-00001.parquet"
    os.truncate(part, part.stat().st_size - 40)
    assert "part-00001.parquet is cut short" in refused(castctl, "score", "--run", str(step))


def test_a_part_with_another_runs_keys(castctl: Cli, step: Path, finished: Path) -> None:
    name = "signals/part-00000.parquet"
    shutil.copy(finished / "b" / step.name / name, step / name)
    line = refused(castctl, "shape", "--run", str(step), "--overwrite")
    assert "does not hold the rows of" in line and "make signals again" in line


def test_a_part_of_another_schema_version(castctl: Cli, step: Path) -> None:
    rewritten(step / "rewards/part-00000.parquet", lambda rows: None, {"schema": 9})
    line = refused(castctl, "shape", "--run", str(step))
    assert "has schema version 9, this castctl reads 1; make it again" in line


def test_output_made_otherwise(castctl: Cli, step: Path) -> None:
    line = refused(castctl, "rollout", "--run", str(step), "-n", "3")
    assert "another sampling.n (4, now 3)" in line and "--overwrite" in line
    line = refused(castctl, "shape", "--run", str(step), "--method", "grpo")
    assert "is there with another settings" in line and "--overwrite" in line
    line = refused(castctl, "score", "--run", str(step), "--temperature", "0.5")
    assert "was sampled at temperature 1, but 0.5 is asked for" in line
    line = refused(castctl, "train", "--from", str(step))
    assert "is there, not known to be of this update; add --overwrite" in line
    line = refused(castctl, "rollout", "--run", "a", "--limit", "2", "--step", "1")
    assert "has its prompts already, with another settings.limit (8, now 2)" in line
    castctl("shape", "--run", str(step), "--method", "grpo", "--overwrite")


def test_rollouts_made_anew_with_fewer_prompts(castctl: Cli, step: Path) -> None:
    fewer = ("--set", "train.prompts_per_step=2")
    line = refused(castctl, "rollout", "--run", str(step), *fewer)
    assert "rollouts/part-00001.parquet is there from a step of more prompts" in line
    castctl("rollout", "--run", str(step), *fewer, "--overwrite", "--seed", "5")
    assert not list(step.glob("*/part-00001.parquet"))
    line = refused(castctl, "score", "--run", str(step))
    assert "add --overwrite" in line
    castctl("score", "--run", str(step), "--overwrite")
    castctl("shape", "--run", str(step), "--overwrite")


def test_the_same_update_is_not_made_twice(castctl: Cli, step: Path) -> None:
    shutil.rmtree("runs/a/checkpoints/step-00002")
    castctl("train", "--from", str(step))
    weights = Path("runs/a/checkpoints/step-00002/model.safetensors")
    made = weights.stat().st_mtime_ns
    again = castctl("train", "--from", str(step), "--set", "train.keep=best_and_last")
    assert "there already from the same update" in again.stderr
    assert weights.stat().st_mtime_ns == made
    assert "not known to be of this update" in refused(
        castctl, "train", "--from", str(step), "--set", "seed=9"
    )


def test_a_signal_that_is_missing(castctl: Cli, step: Path) -> None:
    def forget(rows: list[dict]) -> None:
        for row in rows:
            row["teacher_logprobs"] = None

    rewritten(step / "signals/part-00000.parquet", forget)
    line = refused(castctl, "shape", "--run", str(step), "--overwrite")
    assert "cast needs teacher_logprobs" in line and "castctl score --run" in line


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_gap_that_is_not_finite(castctl: Cli, step: Path, number: float) -> None:
    def spoil(rows: list[dict]) -> None:
        rows[0]["teacher_logprobs"][0] = number

    rewritten(step / "signals/part-00000.parquet", spoil)
    line = refused(castctl, "shape", "--run", str(step), "--overwrite")
    assert "teacher_logprobs are not all finite" in line


def test_groups_of_one(castctl: Cli) -> None:
    castctl("rollout", "--run", "r", *QUICK, "-n", "1")
    castctl("score", "--run", "r")
    line = last_line(castctl("shape", "--run", "r", code=2))
    assert "has one; roll out with -n 2 or more" in line
    assert not Path("runs/r/step-00000/advantages").exists()


def _empty(name: str, which: slice) -> Callable[[list[dict]], None]:
    def change(rows: list[dict]) -> None:
        for row in rows[which]:
            row[name] = []
            if name == "completion_token_ids":
                row |= {"completion": "", "sampler_logprobs": []}

    return change


def test_empty_prompts_and_completions(castctl: Cli, step: Path) -> None:
    for stage in ("rewards", "signals", "advantages"):
        shutil.rmtree(step / stage)
    part = step / "rollouts/part-00000.parquet"
    rewritten(part, _empty("completion_token_ids", slice(1)))  # one is a wrong answer
    castctl("score", "--run", str(step))
    castctl("shape", "--run", str(step))
    shaped = pq.read_table(step / "advantages/part-00000.parquet").to_pylist()
    assert shaped[0]["advantages"] == [] and shaped[0]["kept"] and shaped[1]["advantages"]
    rewards = pq.read_table(step / "rewards/part-00000.parquet")
    assert rewards["verdict"][0].as_py() == "no_answer"
    shutil.rmtree(step / "rewards")
    rewritten(part, _empty("completion_token_ids", slice(None)))
    assert "every completion is empty" in refused(castctl, "score", "--run", str(step))
    shutil.copy(step.parent / "step-00000/rollouts" / part.name, part)
    rewritten(part, _empty("prompt_token_ids", slice(1)))
    shutil.rmtree(step / "signals")
    assert "empty prompt_token_ids" in last_line(castctl("score", "--run", str(step), code=2))


# Checkpoints


def test_a_checkpoint_of_another_architecture(castctl: Cli, step: Path) -> None:
    checkpoint = Path("runs/a/checkpoints/step-00001")
    _other_weights(checkpoint, vocabulary=320)
    castctl("rollout", "--run", str(step), "--overwrite", "--set", "sampling.max_tokens=8")
    line = last_line(castctl("score", "--run", str(step), "--overwrite", code=2))
    assert "cannot load the weights in runs/a/checkpoints/step-00001/teacher" in line
    assert "another architecture" in line
    recipe = Path("runs/a/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 3"))
    shutil.rmtree("runs/a/checkpoints/step-00002")
    line = last_line(castctl("train", "--resume", "--run", "a", code=2))
    assert "the optimizer state is of another model" in line


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("manifest.json", "manifest.json is no JSON object"),
        ("recipe.yaml", "recipe.yaml: a recipe is a mapping"),
        ("metrics.parquet", "metrics.parquet is cut short, damaged or no Parquet file"),
        ("checkpoints/step-00002/castctl.json", "castctl.json is no JSON object"),
        ("checkpoints/step-00002/optimizer.safetensors", "has no optimizer state that loads"),
        ("checkpoints/step-00002/model.safetensors", "cannot load the model"),
        ("eval/embedded/step-00000/results.json", "results.json is no JSON object"),
    ],
)
def test_a_broken_file_of_a_run(castctl: Cli, step: Path, file: str, words: str) -> None:
    recipe = Path("runs/a/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 3"))
    (Path("runs/a") / file).write_text("- ?")
    assert words in refused(castctl, "train", "--resume", "--run", "a")


# Disks


def _with_disk(options: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command with a small tmpfs of its own on `runs/`."""
    Path("runs").mkdir()
    script = f"mount -t tmpfs -o {options} none runs && {command}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """The weights do not fit beside the step; what was written before is whole."""
    castctl = f"{sys.executable} -m castctl"
    train = f"train --run r --steps 1 {' '.join(QUICK)}"
    done = _with_disk(
        "size=2m",
        f"{{ {castctl} {train}; code=$?; {castctl} shape --run runs/r/step-00000; "
        "find runs -name '*.tmp*'; exit $code; }",
    )
    assert done.returncode == 2
    assert "cannot write checkpoint" in done.stderr and "No space left" in done.stderr
    assert "the one before it is whole" in done.stderr
    assert "Next: castctl train --from runs/r/step-00000" in done.stderr
    assert ".tmp" not in done.stdout


@pytest.mark.slow
def test_a_read_only_folder() -> None:
    done = _with_disk("ro", f"{sys.executable} -m castctl rollout {' '.join(QUICK)}")
    assert done.returncode == 2
    assert "Read-only file system; is the folder writable?" in last_line(done)


# Ctrl-C


@pytest.mark.parametrize(
    ("arguments", "begun", "words"),
    [
        (("train", "--run", "r", "--steps", "9"), "step-00001/rewards", "train --resume --run"),
        (("rollout", "--run", "r"), "step-00000/rollouts", "the same command goes on from them"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    commands: Commands, tmp_path: Path, arguments: tuple[str, ...], begun: str, words: str
) -> None:
    many = ("--limit", "400", "--set", "train.prompts_per_step=400", "--set", "train.part_size=4")
    more = many if arguments[0] == "rollout" else ()
    command = commands.start(*arguments, *QUICK, *more, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "runs/r" / begun).glob("part-*")) and time.monotonic() < deadline:
        assert command.running()
        time.sleep(0.002)
    command.send_signal(signal.SIGINT)
    done = command.wait(60)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert words in done.stderr and "castctl: interrupted" in last_line(done)
    if arguments[0] == "train":
        manifest = json.loads((tmp_path / "runs/r/manifest.json").read_text())
        assert manifest["state"] == "interrupted"


# Numbers that go wrong

RULES = """
calls = 0
def broken(problem, completion, answer):
    raise ValueError("boo")
def nothing(problem, completion, answer):
    return 0
def huge(problem, completion, answer):
    return 3e38 * (sum(map(ord, completion)) % 2)
"""


def test_a_verifier_that_fails(castctl: Cli) -> None:
    Path("rules.py").write_text(RULES)
    arguments = ("train", "--set", "verifier.function=rules.py:broken", "--steps", "1", *QUICK)
    line = last_line(castctl(*arguments, code=2))
    assert "(100.0%) are `error`, more than verifier.max_error_share=0.05" in line
    assert "most often: ValueError: boo" in line


def test_no_reward_for_many_steps_is_a_warning(castctl: Cli) -> None:
    Path("rules.py").write_text(RULES)
    arguments = ("--set", "verifier.function=rules.py:nothing", "--steps", "5")
    every = ("--set", "train.warn_after_zero_rewards=2")
    done = castctl("train", *arguments, *every, *QUICK)
    warnings = [line for line in done.stderr.splitlines() if "earned a reward" in line]
    assert [line.split(":")[2].strip() for line in warnings] == ["step 2", "step 4"]


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(castctl: Cli) -> None:
    Path("rules.py").write_text(RULES)
    castctl("train", "--run", "r", "--steps", "1", "--set", "train.checkpoint_every=1", *QUICK)
    settings = yaml.safe_load(Path("runs/r/recipe.yaml").read_text())
    settings["train"]["steps"] = 2
    settings["verifier"]["function"] = "rules.py:huge"
    settings["method"]["baseline"]["kind"] = "mean"
    Path("runs/r/recipe.yaml").write_text(yaml.safe_dump(settings))
    before = Path("runs/r/checkpoints/step-00001/model.safetensors").read_bytes()
    line = last_line(castctl("train", "--resume", "--run", "r", "--trust-verifier", code=2))
    assert "step 2: loss" in line and "stopped before the weights were touched" in line
    assert "The last checkpoint is whole: runs/r/checkpoints/step-00001" in line
    assert Path("runs/r/checkpoints/step-00001/model.safetensors").read_bytes() == before


# Bugs


def test_a_bug_shows_its_traceback_and_where_to_report_it() -> None:
    code = (
        "import sys, castctl.cli\n"
        "face = sys.modules['castctl.cli.main']\n"
        "def app(**options): raise ZeroDivisionError('a bug')\n"
        "face.app = app\n"
        "face.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: a bug" in done.stderr
    assert f"a bug in castctl {castctl.__version__}" in last_line(
        done
    ) and "issue tracker" in last_line(done)
