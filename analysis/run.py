"""The analysis stage: scores of every finished checkpoint in; results, tables, report out."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures, looks
from analysis.answers import answer_notes, malformed_rows, training_notes
from analysis.canary import canary_rows, drift_notes
from analysis.claim_arithmetic import arithmetic
from analysis.claims import claim_rows
from analysis.claims_file import CLAIMS, read_claims
from analysis.corpora import corpora, sentence_embeddings, training_texts
from analysis.corpus_map import DocumentMap, document_map
from analysis.declaration import (
    copy_declaration,
    dates_line,
    declaration_lines,
    first_score,
)
from analysis.examples import examples
from analysis.flow import flow_rows
from analysis.headline import dummy_note, headline, missing_lines
from analysis.intrusion import intrusion_rows
from analysis.ladder import ladder_rows
from analysis.losses import LossHistory, loss_rows, read_histories
from analysis.macros import macros
from analysis.made import made
from analysis.next_data import next_data_rows
from analysis.preservation import preservation_rows
from analysis.probe import probe_rows
from analysis.prompts import prompt_rows
from analysis.report import report
from analysis.results import analyze, judge_rows
from analysis.robustness import holds_of, robustness_rows
from analysis.rows import Results, to_jsonable
from analysis.settings import AnalysisSettings
from analysis.supplementary_tables import SUPPLEMENTARY_TABLES
from analysis.table import (
    check_table,
    checkpoint_name,
    drop_excluded,
    long_table,
    primary_judge_rows,
    question_means,
    unused_labels,
)
from analysis.table_files import write_table
from analysis.table_latex import SAMPLE, sample_file
from analysis.tables import TABLES
from core.cell.context import StageContext
from core.cell.lookup import input_folder
from core.errors import UserError
from core.paths import resolve

DOCUMENT_MAP = "figures/corpora.json"  # the data of the figure, without the texts


def run(context: StageContext) -> dict[str, int | float]:
    """Write every output of the analysis into `context.folder`.

    Settings: see `AnalysisSettings.parse`. Inputs: each role of `rows` and `labels` holds
    scores.parquet, `corpus-NAME` (`corpus-NAME.replicateN` of several) corpus_stats.json, and
    `embeddings-NAME`, where there is one, similarity.json and embeddings.npy.
    Resources: `trainings` (stage, arm, seed, cell), whose losses are drawn as far as their folders
    exist; `unfinished`, the cells that the checkpoints without scores need (see `flow.flow_rows`);
    `study_file`, its text, which is kept as study.yaml. The study's folder holds declaration.json,
    and looks.json, to which finished looks are added. `published`, of an archive, which has no
    texts: the folder of its results, from which examples and the map of documents are taken.

    Returns the counts for the manifest. Raises UserError when the scores can't be analyzed as
    they are (see `table.check_table`).
    """
    settings = AnalysisSettings.parse(context.settings)
    base = context.folder.parents[1]
    declared = copy_declaration(base, settings.declaration, context.folder)
    table = long_table(settings.score_files, context.inputs, settings.labels)
    unfinished = context.resources.get("unfinished", [])
    flow = flow_rows(table, settings, unfinished, base)
    table = drop_excluded(table, settings.excluded)
    primary = primary_judge_rows(table, settings.other_judges)
    check_table(primary, settings.judges)

    # Without a declaration nobody knows which looks were planned.
    results = analyze(primary, settings, looks.read_looks(base) if declared else None)
    if declared:
        looks.record_looks(base, results["looks"], settings.score_files, context.inputs)
        shutil.copyfile(base / looks.FILE, context.folder / looks.FILE)
    results["flow"] = flow
    results["notes"] += answer_notes(settings.score_files, context.inputs)
    results["notes"] += training_notes(base, context.resources.get("trainings", []))
    results["notes"] += unused_labels(settings.score_files, context.inputs, settings.labels)
    results["malformed"] = to_jsonable(malformed_rows(settings.score_files, context.inputs))
    histories = _losses(context)
    results["losses"] = to_jsonable(loss_rows(histories))
    _add_further_results(results, table, settings, context.inputs, context.resources)
    context.log(f"{len(table)} scores of {len(results['scores'])} checkpoints")
    for row in results["missing"]:
        context.warn(f"not finished: {checkpoint_name(row)}")
    for note in results["notes"]:
        context.warn(note)

    _write_data(results, table, context.folder)
    if text := context.resources.get("study_file"):
        (context.folder / "study.yaml").write_text(text, encoding="utf-8")
    write_tables(results, context.folder / "tables", settings.column)
    _write_macros(results, context)
    scored = first_score(context.inputs[file.role] for file in settings.score_files)
    dates = dates_line(declared, scored)
    _write_report(results, question_means(primary), histories, context, dates)
    return {
        "checkpoints": len(results["scores"]),
        "checkpoints_missing": len(results["missing"]),
        "scores": len(table),
        "grades_missing": sum(row["missing"] for row in results["scores"]),
        "contrasts": len(results["contrasts"]),
        "verdicts": sum(row["verdict"] != "none" for row in results["contrasts"]),
    }


def _add_further_results(
    results: Results,
    table: pd.DataFrame,
    settings: AnalysisSettings,
    inputs: dict[str, Path],
    resources: Mapping[str, Any],
) -> None:
    """Add to `results` what rests on other judges' scores, on corpora and on the paper's claims."""
    contrasts = results["contrasts"]
    judges = {name: benchmark["judge"] for name, benchmark in results["benchmarks"].items()}
    variance = next_data_rows(table, contrasts, judges, settings.costs, settings.seeds)
    results["variance"] = to_jsonable(variance)
    if published := resources.get("published"):
        text = (Path(published) / "results.json").read_text(encoding="utf-8")
        results["examples"] = json.loads(text)["examples"]
    else:
        results["examples"] = examples(settings.score_files, contrasts, inputs)
    results["corpora"] = to_jsonable(corpora(inputs, settings.writers))
    results["judges"] = to_jsonable(judge_rows(table, settings))
    source = read_claims(resolve(resources.get("files", {}).get("claims", CLAIMS)))
    roles, claims = settings.claim_roles, source["claims"]
    ladder = ladder_rows(results, roles, settings.ladder, claims) if settings.rungs else []
    results["ladder"] = to_jsonable(ladder)
    results["prompts"] = prompt_rows(results, settings.prompts)
    answered = claim_rows(results, roles, claims) if roles else []
    results["claims"] = to_jsonable(answered)
    results["arithmetic"] = to_jsonable(arithmetic(source)) if answered else []
    results["claims_of"] = source["paper"] if answered else None
    results["claims_without_row"] = source["without_row"] if answered else []
    results["intrusion"] = to_jsonable(intrusion_rows(results, settings.untrained))
    if settings.canary:
        results["canary"] = to_jsonable(canary_rows(settings.canary, inputs))
        results["notes"] += drift_notes(results["canary"])
    results["preservation"] = to_jsonable(preservation_rows(results, settings.untrained))
    probes = probe_rows(settings.score_files, settings.benchmarks, inputs)
    results["probe"] = to_jsonable(probes)
    robustness = robustness_rows(table, contrasts, settings.other_judges, settings.seeds)
    results["robustness"] = to_jsonable(robustness)
    for contrast in contrasts:
        contrast["holds"] = holds_of(contrast, results["robustness"])


def _write_data(results: Results, table: pd.DataFrame, folder: Path) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    # pandas keeps attrs in the file, so that the long table also lists the missing checkpoints
    table.attrs["missing"] = results["missing"]
    table.to_parquet(folder / "scores.parquet", index=False)


def write_tables(results: Results, folder: Path, column: str) -> None:
    """The files of every table that has rows, and all.tex."""
    folder.mkdir(exist_ok=True)
    optional = {name: make for name, make in SUPPLEMENTARY_TABLES.items() if results.get(name)}
    made = [make(results) for make in (TABLES | optional).values()]
    tables = [table for table in made if table.rows]
    for table in tables:
        write_table(table, folder, column)
    (folder / SAMPLE).write_text(sample_file(tables, column), encoding="utf-8")


def _write_macros(results: Results, context: StageContext) -> None:
    try:
        text = macros(results)
    except UserError as error:  # two names come to the same command
        for line in error.lines:
            context.warn(f"no macros.tex: {line}")
        return
    notes = [*declaration_lines(results), dummy_note(results), *missing_lines(results)]
    comments = "".join(f"% {note}\n" for note in notes if note)
    (context.folder / "macros.tex").write_text(comments + text, encoding="utf-8")


def _write_report(
    results: Results,
    means: pd.DataFrame,
    histories: list[LossHistory],
    context: StageContext,
    dates: str,
) -> None:
    """The figures, report.html and headline.txt."""
    folder = context.folder
    documents = _documents(results, context)
    drawn = figures.draw(results, means, histories, documents)
    for name, figure in drawn.items():
        if figure.error:
            context.warn(f"figures/{name}: {figure.error}")
    saved = figures.save(drawn, folder / "figures")
    if saved.unknown_letters:
        letters = "".join(sorted(saved.unknown_letters))
        context.warn(
            f"figures/*.pdf and *.png show boxes for {letters}: no font here has them; install "
            "one, such as Noto Sans CJK, and run the analysis again"
        )
    (folder / DOCUMENT_MAP).write_text(documents.to_json(), encoding="utf-8")
    how = made(
        context.identity,
        context.resources.get("study_file"),
        context.resources.get("trainings", []),
        context.inputs.values(),
        folder.parents[1],
    )
    (folder / "report.html").write_text(
        report(results, drawn, saved.svgs, dates, how), encoding="utf-8"
    )
    (folder / "headline.txt").write_text(headline(results, dates) + "\n", encoding="utf-8")


def _documents(results: Results, context: StageContext) -> DocumentMap:
    """The map of the documents, by the texts, or as it was published where they are not here."""
    if published := context.resources.get("published"):
        return DocumentMap.from_json((Path(published) / DOCUMENT_MAP).read_text(encoding="utf-8"))
    texts = training_texts(results["corpora"], context.inputs)
    return document_map(texts, sentence_embeddings(results["corpora"], context.inputs))


def _losses(context: StageContext) -> list[LossHistory]:
    """Losses of the trainings behind the scores, as far as their folders exist."""
    base = context.folder.parents[1]
    histories = [
        history
        for row in context.resources.get("trainings", [])
        for history in read_histories(
            input_folder(base, row), row["arm"], row["seed"], row["stage"]
        )
    ]
    return [history for history in histories if history.training or history.held_out]
