"""A study as cells: which there are, what each needs, in an order in which they can run."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import resolve
from core.recipe import Training, split_recipe
from core.stages import STAGES
from study.spec import benchmarks
from study.spec.fingerprints import content_hash, is_stand_in, load_recipe_once, model_name
from study.spec.schema import Benchmark, Contrast, Sft, Study
from study.spec.source_cells import documents, model, remote
from study.spec.sources import identity, locate


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate: an arm at a dose of SFT; `seed` is None where no training of ours made it."""

    arm: str
    seed: int | None
    dose: int
    cell: Cell
    chat: bool


def doses(study: Study, arm: str) -> list[int]:
    """The doses of SFT at which an arm is evaluated."""
    sft, own = sft_of(study, arm), study.arms[arm].doses
    return [dose for dose in (sft.doses if sft else [0]) if own is None or dose in own]


def sft_of(study: Study, arm: str) -> Sft | None:
    """The instruction tuning of an arm."""
    return study.sfts[name] if (name := study.arms[arm].sft) else study.sft


def checkpoints(study: Study, seen: dict[str, Cell] | None = None) -> list[Checkpoint]:
    """Every (arm, seed, dose) of the study with the cell that makes it."""
    found, seen = [], {} if seen is None else seen
    for arm in study.arms:
        for dose in doses(study, arm):
            trained = bool(study.arms[arm].midtrain) or dose > 0
            for seed in study.seeds if trained else [None]:
                cell = _once(_checkpoint(study, arm, seed, dose), seen)
                chat = dose > 0 or study.models[study.arms[arm].start].chat
                found.append(Checkpoint(arm, seed, dose, cell, chat))
    return found


def _once(cell: Cell, seen: dict[str, Cell]) -> Cell:
    """The cell, and all that it needs, under the first name that the same thing has in the study.

    Two names would be two folders, of which a run fills only one.
    """
    inputs = {role: _once(needed, seen) for role, needed in cell.inputs.items()}
    return seen.setdefault(cell.identity, replace(cell, inputs=inputs))


def analysis(study: Study, without: set[str] = frozenset()) -> Cell:  # type: ignore[assignment]
    """The cell at the end, which every other cell serves.

    `without`: identities of score cells to leave out (they are then listed as missing), for a report of an
    unfinished study.
    """
    rows, missing, labels, inputs = [], [], [], {}
    shared: dict[str, Cell] = {}
    seen: dict[str, Cell] = {}
    found = checkpoints(study, seen)
    for checkpoint in found:
        for name in [n for n, b in study.benchmarks.items() if _asked(b, checkpoint)]:
            for judge, cell in benchmarks.scores(
                study, name, checkpoint.cell, checkpoint.chat
            ).items():
                row: dict[str, Any] = {
                    "arm": checkpoint.arm,
                    "seed": checkpoint.seed,
                    "dose": checkpoint.dose,
                }
                row |= {"benchmark": name, "checkpoint": checkpoint.cell.relpath}
                if judge != (study.benchmarks[name].judge or ""):
                    row["judge"] = model_name(study, judge)
                if cell.identity in without:
                    missing.append(row)
                    continue
                # Benchmarks that come to the same cell share it, under the first one's name.
                inputs[cell.name] = shared.setdefault(cell.identity, cell)
                rows.append({"role": cell.name, **row})
    for name, bench in study.benchmarks.items():
        if bench.labels and (cell := benchmarks.labels(name, bench.labels)).identity not in without:
            inputs[cell.name] = cell
            labels.append(cell.name)
    settings = {
        "study": study.study,
        "rows": rows,
        "missing": missing,
        "labels": labels,
        "roles": study.roles,
        "contrasts": [
            asdict(contrast) | {"paired": _paired(found, contrast)} for contrast in study.contrasts
        ],
        "costs": asdict(study.costs),
        "benchmarks": {
            name: {
                "task": b.task,
                "judge": model_name(study, b.judge),
                "stand_in": is_stand_in(study, b.judge),
                "other_judges": [model_name(study, judge) for judge in b.other_judges]
                + ["human"] * bool(b.labels),
                "exclude": b.exclude,
            }
            for name, b in study.benchmarks.items()
        },
        "writers": [
            {
                "corpus": name,
                "model": model_name(study, c.writer),
                "stand_in": is_stand_in(study, c.writer),
            }
            for name, c in study.corpora.items()
        ],
    }
    for name in dict.fromkeys(arm.midtrain for arm in study.arms.values() if arm.midtrain):
        corpus = _once(documents(study, name), seen)
        if corpus.identity not in without:
            inputs[f"corpus-{name}"] = corpus
    return Cell("analysis", study.study, settings, inputs, {"trainings": _trainings(found)})


