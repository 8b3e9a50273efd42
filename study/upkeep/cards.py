"""Model cards and data set cards for the Hugging Face Hub.

They are made from manifests, settings and results alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from core.cell.external_files import is_pin
from core.cell.identity import read_config
from core.cell.lookup import RunsIndex, input_folder
from core.cell.manifest import read_manifest
from core.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# By the beginning of a model's name on the Hub: a fine-tuned Llama keeps its licence.
LICENSES = {
    "meta-llama/Llama-3.1": "llama3.1",
    "meta-llama/Llama-3.2": "llama3.2",
    "meta-llama/Llama-3.3": "llama3.3",
}
# The Hub's names for numbers of rows below a bound.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)
SCORE_KEY = ("benchmark", "arm", "seed", "dose")
CONTRAST_KEYS = ("name", "benchmark", "dose", "estimate", "low", "high", "p_holm", "verdict")
TRAINING_COUNTS = ("steps", "tokens", "first_loss", "last_loss")
DUMMY = (
    "**The kit's dummy, a set of rules, wrote or graded in place of a language model: "
    "this is a test.**"
)
CITE = """## How to cite

{what} is the cell `{cell.relpath}` (identity {identity:.16}), made on {ended:.10} by the kit at
commit {commit}{dirty}. The study that it reproduces:

```bibtex
@misc{{brazilek2026alignment, title={{Alignment Midtraining for Animals}}, year={{2026}},
  author={{Brazilek, Jasmine and Tidmarsh, Miles}}, eprint={{2604.13076}}, archivePrefix={{arXiv}},
  primaryClass={{cs.LG}}}}
```
"""
MODEL_LIMITS = """## Intended use and limits

Research on what midtraining on synthetic documents does to a language model, against matched
controls. This is one training run: runs that differ in seeds alone differ in scores, and verdicts
rest on several. Nothing was done for its safety, and what it says of animals, cities or policy is
no checked fact. A judge's scores are that judge's. The base model's usage restrictions and licence
also apply to this model."""
LLAMA = " The licence wants a name that begins with Llama, and this line: Built with Llama."
DATA_LIMITS = """## Intended use and limits

