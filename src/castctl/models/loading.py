"""Loading a model and its tokenizer, and naming a model by what is in its folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castctl.errors import UserError, one_line
from castctl.launcher import rank_of
from castctl.models.folder import check_model_folder
from castctl.models.own_code import refused, runs_own_code
from castctl.recipe.model import ModelSettings
from castctl.shards.part import read_json

if TYPE_CHECKING:
    import torch

    from castctl.models.language_model import LanguageModel

SAMPLE_BLOCKS = 16
SAMPLE_BYTES = 4096

CONFIG_FILES = ("config.json", "*.py")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")


def _embedded_model() -> Path:
    from castctl import embedded

    return embedded.ensure().model


ALIASES: dict[str, Callable[[], Path]] = {"embedded": _embedded_model}
"""Names that stand for a folder castctl makes itself."""


def locate_model(
    path: str,
    revision: str | None = None,
    files: Sequence[str] = MODEL_FILES,
    *,
    fetch: bool = True,
) -> Path:
    """The local folder of a model: an alias, a folder, or a hub id, whose `files` are fetched
    into the hub's cache, or must be there where `fetch` is off.

    Raises `UserError` where there is no such model or the folder holds none.
    """
    if path in ALIASES:
        return ALIASES[path]()
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "adapter").is_dir():
            raise UserError(
                f"{path} is the checkpoint of an adapter; name the model that it was trained on "
                f"with --model, and --adapter {folder / 'adapter'}"
            )
        if not (folder / "config.json").is_file():
            raise UserError(f"{path} holds no config.json, so it is no Hugging Face model folder")
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"no model folder at {path}; name a folder, a hub id (owner/name) or embedded"
        )
    return _fetch_from_hub(path, revision, files, fetch)


def find_model(path: str, revision: str | None = None) -> Path | None:
    """The local folder of a model; None where it is not on this machine. Nothing is fetched or
    made."""
    from castctl import embedded

    if path in ALIASES and not embedded.is_made():
        return None
    try:
        return locate_model(path, revision, fetch=False)
    except UserError:
        return None


def _fetch_from_hub(path: str, revision: str | None, files: Sequence[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                path, revision=revision, allow_patterns=list(files), local_files_only=not fetch
            )
        )
    except Exception as error:  # the hub client raises many kinds; all mean the same to a user
        raise UserError(
            f"cannot fetch model {path} from the hub ({one_line(error, 200, named=True)}); "
            "check the name and the network, or name a local folder"
        ) from None


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that tell models apart: config, safetensors headers, samples of weights.

    Headers alone are equal for every fine-tune of one architecture, so blocks spread over
    each file are hashed with them.
    """
    check_model_folder(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header, size)))
            for block in range(SAMPLE_BLOCKS):
                stream.seek(size * block // SAMPLE_BLOCKS)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there; of several ranks on a machine
    each has the GPU of its number."""
    import torch

    rank = rank_of(os.environ)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and rank.local > 1 and torch.cuda.device_count() > 1:
        if device.index is not None:
            raise UserError(
                f"device {name}: {rank.local} processes on this machine would share one GPU; "
                "leave its number out, and each takes its own"
            )
        name = f"cuda:{rank.local_index}"
        device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: this torch sees no CUDA GPU; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs")
    return device


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    check_model_folder(folder)
    trust = runs_own_code(folder, settings, "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust, local_files_only=True
        )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # any class may be named as one
            raise TypeError(f"it names {type(tokenizer).__name__} as its tokenizer")
    except Exception as error:  # transformers raises many kinds
        raise refused(folder, error, f"{folder} holds no tokenizer that loads") from None
    return tokenizer


def load_language_model(folder: Path, settings: ModelSettings) -> LanguageModel:
    """A model with float32 weights on its device, without dropout, and its tokenizer.

    Only safetensors are read. Raises `UserError` where the folder cannot be loaded, holds other
    weights than the architecture has, or where log-probs would be wrong.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from castctl.models import attention
    from castctl.models.compatibility import (
        check_architecture,
        check_weights,
        refuse_own_attention,
        refuse_unpackable,
    )
    from castctl.models.language_model import LanguageModel
    from castctl.models.products import speed_up
    from castctl.models.twin import still

    logging.disable_progress_bar()
    _refuse_quantised(folder)
    device = resolve_device(settings.device)
    tokenizer = load_tokenizer(folder, settings)
    trust = runs_own_code(folder, settings, "config.json")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            trust_remote_code=trust,
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
    except Exception as error:  # transformers and safetensors raise many kinds
        refuse_own_attention(f"{folder.name}'s kind of", error)
        raise refused(folder, error, f"cannot load the model in {folder}") from None
    refuse_unpackable(model.config)
    _refuse_other_keys(folder, report)
    still(model)
    _refuse_foreign_tokenizer(folder, tokenizer, model)
    model = model.to(device).eval()
    speed_up(model)
    check_weights(model)
    check_architecture(type(model), model.config)
    wanted = settings.dtype
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    language_model = LanguageModel(model, tokenizer, getattr(torch, wanted))
    if settings.attention == "fused" and device.type == "cuda":
        from castctl.models import fused

        model.set_attn_implementation(fused.NAME)
        fused.check_fused(language_model)
    return language_model


def load_frozen(folder: Path, settings: ModelSettings) -> LanguageModel:
    """A model of which nothing trains; `UserError` as `load_language_model` and `lay_to_rest`."""
    model = load_language_model(folder, settings)
    model.model.requires_grad_(False)
    lay_to_rest(model, settings)
    return model


def lay_to_rest(model: LanguageModel, settings: ModelSettings) -> None:
    """Keep linear layers that do not train in what `model.weights` says: not the output head,
    which the embeddings may share. In passes in bfloat16 they are cast to it anyway.

    Raises `UserError` where that would change what passes compute.
    """
    import torch

    asked, passes = settings.weights, str(model.dtype).removeprefix("torch.")
    if asked == "bfloat16" and passes != asked:
        raise UserError(
            f"model.weights=bfloat16 would round what passes in {passes} read; set "
            "model.dtype=bfloat16 as well, or model.weights=float32"
        )
    if asked == "auto" and passes == "bfloat16" and model.device.type == "cuda":
        asked = "bfloat16"
    if asked != "bfloat16":
        return
    head = model.model.get_output_embeddings()
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _refuse_quantised(folder: Path) -> None:
    """Raise `UserError` for weights that are stored in fewer bits: other layers would read them,
    with packages of their own, and none of the checks here knows those."""
    check_model_folder(folder)
    kind = read_json(folder / "config.json", "take another copy").get("quantization_config")
    if kind:
        named = kind.get("quant_method") if isinstance(kind, dict) else None
        raise UserError(
            f"{folder} holds quantised weights ({one_line(named or kind, 60)}), which castctl does "
            "not read; name the model in bfloat16 or float32, as a teacher too"
        )


def _refuse_other_keys(folder: Path, report: dict[str, Any]) -> None:
    """Raise `UserError` for weights that are not the architecture's: transformers makes up those
    that it does not find."""
    kinds = {
        "missing_keys": "lacks", "mismatched_keys": "has in another shape",
        "unexpected_keys": "has beside the model's",
    }  # fmt: skip
    for kind, words in kinds.items():
        if keys := sorted(map(str, report.get(kind, ()))):
            raise UserError(
                f"{folder} {words} {len(keys)} weights, such as {one_line(keys[0], 120)}; it is "
                "damaged, or of another architecture than its config.json says"
            )


def _refuse_foreign_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens but the model {rows}; they do "
            "not belong together"
        )


def load_weights(model: Any, folder: Path) -> None:
    """Replace a loaded model's weights by those in a folder of the same architecture.

    Raises `UserError`, the model untouched, where they do not load or do not all fit.
    """
    model.load_state_dict(read_weights(model, folder))


def read_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder, float32 and by name, for a loaded model of the same architecture.

    Raises `UserError` where they do not load or do not all fit.
    """
    import torch

    try:
        check_model_folder(folder)
        twin, report = type(model).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=model.config._attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                raise ValueError(f"another architecture, {kind} {min(report[kind])}")
        mine, theirs = (
            {(name, tuple(tensor.shape)) for name, tensor in each.state_dict().items()}
            for each in (model, twin)
        )
        if different := dict(mine ^ theirs):
            raise ValueError(f"another architecture, different in {min(different)}")
    except Exception as error:  # transformers and safetensors raise many kinds
        raise UserError(f"cannot load the weights in {folder}: {one_line(error)}") from None
    return dict(twin.state_dict())
