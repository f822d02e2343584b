"""Who scores the completions a second time, and what it is told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from castctl.settings import Amount, Count, Section

ASKED = {"context", "template", "chat", "chat_template_options"}
"""The settings that say what a teacher is asked."""


PATHLESS = (
    "teacher.kind=model needs teacher.path; set method.teacher.path to the model's folder or hub id"
)


class Teacher(Section):
    """A stop-gradient model, and the prompt under which it reads the student's own completions."""

    kind: Literal["none", "snapshot", "ema", "initial", "current", "model"] = "none"
    """`snapshot`: the policy of the last refresh; `ema`: an exponential average; `initial`: the
    policy of step 0; `current`: the policy itself; `model`: another model of the same vocabulary.
    CAST's paper leaves the choice open."""
    every: Count = 10
    """Steps between refreshes of a snapshot (ours)."""
    decay: float = Field(0.99, ge=0, lt=1)
    """Share of the old average kept a step by `ema` (ours)."""
    path: str | None = None
    """Hub id or folder of the `model`, which nothing is read without; its weights rest as
    `model.weights` says of those that do not train."""
    revision: str | None = None
    """Hub revision of the `model`; the newest when left out."""
    context: Literal["none", "answer", "solution", "solution_or_answer", "peer"] = "none"
    """What its prompt tells beside the problem: nothing; the answer; the worked solution and the
    answer; those where there is a solution, else the answer; or a `peer`, another completion of
    the prompt, which is correct and drawn by `seed`."""
    template: str | None = None
    """Jinja template of its user text over `prompt` (the student's), `problem` and what the context
    tells; where left out `data.teacher_template`, with context `none` the student's own, and with
    `peer` the prompt, `[Correct rollout]` and the peer (ours, after RLRT's public launchers)."""
    chat: bool = True
    """Whether its user text stands in the student's conversation; false: the rendered text alone,
    tokenised as it stands, without chat template, system prompt and special tokens (ours)."""
    chat_template_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the chat template that differ from the student's, such as `enable_thinking`."""
    max_prompt_tokens: Count = 8192
    """A problem with a longer teacher's prompt is dropped and counted, never cut; with context
    `peer` a completion with one has no teacher (ours)."""
    skip_tokens: Amount = 0
    """First tokens of each completion at which it is not heard, as where another chat template
    makes them unlikely (ours)."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Teacher:
        if self.kind == "model" and self.path == "":
            raise ValueError(PATHLESS)
        if self.kind != "model" and self.path is not None:
            raise ValueError(
                f"teacher.kind={self.kind} reads no teacher.path; set method.teacher.kind=model, "
                "or leave the path out"
            )
        if not self.chat and self.chat_template_options:
            raise ValueError(
                "teacher.chat=false has no chat template to hand options to; leave "
                "method.teacher.chat_template_options out, or set method.teacher.chat=true"
            )
        return self

    @property
    def pathless(self) -> bool:
        """Whether it is a model that nobody has named yet."""
        return self.kind == "model" and self.path is None

    @property
    def is_copy(self) -> bool:
        """Whether it has weights of its own that training makes."""
        return self.kind in ("snapshot", "ema", "initial")

    @property
    def privileged(self) -> bool:
        """Whether it sees the answer, the solution or a correct completion."""
        return self.context != "none"

    @property
    def told_by_peers(self) -> bool:
        """Whether it sees another completion, so that one without a peer has no teacher."""
        return self.context == "peer"

    @property
    def own_prompt(self) -> bool:
        """Whether its prompt may differ from the student's."""
        own_text = self.template is not None or not self.chat
        return self.privileged or own_text or bool(self.chat_template_options)

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that its prompt depends on, and which completions have one."""
        bound = {"max_prompt_tokens"} if self.told_by_peers else set()
        return self.model_dump(mode="json", include=ASKED | bound)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that its log-probs depend on."""
        own = {"snapshot": {"every"}, "ema": {"decay"}, "model": {"path", "revision"}}
        who = self.model_dump(mode="json", include={"kind"} | own.get(self.kind, set()))
        return who | self.asked