def _paired(found: list[Checkpoint], contrast: Contrast) -> bool:
    """Whether runs of one seed share their midtraining in both arms: they are then compared within seeds."""

    def midtrained(side: str) -> dict[int, Cell | None]:
        arm, dose = getattr(contrast, side), getattr(contrast, f"{side}_dose")
        return {c.seed: _midtraining(c.cell) for c in found if c.seed is not None and c.arm == arm
                and dose in (None, c.dose)}  # fmt: skip

    of, against = midtrained("of"), midtrained("against")
    both = [(of[seed], against[seed]) for seed in of.keys() & against.keys()]
    return bool(both) and all(a and b and a.identity == b.identity for a, b in both)


def _midtraining(cell: Cell) -> Cell | None:
    while cell.stage == "sft":
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return cell if cell.stage == "midtrain" else None


def _trainings(found: list[Checkpoint]) -> list[dict[str, Any]]:
    """Where the losses of the arms' trainings lie; of arms that share one, the first is named."""
    rows: dict[str, dict[str, Any]] = {}
    for c in found:
        for cell in (_midtraining(c.cell), c.cell.inputs.get("run", c.cell)):
            if cell and cell.stage != "model":
                stage = (
                    cell.stage
                    if cell.stage == "midtrain"
                    else f"SFT on {cell.settings['dose']} rows"
                )
                rows.setdefault(
                    cell.relpath,
                    {"stage": stage, "arm": c.arm, "seed": c.seed, "cell": cell.relpath},
                )
    return list(rows.values())


def _asked(bench: Benchmark, checkpoint: Checkpoint) -> bool:
    return (bench.arms is None or checkpoint.arm in bench.arms) and (
        bench.doses is None or checkpoint.dose in bench.doses
    )


def in_order(last: Cell) -> list[Cell]:
    """Every cell that `last` needs, none twice, stage by stage, so inputs before their users and `last` at the end."""
    found: dict[str, Cell] = {}

    def walk(cell: Cell) -> None:
        if cell.identity not in found:
            for needed in cell.inputs.values():
                walk(needed)
            found[cell.identity] = cell

    walk(last)
    return sorted(found.values(), key=lambda cell: STAGES.index(cell.stage))


def _training(stage: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe, size = (
        load_recipe_once(path, Training),
        {"midtrain": "tokens_per_update", "sft": "rows_per_update"}[stage],
    )
    if not recipe[size]:
        raise UserError(
            f"{path}: a recipe for {stage} needs {size}; give it, or name another recipe"
        )
    return split_recipe(recipe)


def _checkpoint(study: Study, arm: str, seed: int | None, dose: int) -> Cell:
    found, sft = study.arms[arm], sft_of(study, arm)
    start, corpus, form = found.start, found.midtrain, found.form
    cell, name = model(study, start), start
    if corpus:
        path = found.recipe or (study.midtrain and study.midtrain.recipe)
        assert seed is not None and path
        recipe, ways = _training("sft" if form else "midtrain", path)
        name += (
            f"-{corpus}{'_' + form if form else ''}{'_' + Path(path).stem if found.recipe else ''}"
        )
        settings = {"recipe": recipe, "seed": seed} | ({"form": form} if form else {})
        inputs = {"start": cell, "documents": documents(study, corpus)}
        cell = Cell("midtrain", f"{name}-s{seed}", settings, inputs, ways)
    if dose:
        assert sft and seed is not None
        recipe, ways = _training("sft", sft.recipe)
        name += f"{'-' + found.sft if found.sft else ''}-s{seed}"
        data, place = _sft_data(sft)
        settings = {"recipe": recipe, **data, "dose": dose, "seed": seed}
        *passed, last = sorted({dose for dose in sft.doses if dose}) if sft.one_run else [dose]
        if passed:
            if recipe["epochs"] != 1 or recipe["patience"] or recipe["load_best"]:
                raise UserError(
                    f"{sft.recipe}: sft.one_run keeps a model at each dose as it passes, so the recipe must have "
                    "epochs: 1 and neither patience nor load_best; change it, or leave one_run out"
                )
            settings |= {"dose": last, "doses": passed}
        inputs, ways = {"start": cell}, {"data": place, **ways}
        if sft.replay and corpus:
            settings, inputs = (
                settings | {"replay": sft.replay},
                inputs | {"replay": documents(study, corpus)},
            )
        cell = Cell("sft", f"{name}-d{last}", settings, inputs, ways)
        if dose != last:
            cell = Cell("sft", f"{name}-d{dose}", {"dose": dose}, {"run": cell})
    return cell


def _sft_data(sft: Sft) -> tuple[dict[str, Any], str]:
    """What of an SFT's data is identity, and where it lies."""
    if isinstance(sft.data, str):
        return {"data_sha256": content_hash(sft.data)}, str(resolve(sft.data))
    source = remote(sft.data)
    return {"data": identity(source)}, str(locate(source))
