"""The options that commands share, each defined once."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from castctl.report.console import be_quiet

RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Run, by name or path, or RUN/step-00012; rollout, train and eval begin one where the "
        "name is new.",
    ),
]
StepOption = Annotated[int | None, typer.Option("--step", min=0, help="Step of the run.")]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="Recipe in YAML, or the name of one; tiny by default."),
]
RecipeArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Recipe in YAML, or the name of one; NAME:VARIANT is a variant of it. A method's name "
        "stands for --method."
    ),
]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="The recipe's method on the embedded model and data.")
]
MethodOption = Annotated[
    str | None, typer.Option("--method", "-m", help="Method; castctl methods lists them.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id or folder; `embedded` is castctl's own.")
]
LoraOption = Annotated[
    bool, typer.Option("--lora", help="Train adapters of the model's linear layers (LoRA).")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Problems: a Parquet, JSONL or CSV file, a benchmark, a hub id or env:NAME.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first problems.")
]
SamplesOption = Annotated[int | None, typer.Option("-n", min=1, help="Completions of each prompt.")]
EvalSamplesOption = Annotated[
    int | None, typer.Option("-k", min=1, help="Samples of each evaluated problem.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0.0, help="Sampling temperature.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Longest completion, in tokens.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="Steps of the training loop.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of prompt order and sampling.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Override one setting; may be repeated. A setting's own name does too: --lr 1e-5.",
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option("--engine", help="What samples: transformers (the default) or vllm."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
TrustRemoteCodeOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. A run or a recipe alone never does.",
    ),
]
TrustVerifierOption = Annotated[
    bool,
    typer.Option(
        "--trust-verifier",
        help="Run the verifier or environment that a run or a recipe names. It alone never does.",
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus", metavar="N", min=1,
        help="Train on so many GPUs of this machine, a process each (or --device cpu).",
    ),
]  # fmt: skip
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Do this share of the parts; I from 0."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Make parts again that are there with other settings.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the recipe and the work it implies; start nothing.")
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Print every table, and what they do not show.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for programs, and nothing else.")
]


def _be_quiet(wanted: bool) -> None:
    if wanted:
        be_quiet()


def _debug(wanted: bool) -> None:
    if wanted:
        logging.getLogger("castctl").setLevel(logging.DEBUG)


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_be_quiet, help="Print results and warnings only.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_debug, help="Show the traceback of every error.")
]
