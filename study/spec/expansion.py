"""The cells of one study, built forwards: inputs before their users, each cell once."""

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.lookup import RunsIndex
from core.stages import CHECKPOINT_STAGES, SHARDING_STAGES
from study.spec import benchmarks, source_cells, training_cells
from study.spec.chains import (
    corpora_of,
    dose_of,
    is_seeded,
    only_dose,
    replay_corpus,
    replicates_of,
    sft_of,
    steps_of,
)
from study.spec.checkpoint import Checkpoint, Prompts, prompts_of, run_of
from study.spec.doses import doses
from study.spec.schema import Arm, Study
from study.spec.steps import Step


@dataclass
class _Chain:
    """An arm's chain while it is followed, step by step."""

    cell: Cell
    label: str
    chat: bool
    steps: list[Cell | None]
    """A cell for each step so far; None for an SFT at dose 0."""
    corpora: dict[tuple[str, int], None]
    """Corpora and their replicates that were trained on, in this order."""


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
                seeds = self._seeds() if is_seeded(self.study, name, dose) else [None]
                rows += [self._checkpoint(name, seed, dose) for seed in seeds]
        return rows

    def _published(self, name: str, arm: Arm, prompts: Prompts) -> list[Checkpoint]:
        """The checkpoints of an arm that somebody else has trained."""
        rows = []
        for dose, models in (arm.checkpoints or {}).items():
            for seed, model in zip(self.study.seeds, models, strict=False):
                if seed in self._seeds():
                    chat = self.study.models[model].chat
                    cell = self._model(model)
                    rows.append(Checkpoint(name, seed, dose, cell, model, chat, prompts=prompts))
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
        arms = self.study.arms.values()
        names = {name for arm in arms for name in corpora_of(self.study, arm)}
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
        for number, (name, replicate) in enumerate(checkpoint.corpora):
            cell = benchmarks.contamination(self.study, bench, self.corpus(name, replicate))
            inputs[benchmarks.numbered("contamination", number)] = self.with_folder(cell)
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
        is_trained = used.stage in CHECKPOINT_STAGES
        return is_trained and self._kept is not None and run_of(used).identity not in self._kept

    def _model(self, name: str) -> Cell:
        if name not in self._models:
            self._models[name] = self.with_folder(source_cells.model(self.study, name))
        return self._models[name]

    def _checkpoint(self, name: str, seed: int | None, dose: int) -> Checkpoint:
        arm = self.study.arms[name]
        assert arm.start
        chain = self._follow(name, seed, dose)
        count = replicates_of(self.study, arm)
        return Checkpoint(
            name,
            seed,
            dose,
            chain.cell,
            arm.start,
            chain.chat,
            tuple(chain.corpora),
            0 if seed is None else self.study.seeds.index(seed) % count,
            prompts_of(arm),
            tuple(chain.steps),
        )

    def _follow(self, name: str, seed: int | None, dose: int, end: int | None = None) -> _Chain:
        """The chain of an arm up to the step at position `end`. Each training is one cell."""
        arm = self.study.arms[name]
        assert arm.start
        chat = self.study.models[arm.start].chat
        chain = _Chain(self._model(arm.start), arm.start, chat, [], {})
        # Before an average any seed does: it stands for all of them.
        first = self.study.seeds[0] if seed is None else seed
        for number, step in enumerate(steps_of(arm)[:end]):
            if step.documents:
                self._midtraining(chain, step, arm.start, first)
            elif step.sft:
                self._tuning(chain, arm, number, first, dose_of(self.study, arm, number, dose))
            elif step.rl:
                self._reinforcement(chain, step, arm.start, first)
            elif step.merge:
                self._merge(chain, step, seed)
            else:
                self._average(chain, name, number, dose)
        return chain

    def _midtraining(self, chain: _Chain, step: Step, model: str, seed: int) -> None:
        assert step.documents
        chain.label = training_cells.midtraining_label(self.study, chain.label, step)
        replicate = self.replicate(step.documents, seed)
        key = ("midtrain", chain.cell.identity, repr(step), model, seed)
        if key not in self._trainings:
            label = f"{chain.label}-s{seed}"
            cell = training_cells.midtraining(self.study, step, label, chain.cell, model, seed)
            documents = {"documents": self.corpus(step.documents, replicate)}
            cell = replace(cell, inputs=cell.inputs | documents)
            self._trainings[key] = self.with_folder(cell)
        chain.cell = self._trainings[key]
        chain.corpora[step.documents, replicate] = None
        chain.steps.append(chain.cell)

    def _tuning(self, chain: _Chain, arm: Arm, number: int, seed: int, dose: int) -> None:
        """An SFT to `dose`: its cell, or the link to that dose of a longer run."""
        if not dose:
            chain.steps.append(None)
            return
        assert arm.start
        step = steps_of(arm)[number]
        replayed = None
        if corpus := replay_corpus(self.study, arm, number):
            chain.corpora[corpus, self.replicate(corpus, seed)] = None
            replayed = self.corpus(corpus, self.replicate(corpus, seed))
        label = training_cells.tuning_label(chain.label, step)
        seeded = f"{label}-s{seed}"
        longest = dose
        if (sft := sft_of(self.study, step)).shared_run:
            longest = max(sft.doses)
        origin = (chain.cell.identity, replayed and replayed.identity)
        key = ("sft", repr(step), repr(sft), arm.start, seed, longest, *origin)
        if key not in self._trainings:
            cell = training_cells.tuning(
                self.study, step, seeded, chain.cell, arm.start, seed, dose, replayed
            )
            self._trainings[key] = self.with_folder(cell)
        chain.cell = self._trainings[key]
        if dose != longest:
            link = Cell("sft", f"{seeded}-d{dose}", {"dose": dose}, {"run": chain.cell})
            chain.cell = self.with_folder(link)
        chain.label = f"{label}-d{dose}"
        chain.chat = True
        chain.steps.append(chain.cell)

    def _reinforcement(self, chain: _Chain, step: Step, model: str, seed: int) -> None:
        assert step.rl
        prompts = self.study.rl[step.rl].prompts
        replicate = self.replicate(prompts, seed)
        chain.label += f"-{step.rl}"
        key = ("rl", chain.cell.identity, step.rl, model, seed)
        if key not in self._trainings:
            label = f"{chain.label}-s{seed}"
            cell = training_cells.reinforcement(self.study, step, label, chain.cell, model, seed)
            documents = {"documents": self.corpus(prompts, replicate)}
            cell = replace(cell, inputs=cell.inputs | documents)
            self._trainings[key] = self.with_folder(cell)
        chain.cell = self._trainings[key]
        chain.corpora[prompts, replicate] = None
        chain.chat = True
        chain.steps.append(chain.cell)

    def _merge(self, chain: _Chain, step: Step, seed: int | None) -> None:
        assert step.merge and step.weight is not None
        dose = only_dose(self.study, step.merge)
        is_same = seed if is_seeded(self.study, step.merge, dose) else None
        other = self._follow(step.merge, is_same, dose)
        chain.label += f"-{100 * step.weight:g}_{step.merge}"
        weights = [1 - step.weight, step.weight]
        label = chain.label if seed is None else f"{chain.label}-s{seed}"
        cell = training_cells.merge(label, [chain.cell, other.cell], weights)
        chain.cell = self.with_folder(cell)
        chain.chat = chain.chat or other.chat
        chain.corpora |= other.corpora
        chain.steps.append(chain.cell)

    def _average(self, chain: _Chain, name: str, number: int, dose: int) -> None:
        """The mean over the seeds of what the steps before have left with each."""
        seeds = self.study.seeds
        chains = [self._follow(name, seed, dose, number) for seed in seeds]
        chain.label += "-mean"
        weights = [1 / len(seeds)] * len(seeds)
        cell = training_cells.merge(chain.label, [other.cell for other in chains], weights)
        chain.cell = self.with_folder(cell)
        for other in chains:
            chain.corpora |= other.corpora
        chain.steps.append(chain.cell)


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
    return {run_of(row.cell).identity for row in last.values()}
