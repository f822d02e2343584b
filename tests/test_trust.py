"""A stranger's run, recipe and model: nothing of theirs runs unless a person says so now."""

from __future__ import annotations

import ast
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import castctl
from castctl import embedded
from castctl.data.templates import PromptTemplate
from castctl.models.loading import load_tokenizer
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import DataSettings
from castctl.recipe.trust import runs_code
from castctl.recipe.verifier import VerifierSettings
from castctl.runs.run import Run
from castctl.shards.seal import digests_of
from conftest import Cli
from runs import small_recipe, train_small

RAN = "from pathlib import Path\nPath({!r}).touch()\n"

CODE = {
    "configuration_own": """
from transformers import Qwen3Config
class OwnConfig(Qwen3Config):
    pass
""",
    "modeling_own": """
from transformers import Qwen3ForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
""",
    "tokenization_own": """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
""",
    "rules": """
def check(problem, completion, answer):
    return "0" in completion
""",
}


class Stranger:
    """A run at `run` and its initial model at `model`, whose code leaves a mark when it runs."""

    def __init__(self, folder: Path, made: Path) -> None:
        self.run, self.model, self.marks = folder / "theirs", folder / "model", folder / "marks"
        self.marks.mkdir()
        shutil.copytree(made, self.run)
        shutil.copytree(embedded.ensure().model, self.model)
        for each in (self.model, *self.run.glob("checkpoints/*")):
            self.bring_code(each)
        for each in self.run.glob("checkpoints/*"):  # who changes a checkpoint changes its digests
            digests = {n: d for n, d in digests_of(each).items() if n != "castctl.json"}
            change_json(each / "castctl.json", sha256=digests)
        self.bring("rules", self.run)
        self.recipe = self.run / "recipe.yaml"
        settings = yaml.safe_load(self.recipe.read_text())
        settings["model"] |= {"path": str(self.model), "trust_remote_code": True}
        settings["verifier"]["function"] = f"{self.run / 'rules.py'}:check"
        self.recipe.write_text(yaml.safe_dump(settings))

    def bring(self, name: str, folder: Path) -> None:
        code = RAN.format(str(self.marks / name)) + CODE[name]
        (folder / f"{name}.py").write_text(code)

    def bring_code(self, model: Path) -> None:
        for name in ("configuration_own", "modeling_own", "tokenization_own"):
            self.bring(name, model)
        own = {
            "config.json": {
                "AutoConfig": "configuration_own.OwnConfig",
                "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
            },
            "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
        }
        for file, classes in own.items():
            change_json(model / file, auto_map=classes)

    @property
    def ran(self) -> set[str]:
        return {mark.name for mark in self.marks.iterdir()}


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    path = tmp_path_factory.mktemp("trust") / "made"
    recipe = small_recipe("cast", "train.steps=2", "train.prompts_per_step=2", "eval.limit=2")
    return train_small(path, recipe)[0].path


