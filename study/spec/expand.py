"""A study as cells: which there are, what each needs, in an order in which they can run."""

from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.claims_file import CLAIMS
from core.cell.identity import Cell
from core.cell.lookup import RunsIndex
from core.errors import UserError
from core.recipe import Training, split_recipe
from core.stages import SHARDING_STAGES, STAGES
from study.spec import benchmarks, contrast_arms, source_cells, study_declaration
from study.spec.chat import chat_date, chat_files
from study.spec.checkpoint import Checkpoint, midtraining_of
from study.spec.doses import check_shared_run, doses, sft_of
from study.spec.fingerprints import is_dummy, load_recipe_once, model_name
from study.spec.load import dump_study
from study.spec.schema import Arm, Benchmark, Sft, Study
from study.spec.sources import Source, identities, paths

# What the analysis reads of the checkout: the paper's claims and the page of the report.
ANALYSIS_FILES: dict[str, Source] = {
    "claims": {"path": CLAIMS},
    "page": {"path": "analysis/report.html.j2"},
}


class Expansion:
    """The cells of one study, built forwards: inputs before their users, each cell once.

    Cells with the same identity are one cell under the first name that it has in the study.
    Two names would be two folders, of which a run fills only one.

    Args:
        study: The study.
        base: Its folder, from which cells that are finished or begun there, or finished in another
            study of the runs folder, get their folders. None: of no cell is anything there.
    """

    def __init__(self, study: Study, base: Path | None = None) -> None:
        self.study = study
        self._index = RunsIndex(base) if base else None
        self._by_identity: dict[str, Cell] = {}
        self._models: dict[str, Cell] = {}
        self._corpora: dict[tuple[str, int], Cell] = {}
        self._trainings: dict[tuple[Any, ...], Cell] = {}

    @property
    def cells(self) -> list[Cell]:
        """Those that were asked for so far, and their inputs."""
        return [*self._by_identity.values()]

    def checkpoints(self) -> list[Checkpoint]:
        """Every (arm, seed, dose) of the study with the cell that makes it."""
        rows = []
        for name, arm in self.study.arms.items():
            for dose in doses(self.study, name):
                trained = bool(arm.midtrain) or dose > 0
                chat = dose > 0 or self.study.models[arm.start].chat
                for seed in self._seeds() if trained else [None]:
                    cell = self._checkpoint(name, seed, dose)
                    replicate = self.replicate(arm.midtrain, seed) if arm.midtrain else 0
                    rows.append(Checkpoint(name, seed, dose, cell, chat, arm.midtrain, replicate))
        return rows

    def corpus(self, name: str, replicate: int) -> Cell:
        """The cell that makes a replicate of a corpus."""
        if (name, replicate) not in self._corpora:
            model = source_cells.tokenizer_model(self.study, name)
            matched_to = self.study.corpora[name].matched_to
            cell = source_cells.documents(
                self.study,
                name,
                replicate,
                # A model that is here or on the hub has its tokenizer already.
                tokenizer=self._model(model) if self.study.models[model].make else None,
                matched_to=self.corpus(matched_to, replicate) if matched_to else None,
            )
            self._corpora[name, replicate] = self.with_folder(cell)
        return self._corpora[name, replicate]

    def corpora(self) -> dict[str, Cell]:
        """The corpora that arms are trained on, by name: each replicate that a run needs."""
        names = {arm.midtrain for arm in self.study.arms.values() if arm.midtrain}
        return {
            source_cells.replicate_name(self.study, name, replicate): self.corpus(name, replicate)
            for name in sorted(names)
            for replicate in sorted({self.replicate(name, seed) for seed in self._seeds()})
        }

    def replicate(self, corpus: str, seed: int | None) -> int:
        """The replicate of a corpus on which the run with this seed trains.

        It goes by the seed's position in the study file: a seed added at the end moves no other.
        """
        assert seed is not None
        return self.study.seeds.index(seed) % self.study.corpora[corpus].replicates

    def _seeds(self) -> list[int]:
        return self.study.only_seeds or self.study.seeds

    def scores(self, checkpoint: Checkpoint, bench: str) -> dict[str, Cell]:
        """The cells with a checkpoint's scores on a benchmark (`benchmarks.scores`)."""
        inputs = {"checkpoint": checkpoint.cell}
        if checkpoint.corpus:
            documents = self.corpus(checkpoint.corpus, checkpoint.replicate)
            cell = benchmarks.contamination(self.study, bench, documents)
            inputs["contamination"] = self.with_folder(cell)
        scores = benchmarks.scores(self.study, bench, inputs, checkpoint)
        return {judge: self.with_folder(cell) for judge, cell in scores.items()}

    def with_folder(self, cell: Cell) -> Cell:
        """The one cell of this identity, with the folder that it has, as have its inputs."""
        if cell.identity not in self._by_identity:
            inputs = {role: self.with_folder(used) for role, used in cell.inputs.items()}
            folder = self._index.folder_of(cell) if self._index else ""
            if self._index and self._index.finished(cell.stage, cell.identity):
                # Nobody has to write shards of a corpus that is written.
                inputs = {
                    role: used
                    for role, used in inputs.items()
                    if used.stage not in SHARDING_STAGES
                    or self._index.finished(used.stage, used.identity)
                }
            self._by_identity[cell.identity] = replace(cell, inputs=inputs, folder=folder)
        return self._by_identity[cell.identity]

    def _model(self, name: str) -> Cell:
        if name not in self._models:
            self._models[name] = self.with_folder(source_cells.model(self.study, name))
        return self._models[name]

    def _checkpoint(self, arm_name: str, seed: int | None, dose: int) -> Cell:
        arm = self.study.arms[arm_name]
        start = self._model(arm.start)
        label = arm.start
        if arm.midtrain:
            assert seed is not None
            start = self._midtraining(arm, seed)
            label = self._midtraining_name(arm)
        if not dose:
            return start
        sft = sft_of(self.study, arm_name)
        assert sft and seed is not None
        label += f"{'-' + arm.sft if arm.sft else ''}-s{seed}"
        return self._sft(label, sft, start, arm, seed, dose)

    def _midtraining(self, arm: Arm, seed: int) -> Cell:
        assert arm.midtrain
        path = arm.recipe or self._own_recipe()
        key = ("midtrain", arm.start, arm.midtrain, arm.question_variant, path, seed)
        if key not in self._trainings:
            assert path
            recipe, runtime = _recipe("sft" if arm.question_variant else "midtrain", path)
            settings: dict[str, Any] = {"recipe": recipe, "seed": seed}
            files = chat_files(self.study, arm.start) if arm.question_variant else {}
            if arm.question_variant:
                settings |= {"question_variant": arm.question_variant, **chat_date(self.study)}
            if files:
                settings |= identities(files)
                runtime = runtime | paths(files)
            documents = self.corpus(arm.midtrain, self.replicate(arm.midtrain, seed))
            inputs = {"start": self._model(arm.start), "documents": documents}
            name = f"{self._midtraining_name(arm)}-s{seed}"
            self._trainings[key] = self.with_folder(
                Cell("midtrain", name, settings, inputs, runtime)
            )
        return self._trainings[key]

    def _own_recipe(self) -> str | None:
        return self.study.midtrain.recipe if self.study.midtrain else None

    def _midtraining_name(self, arm: Arm) -> str:
        form = f"_{arm.question_variant}" if arm.question_variant else ""
        named = arm.recipe if arm.recipe != self._own_recipe() else None
        recipe = f"_{Path(named).stem}" if named else ""
        return f"{arm.start}-{arm.midtrain}{form}{recipe}"

    def _sft(self, label: str, sft: Sft, start: Cell, arm: Arm, seed: int, dose: int) -> Cell:
        """The cell of an instruction tuning to `dose`, or the link to that dose of a longer run."""
        *passed, last = sorted({dose for dose in sft.doses if dose}) if sft.shared_run else [dose]
        corpus = arm.midtrain
        template = chat_files(self.study, arm.start)
        # A label may fit two.
        key = ("sft", repr(sft), start.identity, str(template), corpus, seed, last)
        if key not in self._trainings:
            recipe, runtime = _recipe("sft", sft.recipe)
            files = {"data": _sft_data(sft), **template}
            settings = {"recipe": recipe, **identities(files), "dose": last, "seed": seed}
            settings |= chat_date(self.study)
            if passed:
                check_shared_run(sft, recipe)
                settings["doses"] = passed
            inputs = {"start": start}
            if sft.replay and corpus:
                settings["replay"] = sft.replay
                inputs["replay"] = self.corpus(corpus, self.replicate(corpus, seed))
            resources = {**paths(files), **runtime}
            run = Cell("sft", f"{label}-d{last}", settings, inputs, resources)
            self._trainings[key] = self.with_folder(run)
        run = self._trainings[key]
        if dose == last:
            return run
        return self.with_folder(Cell("sft", f"{label}-d{dose}", {"dose": dose}, {"run": run}))


