"""The seven diagnostics by name."""

from __future__ import annotations

from castctl.diagnosis import confidence, credit, engine, flips, gaps, groups
from castctl.diagnosis.diagnosis import Diagnostic
from castctl.diagnosis.needs import Need
from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.teacher import Teacher
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import Recipe
from castctl.runs.run import is_run


def _as_it_is(recipe: Recipe, began: ModelSettings, named: bool) -> MethodSettings:
    return recipe.method


def _with_privileged_teacher(recipe: Recipe, began: ModelSettings, named: bool) -> MethodSettings:
    """The method's own privileged teacher, else the policy itself, told the solution or answer."""
    teacher = recipe.method.teacher
    if not teacher.privileged:
        teacher = Teacher(kind="current", context="solution_or_answer")
    elif teacher.kind == "none" or (named and teacher.is_copy):
        teacher = teacher.model_copy(update={"kind": "current"})
    return recipe.method.model_copy(update={"teacher": teacher})


def _with_answer_free_teacher(recipe: Recipe, began: ModelSettings, named: bool) -> MethodSettings:
    """The method's own answer-free teacher, else the initial policy under the student's prompt."""
    teacher = recipe.method.teacher
    of_a_run = teacher.is_copy and not named
    if teacher.privileged or not (of_a_run or teacher.kind in ("current", "model")):
        teacher = Teacher(kind="model", path=began.path, revision=began.revision)
    return recipe.method.model_copy(update={"teacher": teacher})


def _with_cast(recipe: Recipe, began: ModelSettings, named: bool) -> MethodSettings:
    """CAST, as the run has it or with its preset."""
    teacher = _with_answer_free_teacher(recipe, began, named).teacher
    own = recipe.method.shaping.kind == "cast"
    method = recipe.method if own else MethodSettings(name="cast")
    return method.model_copy(update={"teacher": teacher})


_GAP = frozenset({"policy_logprobs", "teacher_logprobs"})
_ENTROPIES = frozenset({"entropies"})

DIAGNOSTICS = {
    each.name: each
    for each in (
        Diagnostic(
            "opsd-gaps",
            "How does a teacher that sees the answer judge correct and incorrect completions?",
            Need(_GAP, "privileged", welcome=_ENTROPIES),
            _with_privileged_teacher,
            gaps.measure,
        ),
        Diagnostic(
            "self-gaps",
            "How does CAST's answer-free teacher judge them, and how much of its gap is alive?",
            Need(_GAP, "answer_free", welcome=_ENTROPIES),
            _with_answer_free_teacher,
            gaps.measure_with_life,
        ),
        Diagnostic(
            "groups",
            "How many groups are mixed, and how much of a batch carries gradient?",
            Need(),
            _as_it_is,
            groups.measure,
        ),
        Diagnostic(
            "flips",
            "Which tokens does CAST flip, how many, and where do they sit?",
            Need(_GAP, "answer_free", flips=True, welcome=_ENTROPIES),
            _with_cast,
            flips.measure,
        ),
        Diagnostic(
            "credit",
            "Do OAR-P and OAR-G give credit to the same tokens, and at what cost?",
            Need(frozenset({"policy_logprobs", "importance_perturb", "importance_grad"})),
            _as_it_is,
            credit.measure,
        ),
        Diagnostic(
            "confidence",
            "Does the policy's drift from its reference go with reward, and what does RCC change?",
            Need(frozenset({"policy_logprobs", "ref_logprobs"})),
            _as_it_is,
            confidence.measure,
        ),
        Diagnostic(
            "engine",
            "Do the sampler's log-probs agree with the scorer's?",
            Need(frozenset({"policy_logprobs"})),
            _as_it_is,
            engine.measure,
        ),
    )
}


def find_diagnostic(name: str) -> Diagnostic:
    """The diagnostic of that name; `UserError` naming the nearest where there is none."""
    import difflib

    if name in DIAGNOSTICS:
        return DIAGNOSTICS[name]
    if is_run(name):
        raise UserError(
            f"{name} is a run; name the diagnostic first: castctl diagnose groups {name}"
        )
    near = difflib.get_close_matches(name, DIAGNOSTICS, n=1, cutoff=0.5)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(DIAGNOSTICS)}"
    raise UserError(f"no diagnostic {name!r}; {hint}")


def require_context(name: str, context: str | None) -> None:
    """Raise `UserError` for a context other than `other`, and for a diagnostic without answers."""
    if context is None:
        return
    if context != "other":
        raise UserError(
            f"no context {context!r}; --context other tells the teacher another problem's answer"
        )
    if name != "opsd-gaps":
        raise UserError(
            f"--context other is of a teacher that is told answers, and {name} reads none; use "
            "castctl diagnose opsd-gaps --context other"
        )