@pytest.fixture
def stranger(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    monkeypatch.chdir(tmp_path)
    yield Stranger(tmp_path, made)


def last_line(text: str) -> str:
    return " ".join(text.splitlines()[-1].split())


# Commands


def test_looking_runs_nothing(castctl: Cli, stranger: Stranger, made: Path) -> None:
    run, recipe = str(stranger.run), str(stranger.recipe)
    sample = f"{Run(stranger.run, small_recipe()).step(1).table('rollouts')['prompt_id'][0]}/0"
    looks: list[tuple[str, ...]] = [
        ("runs",), ("inspect", run), ("inspect", run, "--verify"), ("inspect", run, "--prompts"),
        ("inspect", run, "--sample", sample), ("report", run), ("diagnose", "groups", run),
        ("compare", run, str(made)), ("explain", recipe),
        ("recipes", recipe), ("train", recipe, "--dry-run"),
    ]  # fmt: skip
    for look in looks:
        done = castctl(*look)
        assert not stranger.ran, look
        if "--prompts" in look or "--sample" in look or look[0] == "report":
            said = " ".join(done.stderr.split())
            assert "tokenization_own.py); read it, then add --trust-remote-code" in said
    refused = last_line(castctl("eval", "--rescore", run, code=2).stderr)
    assert f"{run}/rules.py:check (verifier.function); read it" in refused
    assert "--trust-verifier" in refused and "--set verifier.function=null" in refused
    without = ("eval", "--rescore", run, "--set", "verifier.function=null")
    assert "--trust-remote-code" in castctl(*without, code=2).stderr
    shutil.rmtree(stranger.run / "step-00001" / "rewards")
    missing = ("diagnose", "groups", run, "--step", "1")
    assert "--trust-remote-code" in castctl(*missing, code=2).stderr
    assert not stranger.ran


def test_no_folder_has_plots_set_by_latex(tmp_path: Path) -> None:
    """Matplotlib reads the `matplotlibrc` of the current folder, and LaTeX is a program."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    draw = (
        "from castctl.report.lettering import plain_text; from matplotlib.figure import Figure\n"
        "with plain_text(): Figure().add_subplot().figure.savefig('plot.svg')"
    )
    done = subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    sources = Path(castctl.__file__).parent.rglob("*.py")
    assert [file.stem for file in sources if "rc_context" in file.read_text()] == ["lettering"]


def test_working_on_a_strangers_run_runs_nothing_of_theirs(
    castctl: Cli, stranger: Stranger
) -> None:
    run, step = str(stranger.run), str(stranger.run / "step-00001")
    before = [(stranger.run / name).read_bytes() for name in ("manifest.json", "recipe.yaml")]
    for work, flag in (
        (("train", "--resume", "--run", run, "--steps", "3"), "--trust-verifier"),
        (("train", "--resume", "--run", run, "--trust-verifier"), "--trust-remote-code"),
        (("train", "--from", step, "--overwrite"), "--trust-remote-code"),
        (("train", str(stranger.recipe)), "--trust-verifier"),
        (("rollout", "--run", step, "--overwrite"), "--trust-remote-code"),
        (("rollout", "--recipe", str(stranger.recipe)), "--trust-remote-code"),
        (("score", "--run", step, "--overwrite"), "--trust-verifier"),
        (("eval", "--run", run), "--trust-verifier"),
        (("compare", str(stranger.recipe), run), "--trust-verifier"),
    ):
        assert flag in last_line(castctl(*work, code=2).stderr), work
        assert not stranger.ran, work
    castctl("shape", "--run", step)
    assert not stranger.ran
    after = [(stranger.run / name).read_bytes() for name in ("manifest.json", "recipe.yaml")]
    assert before == after
    assert not list(Path("runs").glob("*/manifest.json"))


def test_what_is_trusted_by_a_flag_runs(castctl: Cli, stranger: Stranger) -> None:
    run, step = str(stranger.run), str(stranger.run / "step-00001")
    remote, verifier = "--trust-remote-code", "--trust-verifier"
    castctl("inspect", run, "--prompts", remote)
    assert stranger.ran == {"configuration_own", "tokenization_own"}
    done = castctl("eval", "--rescore", run, remote, verifier, "--json")
    assert stranger.ran == {"configuration_own", "tokenization_own", "rules"}
    assert "rules.py:check" in json.loads(done.stdout)["parts"][0]["new_grader"]
    said = castctl("score", "--run", step, "--overwrite", remote, verifier).stderr
    assert stranger.ran == set(CODE)
    assert f"its recipe names code, trusted: verifier.function, {run}/rules.py:check" in said
    for mark in stranger.marks.iterdir():
        mark.unlink()
    castctl("train", "--resume", "--run", run, "--steps", "3", remote, verifier)
    assert stranger.ran == set(CODE)
    assert (stranger.run / "checkpoints/step-00003/modeling_own.py").is_file()


def test_what_runs_code_is_shown_before_it_can(castctl: Cli, stranger: Stranger) -> None:
    """By all that reads somebody else's recipe, ahead of the rest."""
    recipe, place = str(stranger.recipe), f"{stranger.run}/rules.py:check"
    remote = f"model.trust_remote_code, Python code that comes with {stranger.model}"
    shown = [
        castctl("recipes", recipe).stdout,
        castctl("explain", recipe).stdout,
        castctl("train", recipe, "--dry-run").stdout,
        castctl("inspect", str(stranger.run)).stdout,
    ]
    for page in shown:
        start = " ".join(" ".join(page.split())[:1500].replace("# ", "").split())
        for line in (f"runs code: {remote}", f"runs code: verifier.function, {place}"):
            assert "".join(line.split()) in "".join(start.split())
    told = json.loads(castctl("explain", recipe, "--json").stdout)["runs_code"]
    assert told["verifier.function"] == place


def test_a_typed_setting_is_trusted_and_one_of_a_file_is_not(
    castctl: Cli, stranger: Stranger
) -> None:
    step = str(stranger.run / "step-00001")
    function = f"verifier.function={stranger.run / 'rules.py'}:check"
    typed = ("--set", function, "--set", "model.trust_remote_code=true")
    other = ("--set", "verifier={timeout: 9}", "--set", "model={dtype: float32}")
    assert "--trust-verifier" in castctl("score", "--run", step, *other, code=2).stderr
    assert not stranger.ran
    castctl("score", "--run", step, "--overwrite", *typed)
    assert stranger.ran == set(CODE)


def test_a_model_without_code_needs_no_flag(castctl: Cli, stranger: Stranger) -> None:
    settings = yaml.safe_load(stranger.recipe.read_text())
    settings["model"]["path"] = "embedded"
    settings["verifier"]["function"] = None
    stranger.recipe.write_text(yaml.safe_dump(settings))
    rules = ("--set", f"verifier.function={stranger.run}/rules.py:check")
    done = castctl("rollout", "--run", str(stranger.run / "step-00000"), "--overwrite", *rules)
    assert not stranger.ran
    assert last_line(done.stderr).endswith("step-00000 --trust-verifier")  # what comes next


def test_a_model_that_only_its_code_can_load_says_so(castctl: Cli, stranger: Stranger) -> None:
    """Where no recipe asks for the code either, as with a model that was just fetched."""
    change_json(stranger.model / "config.json", model_type="own")
    done = castctl("rollout", "--model", str(stranger.model), "--data", "embedded", code=2)
    assert last_line(done.stderr).startswith(
        f"castctl: {stranger.model} comes with code of its own (configuration_own.py, "
        "modeling_own.py, tokenization_own.py); read it, then add --trust-remote-code"
    )
    assert not stranger.ran


@pytest.mark.parametrize("named", ["AutoConfig", "AutoModelForCausalLM", "pipeline"])
def test_a_folder_that_has_the_terminal_asked_is_refused(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Any class of Transformers can be named as the tokenizer; some ask whether code may run."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    (stranger.model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    change_json(stranger.model / "config.json", model_type="own")
    with pytest.raises(castctl.UserError, match=r"--trust-remote-code|no tokenizer that loads"):
        load_tokenizer(stranger.model, ModelSettings())
    assert not stranger.ran


# Functions


def test_the_functions_run_nothing_of_a_strangers(stranger: Stranger) -> None:
    run = castctl.open_run(stranger.run)
    refused: list[Callable[[], object]] = [
        lambda: castctl.train(run=run, resume=True, steps=3, quiet=True),
        lambda: castctl.train(stranger.recipe, run="mine", quiet=True),
        lambda: castctl.rollout(run, 1, overwrite=True, quiet=True),
        lambda: castctl.score(run, 1, overwrite=True, quiet=True),
        lambda: castctl.score(stranger.run, 1, overwrite=True, quiet=True, seed=3),
        lambda: castctl.update(run, 1, overwrite=True),
        lambda: castctl.evaluate(run, quiet=True),
        lambda: castctl.grade("1+1?", "2", "2", verifier=run.recipe.verifier),
    ]
    for number, call in enumerate(refused):
        with pytest.raises(castctl.UserError, match="--trust-"):
            call()
        assert not stranger.ran, number
    castctl.shape(run, 1, quiet=True)
    castctl.diagnose("groups", run, quiet=True)
    assert castctl.load_recipe(stranger.recipe).verifier.function is not None
    assert not stranger.ran


def test_the_functions_run_what_is_trusted(stranger: Stranger) -> None:
    trusted = castctl.open_run(stranger.run, trust_remote_code=True, trust_verifier=True)
    castctl.score(trusted, 1, overwrite=True, quiet=True, seed=3)
    assert stranger.ran == set(CODE)
    recipe = castctl.load_recipe(stranger.recipe, trust_verifier=True)
    judged = castctl.grade("1+1?", "20", "2", verifier=recipe.verifier)
    assert judged.reward == 1.0
    alike = VerifierSettings(workers=1, function=f"{stranger.run}/rules.py:check")
    assert castctl.grade("1+1?", "3", "2", verifier=alike).reward == 0.0  # named in Python


def test_the_name_of_an_installed_verifier_is_no_consent(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("verifier: {function: installed}\nmodel: {trust_remote_code: true}\n")
    recipe = castctl.load_recipe(file)
    assert runs_code(recipe)["verifier.function"] == "the entry point installed"
    with pytest.raises(castctl.UserError, match=r"the entry point installed .*--trust-verifier"):
        castctl.grade("1+1?", "2", "2", verifier=recipe.verifier)
    assert castctl.load_recipe(file, trust_remote_code=True).model.trusted


# Where code is let in


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """What a file calls, by the names as they are written."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_other_door_is_open() -> None:
    """Every model that Transformers' own choice of class loads says whether its code may run, by
    the answer of `runs_own_code`; verifiers are loaded in one place; recipes are read in one."""
    loaded, places = 0, {"CustomVerifier": set[str](), "validated": set[str]()}
    for file in Path(castctl.__file__).parent.rglob("*.py"):
        for name, call in calls(file):
            if name.startswith("Auto"):
                given = {each.arg: ast.unparse(each.value) for each in call.keywords}
                assert given.get("trust_remote_code") == "trust", (file, name)
                loaded += 1
            if name in places:
                places[name].add(file.name)
    assert loaded == 4
    assert places == {"CustomVerifier": {"judge.py"}, "validated": {"reader.py"}}


def test_a_module_in_this_folder_is_none_of_the_graders(castctl: Cli, stranger: Stranger) -> None:
    for name in ("json", "sympy", "math_verify"):
        Path(f"{name}.py").write_text(RAN.format(str(stranger.marks / name)))
    row = {"problem": "1+1?", "completion": r"\boxed{2.0}", "answer": "4/2"}
    Path("made.jsonl").write_text(json.dumps(row))
    castctl("eval", "--rescore", "made.jsonl", "--run", "r")
    assert not stranger.ran


# What looking fetches or makes


def test_looking_neither_fetches_nor_makes_a_model(
    castctl: Cli, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(stranger.run / "checkpoints")
    settings = yaml.safe_load(stranger.recipe.read_text())
    cache = tmp_path / "cache"
    monkeypatch.setenv("CASTCTL_CACHE", str(cache))
    for path in ("nobody/nothing", "embedded"):
        settings["model"]["path"] = path
        stranger.recipe.write_text(yaml.safe_dump(settings))
        look = ("inspect", "--prompts") if path == "embedded" else ("report",)
        said = " ".join(castctl(*look, str(stranger.run), timeout=60).stderr.split())
        assert f"model {path} is not on this machine" in said
    assert not cache.exists()


# Templates and YAML

ESCAPES = (
    "{{{{ problem.__class__.__mro__[1].__subclasses__() }}}} {}",
    "{{{{ problem }}}} {{{{ cycler.__init__.__globals__.os.system('touch {}') }}}}",
    "{{{{ problem }}}} {{{{ lipsum.__globals__['os'].system('touch {}') }}}}",
    "{{{{ problem }}}} {{{{ '{{0.__class__}}'.format(problem) }}}} {{{{ (problem|attr('__class__'))"
    ".mro() }}}} {}",
)


@pytest.mark.parametrize("attack", ESCAPES)
def test_a_template_runs_no_code(attack: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    model = ModelSettings()
    tokenizer = load_tokenizer(embedded.ensure().model, model)
    text = attack.format(mark)
    with pytest.raises(castctl.UserError):
        PromptTemplate(tokenizer, DataSettings(prompt_template=text)).render("1 + 1?")
    tokenizer.chat_template = "{{ messages[0]['content'] }}" + text.replace(
        "problem", "messages[0]['content']"
    )
    with pytest.raises(castctl.UserError):
        PromptTemplate(tokenizer, DataSettings()).render("1 + 1?")
    assert not mark.exists()


@pytest.mark.parametrize(
    "attack",
    [
        "seed: !!python/object/apply:os.system ['touch {}']",
        "seed: !!python/object/new:subprocess.check_output [['touch', '{}']]",
        "seed: !!python/name:os.system",
    ],
)
def test_yaml_makes_no_objects(attack: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "theirs.yaml"
    file.write_text(attack.format(mark))
    with pytest.raises(castctl.UserError, match="is not YAML"):
        castctl.load_recipe(file)
    assert not mark.exists()
