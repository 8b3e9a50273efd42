"""Model cards and data set cards in the Hugging Face Hub's format, from manifests, settings and results alone."""

import json
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from core.cell.identity import read_config
from core.cell.manifest import read_manifest
from core.errors import UserError

Cell = dict[
    str, Any
]  # a manifest, with the cell's settings, its inputs (such cells too, by role), place and base
# By the beginning of a model's name on the Hub: a fine-tuned Llama keeps its licence.
LICENSES = {
    "meta-llama/Llama-3.1": "llama3.1",
    "meta-llama/Llama-3.2": "llama3.2",
    "meta-llama/Llama-3.3": "llama3.3",
}
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)  # the Hub's words
WHERE = ("benchmark", "arm", "seed", "dose")
CONTRAST = ("name", "benchmark", "dose", "estimate", "low", "high", "p_holm", "verdict")
SHOWN = ("updates", "tokens", "first_loss", "last_loss")  # of a training's counts
STAND_IN = "**The kit's stand-in, a set of rules, wrote or graded in place of a language model: this is a test.**"
CITE = """## How to cite

{what} is the cell `{cell[place]}` (identity {cell[identity]:.16}), made on {cell[ended]:.10} by the kit at commit
{cell[code][commit]}{dirty}. The study that it reproduces:

```bibtex
@misc{{brazilek2026alignment, title={{Alignment Midtraining for Animals}}, year={{2026}}, eprint={{2604.13076}},
  author={{Brazilek, Jasmine and Tidmarsh, Miles}}, archivePrefix={{arXiv}}, primaryClass={{cs.LG}}}}
```
"""
MODEL_LIMITS = """## Intended use and limits

Research on what midtraining on synthetic documents does to a language model, against matched controls. This is one
training run: runs that differ in seeds alone differ in scores, and verdicts rest on several. Nothing was done for its
safety, and what it says of animals, cities or policy is no checked fact. A judge's scores are that judge's. What the
start model is not for, this is not for either, and its licence holds here too."""
LLAMA = " The licence wants a name that begins with Llama, and this line: Built with Llama."
DATA_LIMITS = """## Intended use and limits

To midtrain language models on, and to compare with the matched corpus. Documents that a model wrote hold invented
institutions, people and figures and argue for one view on purpose: they are no source of facts. They have that model's
habits of style, and were checked by rules and programs, not read one by one."""


def model_card(
    folder: Path, results: Path | None = None, license: str = "", datasets: Any = ()
) -> str:
    """The card (README.md) of a checkpoint: the folder of a finished midtrain or sft cell.

    results: what the study has published, for this checkpoint's scores. license: the Hub's name of one, where it does
    not follow from the start model. datasets: the Hub's names of what it was trained on, besides those that the study
    took from there. Raises UserError where a cell is not finished.
    """
    cell = _read(folder)
    if cell["stage"] not in ("midtrain", "sft"):
        raise UserError(f"{folder}: is no training; a model card is of a midtrain or sft cell")
    trainings, start = _trainings(cell)
    corpora = [one["inputs"]["documents"] for one in trainings if "documents" in one["inputs"]]
    hub = start["settings"].get("source", {}).get("hub")
    taken = [corpus["settings"].get("source", {}).get("hub") for corpus in corpora]
    taken += [one["settings"].get("data", {}).get("hub") for one in trainings]
    license = license or next(
        (name for prefix, name in LICENSES.items() if str(hub).startswith(prefix)), "other"
    )
    scores, contrasts, stand_in = _scores(cell, results)
    title = f"{cell['base'].name}: {cell['name']}"
    header = {
        **{
            "license": license,
            "language": ["en"],
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
        },
        **({"base_model": hub, "base_model_relation": "finetune"} if hub else {}),
        "datasets": list(dict.fromkeys([*filter(None, taken), *datasets])),
        "tags": ["alignment", "midtraining" if corpora else "instruction-tuning"],
        **(
            {"model-index": [{"name": title, "results": [_result(row) for row in scores]}]}
            if scores
            else {}
        ),
    }
    made = (
        "A toy Llama made from scratch" if "recipe" in start["settings"] else hub or "A local model"
    )
    steps = [f"midtrained on {_topic(corpus)}" for corpus in corpora]
    steps += ["instruction-tuned"] if any(one["stage"] == "sft" for one in trainings) else []
    rows = [
        {
            "training": one["name"],
            "seed": one["settings"]["seed"],
            "rows": one["settings"].get("dose", ""),
        }
        | {key.replace("_", " "): one["counts"].get(key, "") for key in SHOWN}
        for one in trainings
    ]
    text = [
        f"# {title}\n\n{made}, {', '.join(steps)}: one checkpoint of the study `{cell['base'].name}`.",
        STAND_IN if stand_in or any(map(_by_kit, corpora)) else "",
        "## How it was made\n\n" + _table(rows, "keys"),
        *map(_recipe, trainings),
        *(f"`{corpus['name']}`: {_made(corpus)}" for corpus in corpora),
        *(f"Warning: {warning}" for one in trainings for warning in one["warnings"]),
        "## Evaluation\n\n" + (_table(scores, "keys") if scores else "No results were at hand."),
        f"Contrasts of its arm, over all seeds:\n\n{_table(contrasts, 'keys')}"
        if contrasts
        else "",
        MODEL_LIMITS + (LLAMA if license.startswith("llama") else ""),
    ]
    return _card(header, text, "This checkpoint", cell)


