"""Whether a model's hidden states tell two kinds of answers apart, layer by layer; no judge."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from core.cell.context import StageContext
from core.cores import omp_threads
from core.errors import UserError
from core.gpu import check_capability, gpu_available
from core.inference import vllm_engine
from core.model_folder.config import read_json
from core.model_folder.tokenizer import open_tokenizer, special_names
from core.row_formats import data_file
from eval import contamination, direction
from eval.likelihood import CONTEXT, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIRECTIONS = "directions.npz"
SEED = 0  # of folds and shuffled labels: the same for all checkpoints
TEXTS_AT_ONCE = 16


def run(context: StageContext) -> dict[str, int | float]:
    """Find the direction of a behaviour in each layer; write `directions.npz`, `scores.parquet`.

    The items are those of likelihood tasks with two choices: a pair of texts is the question with
    either. Hidden states are those after each layer (the last behind the final norm), in the dtype
    that the model folder states.

    `directions.npz` holds, by layer, `direction` (layers, width; mean of the texts with the
    matching choice less mean of the others, float32), `auroc` (held-out, see
    `direction.held_out_scores`) and `auroc_shuffled` (with labels at random). `scores.parquet` has
    for each item its score, the mean over layers: its mean over items is the mean AUROC.

    Settings: task (name), rows (expected, or None), pooling ("last": hidden state of the text's
    last token; "mean": mean over its tokens but the first, begin-of-text), folds (of the pairs, by
    their scenario), files {items: identity}. Resources: files {items: path}. Inputs: checkpoint
    and, where it was trained on documents, contamination.

    Returns counts: pairs, layers, width, tokens (read), auroc (mean over layers), best_auroc.

    Raises:
        UserError: An item has more than two choices or does not fit the model, there are fewer
            scenarios than folds, or hidden states are no numbers.
    """
    import pandas as pd

    settings = context.settings
    contamination.check(context)
    path = Path(context.resources["files"]["items"])
    items = read(data_file(path))
    if settings["rows"] not in (None, len(items)):
        raise UserError(
            where=str(path),
            what=f"{len(items)} items, {settings['rows']} are expected",
            fix="fetch it again, or name your own file in the study file",
        )
    check_items(items, settings["folds"], path)
    folder = context.inputs["checkpoint"] / "model"
    longest = read_json(folder / "config.json")["max_position_embeddings"]
    tokens = encode(items, open_tokenizer(folder), longest)
    model = load_model(folder)
    context.facts["model"] = {"device": str(model.device), "dtype": str(model.dtype)}
    states = hidden_states(
        model,
        tokens,
        settings["pooling"],
        lambda number: context.progress(number, len(tokens), "texts"),
    )
    _release(model)
    if not np.isfinite(states).all():
        raise UserError(
            where=str(folder), what="its hidden states are not all numbers", fix="train it again"
        )
    pairs = states.reshape(len(items), 2, *states.shape[1:])
    scenarios = [scenario_of(item) for item in items]
    folds = direction.folds_of(scenarios, settings["folds"], SEED)
    scores = direction.held_out_scores(pairs, folds)
    aurocs = scores.mean(axis=0)
    np.savez(
        context.folder / DIRECTIONS,
        direction=direction.directions(pairs).astype(np.float32),
        auroc=aurocs,
        auroc_shuffled=direction.shuffled_aurocs(pairs, folds, SEED),
    )
    rows = [
        {
            "question": item["id"],
            "scenario": scenario_of(item),
            "dimension": "overall",
            "epoch": 1,
            "judge": "probe",
            "score": float(score),
            "missing": None,
            "response": f"{item['id']}/1",
        }
        for item, score in zip(items, scores.mean(axis=1), strict=True)
    ]
    table = pd.DataFrame(rows).astype({"missing": "str"})
    table.to_parquet(context.folder / "scores.parquet", index=False)
    best = int(aurocs.argmax())
    context.log(f"highest held-out AUROC {aurocs[best]:.3f}, of layer {best + 1} of {len(aurocs)}")
    return {
        "pairs": len(items),
        "layers": states.shape[1],
        "width": states.shape[2],
        "tokens": sum(map(len, tokens)),
        "auroc": round(float(aurocs.mean()), 6),
        "best_auroc": round(float(aurocs[best]), 6),
    }


def preload() -> None:
    """Import what `run` imports later."""
    vllm_engine.set_environment()
    import transformers  # noqa: F401


def scenario_of(item: dict[str, Any]) -> str:
    """The scenario of an item; of one without, its id."""
    return str(item.get("scenario") or item["id"])


def check_items(items: list[dict[str, Any]], folds: int, path: Path) -> None:
    """Raise UserError where items are no pairs, or too few for the folds."""
    fix = "name a file of items with two choices in the study file"
    if item := next((item for item in items if len(item["choices"]) != 2), None):
        what = f"item {item['id']!r} has {len(item['choices'])} choices, a probe compares two"
        raise UserError(where=str(path), what=what, fix=fix)
    if (count := len({scenario_of(item) for item in items})) < folds:
        what = f"{count} scenarios, fewer than the {folds} folds"
        raise UserError(where=str(path), what=what, fix=fix)


def encode(
    items: list[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", longest: int
) -> list[list[int]]:
    """Token ids of both texts of each item, first that with the matching choice.

    A text begins with begin-of-text once, as in training, and is the prompt of a likelihood task.

    Raises UserError where one names a special token, or has more than `longest` tokens.
    """
    names = special_names(tokenizer)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = []
    for item in items:
        where = f"item {item['id']}"
        for index in (item["answer"], 1 - item["answer"]):
            text = f"{CONTEXT.format(question=item['question'].strip())} "
            text += item["choices"][index].strip()
            if match := names and names.search(text):
                what = f"{match[0]!r} in its text would be read as the token"
                raise UserError(where=where, what=what, fix="reword the item")
            ids = bos + tokenizer(text, add_special_tokens=False).input_ids
            if len(ids) > longest:
                what = f"{len(ids)} tokens, the model takes {longest}"
                raise UserError(where=where, what=what, fix="shorten the item")
            tokens.append(ids)
    return tokens


def load_model(folder: Path) -> "PreTrainedModel":
    """The model without its head, in the dtype that its folder states, on a GPU where there is one.

    Raises UserError where this process holds a GPU that torch can't use.
    """
    vllm_engine.set_environment()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    on_gpu = gpu_available()
    if on_gpu:
        check_capability()
    else:
        torch.set_num_threads(omp_threads())  # sums must not depend on this machine's cores
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").base_model
    return cast("PreTrainedModel", model.eval().to("cuda" if on_gpu else "cpu"))


def hidden_states(
    model: "PreTrainedModel",
    tokens: list[list[int]],
    pooling: str,
    report: Callable[[int], None],
) -> np.ndarray:
    """The hidden state of each text after each layer, shape (texts, layers, width), float32.

    Args:
        model: A model without its head.
        tokens: Token ids of each text. Texts of like length are computed together.
        pooling: "last" or "mean", see `run`.
        report: Called with the number of texts computed so far.
    """
    import torch

    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    pooled: dict[int, np.ndarray] = {}
    for start in range(0, len(order), TEXTS_AT_ONCE):
        batch = order[start : start + TEXTS_AT_ONCE]
        lengths = torch.tensor([len(tokens[index]) for index in batch])
        # Padding is on the right, behind what counts: it changes no state before it.
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, : lengths[row]] = torch.tensor(tokens[index])
        positions = torch.arange(ids.shape[1])
        mask = positions < lengths[:, None]
        counted = mask & (positions > 0) if pooling == "mean" else positions == lengths[:, None] - 1
        with torch.inference_mode():
            outputs = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.long().to(model.device),
                output_hidden_states=True,
                use_cache=False,
            )
            weights = counted.to(model.device, torch.float32)
            weights = weights / weights.sum(dim=1, keepdim=True)
            # The first are the embeddings, in which a last token tells nothing of the others.
            layers = [
                torch.einsum("tpw,tp->tw", states.float(), weights)
                for states in outputs.hidden_states[1:]
            ]
        of_batch = torch.stack(layers, dim=1).cpu().numpy()
        pooled |= dict(zip(batch, of_batch, strict=True))
        report(len(pooled))
    return np.stack([pooled[index] for index in range(len(tokens))])


def _release(model: "PreTrainedModel") -> None:
    """Free the GPU for the next cell of this process."""
    import torch

    if model.device.type == "cuda":
        cast(Any, model).to("cpu")
        torch.cuda.empty_cache()
