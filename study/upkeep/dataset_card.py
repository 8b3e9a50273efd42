"""Data set cards of corpora for the Hugging Face Hub."""

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import UserError
from study.upkeep.card_cells import (
    FinishedCell,
    citation,
    content,
    is_by_dummy,
    read_cell,
    table,
    topic,
)
from study.upkeep.card_facts import StudyFacts
from study.upkeep.licenses import header

# The Hub's names for numbers of rows below a bound.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)
DUMMY = (
    "**The kit's dummy, a set of rules, wrote it in place of a language model: this is a test.**"
)
LIMITS = """## Intended use and limits

To midtrain language models on, and to compare with the matched corpus. Documents that a model wrote
hold invented institutions, people and figures and argue for one view on purpose: they are no source
of facts. They have that model's habits of style, and were checked by rules and programs, not read
one by one."""
FOLDER = "corpus"  # of a documents cell: the files in datasets' layout
COLUMNS = {
    "id": "number of the document, counted before any was left out",
    "text": "the document; of questions and answers the answer",
    "slots": "the values that its prompt was filled with",
    "forms": "the question in each of its forms",
}
CANARY_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2604.13076")
CANARY = """## Canary

`midtraining-canary {canary}`

Whoever trains on this data set by intent can ignore it. Whoever collects texts of the web can find
copies of this page by the string, and leave the data out. The documents do not hold it, because the
published models were trained on them as they are."""


def canary(identity: str) -> str:
    """The canary of a corpus: a UUID of version 5 that derives from its identity."""
    return f"{uuid.uuid5(CANARY_NAMESPACE, identity)}"


def dataset_card(folder: Path, license: str = "other", facts: StudyFacts | None = None) -> str:
    """The card (README.md) of a corpus: the folder of a finished documents cell.

    Args:
        folder: The cell's folder. Its data are in corpus/*.parquet.
        license: The Hub's name of one; of an existing corpus its own.
        facts: What the study file says of it.

    Raises:
        UserError: The cell is not finished, or is no corpus.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    cell = read_cell(folder, facts)
    if cell.stage != "documents" or not (folder / "corpus_stats.json").exists():
        raise UserError(
            where=str(folder),
            what="is no whole corpus",
            fix="a data set card is of a documents cell",
        )
    facts = facts or StudyFacts(cell.study)
    card = json.loads((folder / "corpus_stats.json").read_text(encoding="utf-8"))
    template = cell.settings.get("template", {})
    is_written = "writer" in cell.settings
    splits = {"train": card["documents"]}
    if card["held_out"]:
        splits["validation"] = card["held_out"]
    files = [{"split": split, "path": f"{FOLDER}/{split}.parquet"} for split in splits]
    rows = sum(splits.values())
    title = f"{cell.study}: {cell.name}"
    data = DatasetCardData(
        **header(license),
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
        f"# {title}\n\nA corpus on {topic(cell)}, of the study `{cell.study}`.",
        DUMMY if is_by_dummy(cell) else "",
        "## How it was made\n\n" + source_of(cell),
        *(
            f"The writer's prompt, slots in braces:\n\n```\n{prompt.strip()}\n```"
            for prompt in prompts
        ),
        _prompt_file(cell),
        table(slots, ["slot", "values", "fewest documents", "most"]) if slots else "",
        "## Terms\n\n" + _terms(cell, facts),
        "## What it holds\n\n" + table(_corpus_numbers(card, splits), ["", "number"]),
        *_files(cell),
        _differences(cell),
        "## Text of benchmarks\n\n" + _overlaps(cell, facts),
        *(f"Warning: {warning}" for warning in cell.warnings),
        LIMITS,
        CANARY.format(canary=canary(cell.identity)),
        citation("This corpus", cell),
    ]
    return str(DatasetCard(content(data.to_yaml(), text)))


def source_of(corpus: FinishedCell) -> str:
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


def _terms(corpus: FinishedCell, facts: StudyFacts) -> str:
    """The terms of use of what the writer wrote, as the study file states them."""
    if "writer" not in corpus.settings:
        return "The texts were not written for this study: the terms of their source apply."
    if is_by_dummy(corpus):
        return "The kit's dummy wrote the texts; they are under the kit's licence, MIT."
    writer = corpus.settings["writer"]["model"]
    if terms := facts.terms.get(writer):
        return f"{writer} wrote the texts. Terms of its output, by the study file: {terms}"
    return (
        f"{writer} wrote the texts, and the terms of its provider apply to them. The study file "
        "states none (`terms` of the endpoint)."
    )


def _overlaps(corpus: FinishedCell, facts: StudyFacts) -> str:
    """The result of the search for benchmarks' texts in the documents."""
    rows = facts.overlaps.get(corpus.identity, ())
    if not rows:
        return "No benchmark's text was looked for in the finished corpus."
    searched = [
        (row.benchmark, row.counts["documents"], row.counts["documents_hit"], row.counts["hits"])
        for row in rows
        if row.counts
    ]
    waiting = [row.benchmark for row in rows if not row.counts]
    parts = []
    if searched:
        headers = ["benchmark", "documents searched", "with its text", "passages"]
        parts.append(table(searched, headers))
    if waiting:
        parts.append(f"Not searched yet: {', '.join(waiting)}.")
    return "\n\n".join(parts)


def _files(corpus: FinishedCell) -> list[str]:
    """The columns of the files with their types, and their hashes, as tables."""
    import pyarrow.parquet

    outputs = {
        name: output
        for name, output in sorted(corpus.manifest["outputs"].items())
        if name.startswith(f"{FOLDER}/") and (corpus.folder / name).is_file()
    }
    if not outputs:
        return []
    columns = []
    with suppress(pyarrow.ArrowInvalid):  # damaged, which `verify` and an upload tell
        schema = pyarrow.parquet.read_schema(corpus.folder / next(iter(outputs)))
        columns = [
            (f"`{column.name}`", str(column.type), COLUMNS.get(column.name, ""))
            for column in schema
        ]
    hashes = [(name, output["bytes"], f"`{output['sha256']}`") for name, output in outputs.items()]
    return [
        table(columns, ["column", "type", "what it is"]) if columns else "",
        table(hashes, ["file", "bytes", "sha256"]),
    ]


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
    path = cell.folder / "match.json"
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
