"""`castctl explain`, and what `castctl train --dry-run` prints."""

from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt

if TYPE_CHECKING:
    from castctl.recipe.reader import Origins
    from castctl.recipe.recipe import Recipe


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    recipe: opt.RecipeArgument = None,
    tiny: opt.TinyOption = False,
    method: opt.MethodOption = None,
    model: opt.ModelOption = None,
    data: opt.DataOption = None,
    engine: opt.EngineOption = None,
    device: opt.DeviceOption = None,
    gpus: opt.GpusOption = None,
    lora: opt.LoraOption = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", min=1, help="Say whether it fits a GPU of so many GiB."),
    ] = None,
    set_: opt.SetOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Say what training by a recipe will do: a step's work, memory, every setting and its source.

    Memory needs the model's config.json, from the hub or a folder; nothing else is fetched.
    """
    from castctl.cli.context import Asked

    asked = Asked(
        recipe,
        set_,
        method=method,
        tiny=tiny,
        model={
            "path": model,
            "lora": {} if lora else None,
            "device": device or ("cuda" if gpu_memory or gpus else None),
        },
        data={"path": data},
        engine={"kind": engine},
        trust_remote_code=trust_remote_code,
    )
    show_explanation(*asked.new_recipe(), as_json=as_json, gpu_memory=gpu_memory, ranks=gpus or 1)


def show_explanation(
    recipe: "Recipe",
    origins: "Origins",
    *,
    as_json: bool = False,
    gpu_memory: float | None = None,
    ranks: int = 1,
) -> None:
    """Print what a recipe will do on so many ranks; `UserError` where it cannot train."""
    from castctl.explain.explanation import explain_recipe
    from castctl.report.explanation import explanation_page
    from castctl.report.marks import print_json
    from castctl.report.tables import show

    explanation = explain_recipe(recipe, origins, gpu_memory, ranks)
    print_json(explanation.as_json()) if as_json else show(explanation_page(explanation))