def analysis(study: Study, base: Path | None = None, without: Set[str] = frozenset()) -> Cell:
    """The cell at the end, which every other cell serves.

    `base`: as of `Expansion`. `without`: identities of score cells to leave out (they are then
    listed as missing), for a report of an unfinished study. Raises UserError where a recipe or a
    benchmark does not fit, or the arms of a contrast differ in more than it varies.
    """
    expansion = Expansion(study, base)
    evaluated = sorted(expansion.checkpoints(), key=_row_order)
    audits = contrast_arms.audit(evaluated, study.contrasts)
    contrast_arms.check(audits)
    inputs: dict[str, Cell] = {}
    rows, missing, unfinished = _score_rows(expansion, evaluated, without, inputs)
    labels = {}
    for name, bench in sorted(study.benchmarks.items()):
        if not bench.labels:
            continue
        cell = expansion.with_folder(benchmarks.labels(name, bench.labels))
        if cell.identity not in without:
            inputs[f"labels-{name}"] = cell
            labels[f"labels-{name}"] = name
    for name, corpus in expansion.corpora().items():
        if corpus.identity not in without:
            inputs[f"corpus-{name}"] = corpus
            embedded = source_cells.embeddings(study, corpus)
            if embedded and embedded.identity not in without:
                inputs[f"embeddings-{name}"] = expansion.with_folder(embedded)
    declaration, declared = study_declaration.planned(study, base, expansion.cells)
    settings = {
        "study": study.study,
        # Those that were declared: what the file adds later was not planned.
        "seeds": declared["seeds"],
        "looks": declared["looks"],
        "declaration": declaration,
        "rows": rows,
        "missing": missing,
        "labels": labels,
        "claim_roles": study.claim_roles,
        "contrasts": [
            asdict(audit.contrast)
            | {
                "paired": contrast_arms.is_paired(evaluated, audit.contrast),
                "differences": [row.key for row in audit.differences],
            }
            for audit in audits
        ],
        "costs": asdict(study.costs),
        "benchmarks": {
            name: _judges(study, bench) for name, bench in sorted(study.benchmarks.items())
        },
        "writers": [
            {
                "corpus": name,
                "model": model_name(study, corpus.writer),
                "dummy": is_dummy(study, corpus.writer),
                "matched_to": corpus.matched_to,
                # Not where it is 1, so that such an analysis stays the same.
                **({"replicates": corpus.replicates} if corpus.replicates > 1 else {}),
            }
            for name, corpus in sorted(study.corpora.items())
        ],
        "untrained": _untrained(study),
        **identities(ANALYSIS_FILES),
    }
    resources = {
        "trainings": _trainings(evaluated),
        "unfinished": unfinished,
        "study_file": dump_study(study),  # kept with its results
        **paths(ANALYSIS_FILES),
    }
    return expansion.with_folder(Cell("analysis", study.study, settings, inputs, resources))


