"""A run's trained weights in a folder of their own, as other tools load them."""

from __future__ import annotations

import shutil
from pathlib import Path

from castctl.errors import UserError
from castctl.models.adapter import CONFIG_FILE, WEIGHTS_FILE
from castctl.models.loading import MODEL_FILES
from castctl.runs.run import Run
from castctl.shards.drafts import drafted_folder
from castctl.shards.part import sync_folder, sync_tree
from castctl.stages.policies import policy_at

BESIDE = ("castctl.json", "optimizer.json", "optimizer.safetensors")
"""What a checkpoint holds beside a model."""


def export_policy(run: Run, step: int | None, folder: Path, *, merged: bool) -> int:
    """Write the policy of a checkpoint, the last one unless a step is named, into a new folder: a
    whole model in Hugging Face format, or its adapter in peft's; `merged`, an adapter becomes a
    whole model too. The step at whose start it was.

    It is merged in float32 into weights that are loaded for it, which leaves no trace in those that
    train. Raises `UserError` where the folder is there, and where there is nothing to export.
    """
    step = max(run.checkpoints(), default=0) if step is None else step
    if step == 0:
        raise UserError(f"{run.path} has no checkpoint to export; train it, or name a --step")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")
    source = policy_at(run, step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with drafted_folder(folder) as draft:
        if source.weights.adapter is None:
            for pattern in MODEL_FILES:
                for file in source.weights.model.glob(pattern):
                    if file.name not in BESIDE:
                        shutil.copyfile(file, draft / file.name)
        elif merged:
            exact = {"device": "cpu", "dtype": "float32", "weights": "float32"}
            source.load(run.recipe.model.model_copy(update=exact)).save_whole(draft)
        else:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(source.weights.adapter / name, draft / name)
        draft.chmod(0o755)
        sync_tree(draft)
        draft.rename(folder)
        sync_folder(folder.parent)
    return step