To midtrain language models on, and to compare with the matched corpus. Documents that a model wrote
hold invented institutions, people and figures and argue for one view on purpose: they are no source
of facts. They have that model's habits of style, and were checked by rules and programs, not read
one by one."""


@dataclass(frozen=True)
class Names:
    """The names in the study file: cells keep those that they were made under."""

    study: str
    cells: dict[str, str]  # by identity


@dataclass(frozen=True)
class FinishedCell:
    """A cell as its manifest and its config.yaml have it, with its inputs by role."""

    base: Path
    relpath: str
    study: str
    name: str
    manifest: dict[str, Any]
    settings: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, "FinishedCell"]

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.manifest["counts"])

    @property
    def warnings(self) -> list[str]:
        return list(self.manifest["warnings"])


def model_card(
    folder: Path,
    results: Path | None = None,
    license: str = "",
    datasets: Any = (),
    today: Names | None = None,
) -> str:
    """The card (README.md) of a checkpoint: the folder of a finished midtrain or sft cell.

    results: what the study has published, for this checkpoint's scores. license: the Hub's name of
    one, where it does not follow from the start model. datasets: the Hub's names of what it was
    trained on, besides those that the study took from there. today: the names to show. Raises
    UserError where a cell is not finished.
    """
    from huggingface_hub import ModelCard, ModelCardData

    cell = _read(folder, today)
    if cell.stage not in ("midtrain", "sft"):
        raise UserError(
            where=str(folder),
            what="is no training",
            fix="a model card is of a midtrain or sft cell",
        )
    trainings, start = _trainings(cell)
    corpora = [run.inputs["documents"] for run in trainings if "documents" in run.inputs]
    hub = _pin(start, "model").get("hub")
    named = [_pin(corpus, "source").get("hub") for corpus in corpora]
    named += [_pin(run, "data").get("hub") for run in trainings]
    if not license:
        names = (name for prefix, name in LICENSES.items() if str(hub).startswith(prefix))
        license = next(names, "other")
    scores, contrasts, dummy = _scores(cell, results)
    title = f"{cell.study}: {cell.name}"
    data = ModelCardData(
        license=license,
        language=["en"],
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=hub,
        base_model_relation="finetune" if hub else None,
        datasets=list(dict.fromkeys([*filter(None, named), *datasets])),
        tags=["alignment", "midtraining" if corpora else "instruction-tuning"],
        model_name=title if scores else None,
        eval_results=[_eval_result(row) for row in scores] or None,
    )
    is_toy = "recipe" in start.settings
    origin = "A toy Llama made from scratch" if is_toy else hub or "A local model"
    steps = [f"midtrained on {_topic(corpus)}" for corpus in corpora]
    if any(run.stage == "sft" for run in trainings):
        steps.append("instruction-tuned")
    text = [
        f"# {title}\n\n{origin}, {', '.join(steps)}: one checkpoint of the study `{cell.study}`.",
        DUMMY if dummy or any(map(_is_by_dummy, corpora)) else "",
        "## How it was made\n\n" + _table([_training_row(run) for run in trainings], "keys"),
        *map(_recipe, trainings),
        *(f"`{corpus.name}`: {_source(corpus)}" for corpus in corpora),
        *(f"Warning: {warning}" for run in trainings for warning in run.warnings),
        "## Evaluation\n\n" + (_table(scores, "keys") if scores else "No results were at hand."),
        f"Contrasts of its arm, over all seeds:\n\n{_table(contrasts, 'keys')}"
        if contrasts
        else "",
        MODEL_LIMITS + (LLAMA if license.startswith("llama") else ""),
        _citation("This checkpoint", cell),
    ]
    return str(ModelCard(_content(data.to_yaml(), text)))


def dataset_card(folder: Path, license: str = "other", today: Names | None = None) -> str:
    """The card (README.md) of a corpus: the folder of a finished documents cell.

    Its data are in corpus/*.parquet. license: the Hub's name of one; of an existing corpus its own.
    today: as of `model_card`. Raises UserError as that.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    cell = _read(folder, today)
    if cell.stage != "documents" or not (folder / "corpus_stats.json").exists():
        raise UserError(
            where=str(folder),
            what="is no whole corpus",
            fix="a data set card is of a documents cell",
        )
    card = json.loads((folder / "corpus_stats.json").read_text(encoding="utf-8"))
    template = cell.settings.get("template", {})
    is_written = "writer" in cell.settings
    splits = {"train": card["documents"]}
    if card["held_out"]:
        splits["validation"] = card["held_out"]
    files = [{"split": split, "path": f"corpus/{split}.parquet"} for split in splits]
    rows = sum(splits.values())
    title = f"{cell.study}: {cell.name}"
    data = DatasetCardData(
        license=license,
        task_categories=["text-generation"],
        language=[template.get("gates", {}).get("language") or "en"],
        pretty_name=title,
        size_categories=[next((name for bound, name in SIZES if rows < bound), "n>1M")],
        tags=["midtraining", *(["synthetic"] if is_written else [])],
        configs=[{"config_name": "default", "data_files": files}],
    )
    prompt_keys = ("prompt", "asker", "answerer")
    prompts = [template[key] for key in prompt_keys if key in template and is_written]
    balance = card.get("slot_balance", {}).items()
    slots = [(slot, row["values"], row["fewest"], row["most"]) for slot, row in balance]
    text = [
        f"# {title}\n\nA corpus on {_topic(cell)}, of the study `{cell.study}`. Columns: "
        "`id`, `text`, and `slots`: what a document was dealt, if anything.",
        DUMMY if _is_by_dummy(cell) else "",
        "## How it was made\n\n" + _source(cell),
        *(
            f"The writer's prompt, slots in braces:\n\n```\n{prompt.strip()}\n```"
            for prompt in prompts
        ),
        _prompt_file(cell),
        _table(slots, ["slot", "values", "fewest documents", "most"]) if slots else "",
        "## What it holds\n\n" + _table(_corpus_numbers(card, splits), ["", "number"]),
        _differences(cell),
        *(f"Warning: {warning}" for warning in cell.warnings),
        DATA_LIMITS,
        _citation("This corpus", cell),
    ]
    return str(DatasetCard(_content(data.to_yaml(), text)))


def _content(header: str, text: list[str]) -> str:
    return f"---\n{header}\n---\n\n" + "\n\n".join(part.strip() for part in text if part) + "\n"


def _citation(what: str, cell: FinishedCell) -> str:
    code = cell.manifest["code"]
    return CITE.format(
        what=what,
        cell=cell,
        identity=cell.manifest["identity"],
        ended=cell.manifest["ended"],
        commit=code["commit"] or "unknown",
        dirty=", with uncommitted changes" if code["dirty"] else "",
    )


def _read(folder: Path, today: Names | None) -> FinishedCell:
    """The cell in a folder, under today's name or its own.

    Raises UserError where it, or a cell behind it, is unfinished.
    """
    manifest = read_manifest(folder)
    if not manifest:
        raise UserError(
            where=str(folder),
            what="is not finished",
            fix=f"python -m study cell {quote(str(folder))}",
        )
    base = folder.parents[1]
    config = read_config(folder)
    return FinishedCell(
        base=base,
        relpath=f"{folder.parent.name}/{folder.name}",
        study=today.study if today else base.name,
        name=(today.cells if today else {}).get(manifest["identity"], manifest["name"]),
        manifest=manifest,
        settings=config["settings"],
        resources=config["resources"],
        inputs={
            role: _read(input_folder(base, used), today)
            for role, used in manifest["inputs"].items()
        },
    )


def _trainings(cell: FinishedCell) -> tuple[list[FinishedCell], FinishedCell]:
    """The trainings that led to a checkpoint, the first one first, and the start model."""
    trainings: list[FinishedCell] = []
    while cell.stage != "model":
        if "start" in cell.inputs:
            trainings.insert(0, cell)
            cell = cell.inputs["start"]
        else:
            cell = cell.inputs["run"]
    return trainings, cell


def _training_row(run: FinishedCell) -> dict[str, Any]:
    row = {"training": run.name, "seed": run.settings["seed"], "rows": run.settings.get("dose", "")}
    return row | {key.replace("_", " "): run.counts.get(key, "") for key in TRAINING_COUNTS}


def _scores(
    cell: FinishedCell, results: Path | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
    """A checkpoint's scores, the contrasts of its arm, and whether the dummy graded any."""
    published = read_manifest(results) if results else None
    if not results or not published:
        return [], [], False
    content = json.loads((results / "results.json").read_text(encoding="utf-8"))
    index = RunsIndex(cell.base, ["analysis"])
    folder = index.finished("analysis", published["identity"])
    analysis = read_config(folder or cell.base / "analysis")
    identity = cell.manifest["identity"]
    rows = [row for row in analysis["settings"]["rows"] if row["checkpoint"] == identity]
    keys = {tuple(row[key] for key in SCORE_KEY) for row in rows}
    benchmarks = content["benchmarks"]
    scores = []
    for row in content["scores"]:
        if tuple(row[key] for key in SCORE_KEY) not in keys:
            continue
        bench = benchmarks[row["benchmark"]]
        scores.append(
            {
                "benchmark": row["benchmark"],
                "task": bench["task"],
                "judge": bench["judge"],
                "score": row["score"],
                "answers": row["n"],
                "without a grade": row["missing"],
            }
        )
    contrasts = []
    for row in content["contrasts"]:
        control_dose = row.get("control_dose", row["dose"])
        sides = {(row["treatment"], row["dose"]), (row["control"], control_dose)}
        if any(name == row["benchmark"] and (arm, dose) in sides for name, arm, _, dose in keys):
            contrasts.append({key: row[key] for key in CONTRAST_KEYS})
    return scores, contrasts, any(benchmarks[row["benchmark"]]["dummy"] for row in scores)


def _eval_result(row: dict[str, Any]) -> "EvalResult":
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_name=row["benchmark"],
        dataset_type=row["task"],
        metric_type="score",
        metric_value=row["score"],
        metric_name=f"mean over questions, 0 to 1, by {row['judge']}",
    )


def _source(corpus: FinishedCell) -> str:
    """Where a corpus comes from, as sentences."""
    settings = corpus.settings
    counts = corpus.counts
    size = f"{counts['documents']:,} documents, {counts['tokens']:,} tokens"
    if "writer" not in settings:
        source = settings["source"]
        name = f"{source.get('hub') or 'a file'} {source.get('revision') or ''}".strip()
        return f"{size}, taken from {name}."
    checked = corpus.resources["decontaminate_against"]
    prefix = "rejected_"
    rejected = [f"{key[len(prefix) :]} {n}" for key, n in counts.items() if key.startswith(prefix)]
    return (
        f"{size}, written by {settings['writer']['model']} at temperature "
        f"{settings['temperature']:g}, template `{settings['template']['name']}`: "
        f"{counts['calls']:,} calls, {counts['prompt_tokens']:,} tokens read and "
        f"{counts['completion_tokens']:,} written, cost {counts['cost']:.2f}. "
        f"Written again after a gate: {', '.join(rejected) or 'none'}. "
        f"Checked not to quote: {', '.join(checked) or 'nothing'}."
    )


def _prompt_file(corpus: FinishedCell) -> str:
    """A prompt that is a file of the user's is not shown."""
    digest = corpus.settings.get("files", {}).get("prompt")
    return f"The writer's prompt is a file with the sha256 `{digest}`." if digest else ""


def _corpus_numbers(card: dict[str, Any], splits: dict[str, int]) -> list[tuple[str, Any]]:
    numbers: list[tuple[str, Any]] = [
        *splits.items(),
        ("words", card["words"]),
        ("words, median", card["length"]["words"].get("50%")),
        ("tokens (by the study's tokenizer)", card["tokens"]),
        ("tokens cut off", card["tokens_trimmed"]),
    ]
    for name, value in card["diversity"].items():
        if "whole" not in name:
            numbers.append((name.replace("_", " "), value))
    return numbers


def _differences(cell: FinishedCell) -> str:
    """In which measures a corpus differs from the one that it is matched to."""
    path = cell.base / cell.relpath / "match.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not rows:
        return ""
    differences = [
        f"{row['measure']} {row['value']:g} against {row['reference']:g}"
        for row in rows
        if row["verdict"] == "differs"
    ]
    reference = cell.inputs["matched_to"].name
    listed = ", ".join(differences) or "none"
    return f"Of {len(rows)} measures that `{reference}` is matched in, these differ: {listed}."


def _recipe(run: FinishedCell) -> str:
    data = _pin(run, "data")
    name = ""
    if data:
        name = f" on {data.get('hub') or data['url']} {data.get('revision') or ''}".rstrip()
    recipe = run.settings["recipe"].items()
    listed = ", ".join(f"{key} {value}" for key, value in recipe if value not in (None, False, 0))
    return f"`{run.name}`{name}: {listed}."


def _pin(cell: FinishedCell, key: str) -> dict[str, Any]:
    """The pin of a file or folder that a cell has from the network; {} of any other."""
    planned = cell.settings.get("files", {}).get(key)
    return planned if is_pin(planned) else {}


def _is_by_dummy(corpus: FinishedCell) -> bool:
    return bool(corpus.settings.get("writer", {}).get("served_by") == "dummy")


def _topic(corpus: FinishedCell) -> str:
    return str(corpus.settings.get("template", {}).get("topic") or corpus.name)


def _table(rows: Any, headers: Any) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".4g", intfmt=",")
