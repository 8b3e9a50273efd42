"""A weighted sum of models that share a start: linear interpolation, or the mean over seeds.

Interpolation between the weights before and after a fine-tuning: Wortsman et al., "Robust
fine-tuning of zero-shot models" (arXiv 2109.01903). The mean of several fine-tuned models: "Model
soups" (arXiv 2203.05482).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.cell.context import StageContext
from core.errors import UserError
from core.model_folder.config import effective, end_token_ids, read_config, read_json
from core.model_folder.weights import HEAD, INDEX, read_headers, weight_files
from recipes.checkpoint import copy_files
from recipes.step_checkpoint import commit

TEMPLATE = "chat_template.jinja"


def run(context: StageContext) -> dict[str, int | float]:
    """Write model/: each weight is the sum of the inputs' weights times `weights`, in this order.

    Inputs: `start`, whose config and tokenizer the model takes over, and other1, other2 ... Setting
    `weights`: a factor for each. No GPU is used, and a file of weights is held at a time.

    Raises UserError where the models have other tensors or shapes.
    """
    others = [f"other{number}" for number in range(1, len(context.inputs))]
    folders = [context.inputs[role] / "model" for role in ("start", *others)]
    weights = context.settings["weights"]
    temporary = context.folder / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    ends = [token for folder in folders for token in end_token_ids(folder)]
    config = effective(read_json(folders[0] / "config.json"))
    copy_files(config, folders[0], temporary, ends, _chat_template(folders))
    files = weight_files(folders[0])
    for done, file in enumerate(files):
        context.progress(done, len(files), "files")
        part = weighted_sum(file, folders, weights)
        save_file(part, temporary / file.name, metadata={"format": "pt"})
    if (folders[0] / INDEX).exists():
        shutil.copyfile(folders[0] / INDEX, temporary / INDEX)
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which colleagues can't read
    commit(temporary, context.folder / "model")
    return {"models": len(folders)}


def weighted_sum(
    file: Path, folders: Sequence[Path], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The tensors that `file`, of the first folder, will have: in its dtype, summed in fp64.

    `folders`: of the models, `weights`: their factors.
    """
    is_tied = read_config(folders[0]).get("tie_word_embeddings")
    headers = [read_headers(folder) for folder in folders]
    merged: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as first:
        for name in first.keys():  # noqa: SIM118 (it is no mapping)
            if name == HEAD and is_tied:
                continue  # the embedding, written a second time
            own = first.get_tensor(name)
            total = own.double() * weights[0]
            for folder, header, weight in zip(folders[1:], headers[1:], weights[1:], strict=True):
                if name not in header or header[name].shape != tuple(own.shape):
                    raise UserError(
                        where=str(folder),
                        what=f"has no {name} of the shape {list(own.shape)}, as {folders[0]} has",
                        fix="merge models of one start model",
                    )
                with safe_open(header[name].file, framework="pt") as other:
                    total += other.get_tensor(name).double() * weight
            merged[name] = total.to(own.dtype)
    return merged


def _chat_template(folders: Sequence[Path]) -> str | None:
    """The file with the chat template of the first model that has one, if not the first of all."""
    having = [folder / TEMPLATE for folder in folders if (folder / TEMPLATE).exists()]
    return str(having[0]) if having and having[0].parent != folders[0] else None