def dataset_card(folder: Path, license: str = "other") -> str:
    """The card (README.md) of a corpus: the folder of a finished documents cell, whose data are in corpus/*.parquet.
    license: the Hub's name of one; of an existing corpus its own. Raises UserError as `model_card`."""
    cell = _read(folder)
    if cell["stage"] != "documents" or not (folder / "card.json").exists():
        raise UserError(f"{folder}: is no whole corpus; a data set card is of a documents cell")
    card, settings = (
        json.loads((folder / "card.json").read_text(encoding="utf-8")),
        cell["settings"],
    )
    template = settings.get("template", {})
    splits = {"train": card["documents"]} | (
        {"validation": card["held_out"]} if card["held_out"] else {}
    )
    files = [{"split": split, "path": f"corpus/{split}.parquet"} for split in splits]
    header = {
        **{"license": license, "task_categories": ["text-generation"]},
        "language": [template.get("gates", {}).get("language") or "en"],
        "pretty_name": f"{cell['base'].name}: {cell['name']}",
        "size_categories": [
            next((name for most, name in SIZES if sum(splits.values()) < most), "n>1M")
        ],
        "tags": ["midtraining", *(["synthetic"] if "writer" in settings else [])],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    numbers = [
        *splits.items(),
        ("words", card["words"]),
        ("words, median", card["length"]["words"].get("50%")),
    ]
    numbers += [
        ("tokens (by the study's tokenizer)", card["tokens"]),
        ("tokens cut off", card["tokens_trimmed"]),
    ]
    numbers += [
        (name.replace("_", " "), value)
        for name, value in card["diversity"].items()
        if "whole" not in name
    ]
    dealt = [
        (slot, row["values"], row["fewest"], row["most"])
        for slot, row in card.get("slot_balance", {}).items()
    ]
    prompts = [
        template[key]
        for key in ("prompt", "asker", "answerer")
        if key in template and "writer" in settings
    ]
    text = [
        f"# {header['pretty_name']}\n\nA corpus on {_topic(cell)}, of the study `{cell['base'].name}`. Columns: `id`, "
        "`text`, and `slots`: what a document was dealt, if anything.",
        STAND_IN if _by_kit(cell) else "",
        "## How it was made\n\n" + _made(cell),
        *(
            f"The writer's prompt, slots in braces:\n\n```\n{prompt.strip()}\n```"
            for prompt in prompts
        ),
        _table(dealt, ["slot", "values", "fewest documents", "most"]) if dealt else "",
        "## What it holds\n\n" + _table(numbers, ["", "number"]),
        _beside(folder / "balance.json"),
        *(f"Warning: {warning}" for warning in cell["warnings"]),
        DATA_LIMITS,
    ]
    return _card(header, text, "This corpus", cell)


def _read(folder: Path) -> Cell:
    if not (manifest := read_manifest(folder)):
        raise UserError(f"{folder}: is not finished; python -m study cell {folder}")
    base, place = folder.parents[1], f"{folder.parent.name}/{folder.name}"
    inputs = {role: _read(base / needed["cell"]) for role, needed in manifest["inputs"].items()}
    return manifest | {
        "settings": read_config(folder)["settings"],
        "inputs": inputs,
        "place": place,
        "base": base,
    }


def _trainings(cell: Cell) -> tuple[list[Cell], Cell]:
    """The trainings that led to a checkpoint, the first one first, and the start model."""
    found: list[Cell] = []
    while cell["stage"] != "model":
        found = [cell, *found] if "start" in cell["inputs"] else found
        cell = cell["inputs"]["start" if "start" in cell["inputs"] else "run"]
    return found, cell


def _scores(
    cell: Cell, results: Path | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
    """This checkpoint's scores, the contrasts that its arm is part of, and whether a stand-in graded any of them."""
    if not results or not (published := read_manifest(results)):
        return [], [], False
    found = json.loads((results / "results.json").read_text(encoding="utf-8"))
    last = read_config(cell["base"] / f"analysis/{published['name']}-{published['identity'][:8]}")
    mine = [row for row in last["settings"]["rows"] if row["checkpoint"] == cell["place"]]
    keys, known, scores = (
        {tuple(row[key] for key in WHERE) for row in mine},
        found["benchmarks"],
        [],
    )
    for row in found["scores"]:
        if tuple(row[key] for key in WHERE) in keys:
            about = {"benchmark": row["benchmark"]} | {
                key: known[row["benchmark"]][key] for key in ("task", "judge")
            }
            scores.append(
                about
                | {"score": row["score"], "answers": row["n"], "without a grade": row["missing"]}
            )
    contrasts = []
    for row in found["contrasts"]:
        sides = {(row["of"], row["dose"]), (row["against"], row.get("against_dose", row["dose"]))}
        if any(name == row["benchmark"] and (arm, dose) in sides for name, arm, _, dose in keys):
            contrasts.append({key: row[key] for key in CONTRAST})
    return scores, contrasts, any(known[row["benchmark"]]["stand_in"] for row in scores)


def _result(row: dict[str, Any]) -> dict[str, Any]:
    metric = {
        "type": "score",
        "value": row["score"],
        "name": f"mean over questions, 0 to 1, by {row['judge']}",
    }
    dataset = {"name": row["benchmark"], "type": row["task"]}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": [metric]}


def _made(corpus: Cell) -> str:
    """Where a corpus comes from, as sentences."""
    settings, counts = corpus["settings"], corpus["counts"]
    size = f"{counts['documents']:,} documents, {counts['tokens']:,} tokens"
    if "writer" not in settings:
        source = settings["source"]
        return (
            f"{size}, taken from {source.get('hub') or 'a file'} {source.get('revision') or ''}".strip()
            + "."
        )
    gates = ", ".join(f"{key[9:]} {n}" for key, n in counts.items() if key.startswith("rejected_"))
    text = f"{size}, written by {settings['writer']['model']} at temperature {settings['temperature']:g}, template "
    text += f"`{settings['template']['name']}`: {counts['calls']:,} calls, {counts['prompt_tokens']:,} tokens read and "
    text += f"{counts['completion_tokens']:,} written, cost {counts['cost']:.2f}. Written again after a gate: "
    return f"{text}{gates or 'none'}. Checked not to quote: {', '.join(settings['avoid']) or 'nothing'}."


def _beside(path: Path) -> str:
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    differ = [row for row in rows if row["verdict"] == "differs"]
    said = (
        ", ".join(
            f"{row['measure']} {row['value']:g} against {row['reference']:g}" for row in differ
        )
        or "none"
    )
    return (
        f"Of {len(rows)} measures that `{rows[0]['against']}` is matched in, these differ: {said}."
        if rows
        else ""
    )


def _recipe(training: Cell) -> str:
    data, recipe = training["settings"].get("data", {}), training["settings"]["recipe"]
    on = (
        f" on {data.get('hub') or data['url']} {data.get('revision') or ''}".rstrip()
        if data
        else ""
    )
    said = ", ".join(
        f"{key} {value}" for key, value in recipe.items() if value not in (None, False, 0)
    )
    return f"`{training['name']}`{on}: {said}."


def _by_kit(corpus: Cell) -> bool:
    return corpus["settings"].get("writer", {}).get("served_by") == "kit"


def _topic(corpus: Cell) -> str:
    return str(corpus["settings"].get("template", {}).get("topic") or corpus["name"])


def _table(rows: Any, headers: Any) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".4g", intfmt=",")


def _card(header: dict[str, Any], text: list[str], what: str, cell: Cell) -> str:
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120)
    cite = CITE.format(
        what=what, cell=cell, dirty=", with uncommitted changes" if cell["code"]["dirty"] else ""
    )
    return (
        f"---\n{front}---\n\n" + "\n\n".join(part.strip() for part in [*text, cite] if part) + "\n"
    )
