"""The cells of one study, built forwards: inputs before their users, each cell once."""

from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.lookup import RunsIndex
from core.errors import UserError
from core.recipe import Training, split_recipe
from core.stages import SHARDING_STAGES, TRAINING_STAGES
from study.spec import benchmarks, source_cells
from study.spec.chat import chat_date, chat_files
from study.spec.checkpoint import Checkpoint, Prompts, prompts_of
from study.spec.doses import check_shared_run, doses, sft_of
from study.spec.fingerprints import load_recipe_once
from study.spec.schema import Arm, Sft, Study
from study.spec.sources import Source, file_source, identities, paths


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
        self._kept = _kept_checkpoints(study)

    @property
    def cells(self) -> list[Cell]:
        """Those that were asked for so far, and their inputs."""
        return [*self._by_identity.values()]

    def checkpoints(self) -> list[Checkpoint]:
        """Every (arm, seed, dose) of the study with the cell that makes it."""
        rows = []
        for name, arm in self.study.arms.items():
            prompts = prompts_of(arm)
            rows += self._published(name, arm, prompts)
            if arm.start is None:
                continue
            for dose in doses(self.study, name):
                trained = bool(arm.midtrain) or dose > 0
                chat = dose > 0 or self.study.models[arm.start].chat
                for seed in self._seeds() if trained else [None]:
                    cell = self._checkpoint(name, seed, dose)
                    replicate = self.replicate(arm.midtrain, seed) if arm.midtrain else 0
                    rows.append(
                        Checkpoint(
                            name,
                            seed,
                            dose,
                            cell,
                            arm.start,
                            chat,
                            arm.midtrain,
                            replicate,
                            prompts,
                        )
                    )
        return rows

    def _published(self, name: str, arm: Arm, prompts: Prompts) -> list[Checkpoint]:
        """The checkpoints of an arm that somebody else has trained."""
        rows = []
        for dose, models in (arm.checkpoints or {}).items():
            for seed, model in zip(self.study.seeds, models, strict=False):
                if seed in self._seeds():
                    chat = self.study.models[model].chat
                    cell = self._model(model)
                    rows.append(Checkpoint(name, seed, dose, cell, model, chat, None, 0, prompts))
        return rows

    def existing_scores(self) -> list[tuple[str, int, int, str, Cell]]:
        """Arm, seed, dose, benchmark and cell of the scores that somebody else has computed."""
        rows = []
        for name, arm in sorted(self.study.arms.items()):
            for bench, by_dose in sorted((arm.scores or {}).items()):
                for dose, files in sorted(by_dose.items()):
                    for seed, file in zip(self.study.seeds, files, strict=False):
                        if seed in self._seeds():
                            label = f"{bench}-{name}-s{seed}-d{dose}"
                            cell = benchmarks.existing_scores(self.study, bench, label, file)
                            rows.append((name, seed, dose, bench, self.with_folder(cell)))
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
            resources = cell.resources
            if roles := [role for role, used in sorted(inputs.items()) if self._goes(used)]:
                resources = resources | {"release": roles}
            self._by_identity[cell.identity] = replace(
                cell, inputs=inputs, resources=resources, folder=folder
            )
        return self._by_identity[cell.identity]

    def _goes(self, used: Cell) -> bool:
        """Whether the weights of an input are removed when all that reads them is finished."""
        run = used.inputs.get("run", used)
        is_trained = used.stage in TRAINING_STAGES
        return is_trained and self._kept is not None and run.identity not in self._kept

    def _model(self, name: str) -> Cell:
        if name not in self._models:
            self._models[name] = self.with_folder(source_cells.model(self.study, name))
        return self._models[name]

    def _checkpoint(self, arm_name: str, seed: int | None, dose: int) -> Cell:
        arm = self.study.arms[arm_name]
        assert arm.start
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
        assert arm.start and arm.midtrain
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
        assert arm.start
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
    return file_source(sft.data)


def _kept_checkpoints(study: Study) -> Set[str] | None:
    """Identities of the trainings whose weights `keep` of the study file keeps; None: of all."""
    if study.keep == "all":
        return None
    if study.keep == "none":
        return frozenset()
    last: dict[tuple[str, int | None], Checkpoint] = {}
    for row in Expansion(replace(study, keep="all")).checkpoints():
        before = last.get((row.arm, row.seed))
        if before is None or row.dose > before.dose:
            last[row.arm, row.seed] = row
    return {row.cell.inputs.get("run", row.cell).identity for row in last.values()}