def previews(study: Study, base: Path) -> list[Cell]:
    """The cells of `source_cells.previews`, with their folders."""
    expansion = Expansion(study, base)
    return [expansion.with_folder(cell) for cell in source_cells.previews(study)]


def in_order(last: Cell) -> list[Cell]:
    """Every cell that `last` needs, none twice, stage by stage.

    Inputs come before their users, and `last` is at the end.
    """
    cells: dict[str, Cell] = {}

    def walk(cell: Cell) -> None:
        if cell.identity not in cells:
            for needed in cell.inputs.values():
                walk(needed)
            cells[cell.identity] = cell

    walk(last)
    return sorted(cells.values(), key=lambda cell: STAGES.index(cell.stage))


def _score_rows(
    expansion: Expansion,
    evaluated: list[Checkpoint],
    without: Set[str],
    inputs: dict[str, Cell],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table of scores, those whose cell is left out, and what these need.

    Adds the cells to `inputs`. What a row needs is where the cells of its weights and answers lie.
    """
    study = expansion.study
    rows = []
    missing = []
    unfinished = []
    for checkpoint in evaluated:
        for name, bench in sorted(study.benchmarks.items()):
            if not _is_asked(bench, checkpoint):
                continue
            for judge, cell in expansion.scores(checkpoint, name).items():
                row: dict[str, Any] = {
                    "arm": checkpoint.arm,
                    "seed": checkpoint.seed,
                    "dose": checkpoint.dose,
                    "benchmark": name,
                    "checkpoint": checkpoint.cell.identity,
                }
                if bench.labels:
                    row["answers"] = cell.inputs["samples"].identity
                if judge != (bench.judge or ""):
                    row["judge"] = model_name(study, judge)
                if checkpoint.corpus and study.corpora[checkpoint.corpus].replicates > 1:
                    row["replicate"] = checkpoint.replicate
                if cell.identity in without:
                    missing.append(row)
                    needed = {
                        "weights": checkpoint.cell,
                        "answers": cell.inputs.get("samples", cell),
                    }
                    unfinished.append({name: _source(of_row) for name, of_row in needed.items()})
                    continue
                # Two cells may have one name.
                role = f"{cell.stage}-{cell.identity[:16]}"
                inputs[role] = cell
                rows.append({"role": role, **row})
    return rows, missing, unfinished


def _source(cell: Cell) -> dict[str, str]:
    """Where a cell lies, as an analysis looks for it."""
    return {"cell": cell.relpath, "identity": cell.identity}


def _row_order(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """The order of arms in the results: those on no corpus first, then by name.

    It does not depend on the order in the study file, which is in no identity.
    """
    seed = -1 if checkpoint.seed is None else checkpoint.seed
    return checkpoint.corpus is not None, checkpoint.arm, checkpoint.dose, seed


def _judges(study: Study, bench: Benchmark) -> dict[str, Any]:
    """What the analysis has to know of a benchmark."""
    others = [model_name(study, judge) for judge in bench.other_judges]
    return {
        "task": bench.task,
        "judge": model_name(study, bench.judge),
        "dummy": is_dummy(study, bench.judge),
        "other_judges": others + ["human"] * bool(bench.labels),
        "exclude": bench.exclude,
    }


def _untrained(study: Study) -> dict[str, str]:
    """Arm -> the arm with its start model and nothing else, where there is one."""
    alone: dict[str, str] = {}
    for name, arm in sorted(study.arms.items()):
        if not arm.midtrain and 0 in doses(study, name):
            alone.setdefault(arm.start, name)
    return {
        name: alone[arm.start] for name, arm in sorted(study.arms.items()) if arm.start in alone
    }


def _trainings(evaluated: list[Checkpoint]) -> list[dict[str, Any]]:
    """Where the losses of the arms' trainings lie; of arms that share one, the first is named."""
    rows: dict[str, dict[str, Any]] = {}
    for row in evaluated:
        for cell in (midtraining_of(row.cell), row.cell.inputs.get("run", row.cell)):
            if cell is None or cell.stage == "model":
                continue
            is_sft = cell.stage != "midtrain"
            stage = f"SFT on {cell.settings['dose']} rows" if is_sft else cell.stage
            facts = {"stage": stage, "arm": row.arm, "seed": row.seed}
            rows.setdefault(cell.identity, facts | _source(cell))
    return list(rows.values())


def _is_asked(bench: Benchmark, checkpoint: Checkpoint) -> bool:
    """Whether a benchmark is for this checkpoint."""
    of_arm = bench.arms is None or checkpoint.arm in bench.arms
    return of_arm and (bench.doses is None or checkpoint.dose in bench.doses)


def _recipe(stage: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's settings that are identity, and how it runs (core.recipe.RUNTIME_KEYS)."""
    recipe = load_recipe_once(path, Training)
    if stage == "sft" and not recipe["global_batch_size"]:
        raise UserError(
            where=path,
            what="a recipe for sft needs global_batch_size",
            fix="give it, or name another recipe",
        )
    return split_recipe(recipe)


def _sft_data(sft: Sft) -> Source:
    return {"path": sft.data} if isinstance(sft.data, str) else source_cells.remote(sft.data)
