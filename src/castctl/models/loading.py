"""Loading a model and its tokenizer, and naming a model by what is in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castctl.errors import UserError, one_line
from castctl.models.folder import check_model_folder
from castctl.recipe.recipe import ModelSettings

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
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: this torch sees no CUDA GPU; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs")
    return device


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        check_model_folder(folder)
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no tokenizer that loads: {one_line(error)}") from None


def load_language_model(folder: Path, settings: ModelSettings) -> LanguageModel:
    """A model with float32 weights on its device, without dropout, and its tokenizer.

    Only safetensors are read. Raises `UserError` where the folder cannot be loaded or the
    architecture cannot be packed.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from castctl.models import attention
    from castctl.models.language_model import LanguageModel

    logging.disable_progress_bar()
    device = resolve_device(settings.device)
    tokenizer = load_tokenizer(folder, settings)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise UserError(f"cannot load the model in {folder}: {one_line(error)}") from None
    refuse_unpackable(model.config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    _refuse_foreign_tokenizer(folder, tokenizer, model)
    model = model.to(device).eval()  # type: ignore[arg-type]
    check_packing(model)
    wanted = settings.dtype
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return LanguageModel(model, tokenizer, getattr(torch, wanted))


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
    import torch

    try:
        check_model_folder(folder)
        twin, report = type(model).from_pretrained(
            folder,
            dtype=torch.float32,
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
        model.load_state_dict(twin.state_dict())
    except Exception as error:  # transformers and safetensors raise many kinds
        raise UserError(f"cannot load the weights in {folder}: {one_line(error)}") from None


def refuse_unpackable(config: Any) -> None:
    """Raise `UserError` for architectures whose layers would mix packed rows or rescale logits."""
    kinds = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        raise UserError(
            f"{config.model_type} has {', '.join(sorted(kinds))} layers, which would mix the rows "
            "of a packed batch; use a model with attention layers only"
        )
    for name in ("attn_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1.0):
            raise UserError(f"{config.model_type} sets {name}, which castctl does not apply")


def check_packing(model: Any) -> None:
    """Raise `UserError` unless a packed batch gives the hidden states of a plain row.

    Some architectures drop the segments on the way to the attention, or attend in a way of
    their own; their log-probs would be wrong without a word.
    """
    import numpy as np
    import torch

    from castctl.models.language_model import LanguageModel
    from castctl.models.packing import pack

    kind = model.config.model_type
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        raise UserError(f"{kind} has attention sinks, which castctl does not apply")
    prompt, first, second = np.array([1, 2, 3]), np.array([4, 5]), np.array([5, 4, 6])
    row = torch.from_numpy(np.concatenate([prompt, second[:-1]])).to(model.device)
    try:
        with torch.no_grad():
            batch = pack([prompt, prompt], [first, second])
            packed = LanguageModel(model, None, torch.float32).hidden_states(batch)[len(first) :]
            plain = model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0, 2:]
        sound = bool(torch.isfinite(plain).all())
        fits = torch.allclose(packed, plain, rtol=1e-3, atol=1e-3)
    except Exception as error:  # an architecture that breaks here breaks in ways of its own
        raise UserError(f"castctl cannot pack {kind} models: {one_line(error)}") from None
    if not sound:
        raise UserError(f"the weights of the {kind} model are broken: its outputs are not numbers")
    if not fits:
        raise UserError(f"castctl cannot pack {kind} models: its attention ignores the packing")
