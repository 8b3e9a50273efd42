"""What the two arms of a contrast share, and in what the cells behind them differ.

A difference between two arms is the effect of what was varied only where nothing else differs. Each
setting of the cells behind a checkpoint belongs to one unit:

corpus   all of the documents' cell, and which wording of its questions is trained on
recipe   the recipe of midtraining, as recipe.KEY
start    the start model
sft      instruction tuning: its recipe, data and replay
dose     rows of instruction data
system   system prompt of the evaluations
prefill  beginning of their answers

A unit covers what is below it: `recipe` covers recipe.lr, `sft` covers sft.recipe.lr.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.stages import SHARDING_STAGES
from study.spec.checkpoint import Checkpoint, midtraining_of
from study.spec.fingerprints import content_hash
from study.spec.schema import Arm, Contrast
from study.spec.source_cells import corpus_name

Settings = dict[str, Any]
ABSENT = "none"
UNKNOWN = "what is not recorded here: scores of somebody else"


@dataclass(frozen=True)
class Difference:
    """A setting in which the two arms of a contrast differ.

    Attributes:
        key: Its unit, or what is below it, such as recipe.lora.rank.
        treatment: Its value in the treatment arm, as text.
        control: Its value in the control arm.
        below: For a corpus or a start model, the settings of its cell that differ.
    """

    key: str
    treatment: str
    control: str
    below: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        return self.key.partition(".")[0]

    def __str__(self) -> str:
        below = f" ({', '.join(self.below)})" if self.below else ""
        return f"{self.key} {self.treatment} | {self.control}{below}"


def is_paired(evaluated: list[Checkpoint], contrast: Contrast) -> bool:
    """Whether runs of one seed share their midtraining in both arms.

    They are then compared within seeds.
    """

    def midtrainings(arm: str, dose: int | None) -> dict[int, Cell | None]:
        return {
            row.seed: midtraining_of(row.cell)
            for row in evaluated
            if row.seed is not None and row.arm == arm and dose in (None, row.dose)
        }

    treatment = midtrainings(contrast.treatment, contrast.treatment_dose)
    control = midtrainings(contrast.control, contrast.control_dose)
    pairs = [(treatment[seed], control[seed]) for seed in treatment.keys() & control.keys()]
    return bool(pairs) and all(a and b and a.identity == b.identity for a, b in pairs)


@dataclass(frozen=True)
class Audit:
    """In what the arms of one contrast differ.

    Attributes:
        contrast: The contrast.
        differences: Every setting in which its arms differ, at the doses that it compares. Settings
            of a stage that only one arm has are not listed: the stage is what differs.
        undeclared: Those beyond what it varies: what it declares, by default the first unit that
            differs. Two doses are declared by treatment_dose and control_dose.
        unknown: Whether an arm has scores of somebody else, of which no setting is known here.
    """

    contrast: Contrast
    differences: list[Difference]
    undeclared: list[Difference]
    unknown: bool = False

    @property
    def keys(self) -> list[str]:
        """What the results say the arms differ in."""
        return [UNKNOWN] if self.unknown else [row.key for row in self.differences]

    def __str__(self) -> str:
        if self.unknown:
            return UNKNOWN
        return "; ".join(map(str, self.differences)) or "nothing differs"


def audit(
    evaluated: list[Checkpoint], contrasts: list[Contrast], arms: Mapping[str, Arm]
) -> list[Audit]:
    """In what the arms of each contrast differ. Of each arm and dose the first seed counts."""
    audits = []
    for contrast in contrasts:
        listed: dict[str, Difference] = {}
        for treatment, control in _pairs(evaluated, contrast):
            for difference in _compare(treatment, control):
                listed.setdefault(difference.key, difference)
        differing = list(listed.values())
        declared = list(contrast.varies or [])
        if contrast.treatment_dose is not None:
            declared.append("dose")
        if not declared and differing:
            declared = [differing[0].unit]
        more = [row for row in differing if not any(_covers(unit, row.key) for unit in declared)]
        unknown = any(arms[side].scores for side in (contrast.treatment, contrast.control))
        audits.append(Audit(contrast, differing, more, unknown))
    return audits


def check(audits: Iterable[Audit]) -> None:
    """Raise UserError where the arms of a contrast differ in more than it varies."""
    problems = [
        Problem(
            f"contrast {audit.contrast.name!r}",
            f"its arms differ in more than it varies: {'; '.join(map(str, audit.undeclared))}",
            "give both arms the same, or declare it in the contrast: "
            f"varies: [{', '.join(_units(audit.differences))}]",
        )
        for audit in audits
        if audit.undeclared
    ]
    if problems:
        raise UserError.of(problems)


def _units(differing: Iterable[Difference]) -> list[str]:
    """The keys to declare: not those that another covers, nor the doses, which have their own."""
    keys = [row.key for row in differing if row.key != "dose"]
    return [key for key in keys if not any(_covers(unit, key) for unit in keys if unit != key)]


def _covers(unit: str, key: str) -> bool:
    return key == unit or key.startswith(f"{unit}.")


def _pairs(evaluated: list[Checkpoint], contrast: Contrast) -> list[tuple[Checkpoint, Checkpoint]]:
    first: dict[tuple[str, int], Checkpoint] = {}
    for row in evaluated:
        first.setdefault((row.arm, row.dose), row)
    doses = [dose for arm, dose in first if arm == contrast.treatment]
    if contrast.treatment_dose is not None and contrast.control_dose is not None:
        wanted = [(contrast.treatment_dose, contrast.control_dose)]
    else:
        chosen = doses if contrast.doses is None else contrast.doses
        wanted = [(dose, dose) for dose in doses if dose in chosen]
    sides = [
        (first.get((contrast.treatment, a)), first.get((contrast.control, b))) for a, b in wanted
    ]
    return [(a, b) for a, b in sides if a and b]


def _compare(treatment: Checkpoint, control: Checkpoint) -> Iterable[Difference]:
    sides = (treatment, control)
    midtrainings = [midtraining_of(side.cell) for side in sides]
    corpora = [cell and cell.inputs["documents"] for cell in midtrainings]
    yield from _cells("corpus", *corpora)
    if all(midtrainings):
        variants = [cell.settings.get("question_variant") for cell in midtrainings if cell]
        yield from _values("corpus.question_variant", *variants)
        yield from _flattened("recipe", *(cell.settings["recipe"] for cell in midtrainings if cell))
    yield from _cells("start", *(_start(side.cell) for side in sides))
    yield from _values("dose", treatment.dose, control.dose)
    for key in ("system", "prefill"):
        yield from _prompts(key, *(dict(side.prompts).get(key) for side in sides))
    tunings = [_sft(side.cell) for side in sides]
    if all(tunings):
        yield from _values("start.chat_template", *(_chat_template(side.cell) for side in sides))
        settings = [cell.settings for cell in tunings if cell]
        yield from _flattened("sft.recipe", *(part["recipe"] for part in settings))
        rest = [{**part, "shared_run": "doses" in part} for part in settings]
        for part in rest:
            part["files"] = {"data": part["files"]["data"]}
        ours = ("recipe", "seed", "dose", "doses")
        yield from _flattened(
            "sft", *({key: part[key] for key in part if key not in ours} for part in rest)
        )


def _prompts(key: str, treatment: str | None, control: str | None) -> Iterable[Difference]:
    """Two files with a system prompt or a prefill, by their contents."""
    hashes = [content_hash(path) if path else None for path in (treatment, control)]
    if hashes[0] != hashes[1]:
        names = [Path(path).stem if path else ABSENT for path in (treatment, control)]
        yield Difference(key, names[0], names[1])


def _cells(unit: str, treatment: Cell | None, control: Cell | None) -> Iterable[Difference]:
    """A unit that is a cell of its own, with the settings of the cell that differ."""
    if (treatment and treatment.identity) == (control and control.identity):
        return
    names = [_name(cell) for cell in (treatment, control)]
    below: list[str] = []
    if treatment and control:
        keys = sorted(treatment.settings.keys() | control.settings.keys())
        below = [key for key in keys if treatment.settings.get(key) != control.settings.get(key)]
        inputs = [_inputs(cell) for cell in (treatment, control)]
        roles = sorted(inputs[0].keys() | inputs[1].keys())
        below += [role for role in roles if inputs[0].get(role) != inputs[1].get(role)]
    yield Difference(unit, names[0], names[1], tuple(below))


def _name(cell: Cell | None) -> str:
    if cell is None:
        return ABSENT
    return corpus_name(cell) if cell.stage == "documents" else cell.name


def _inputs(cell: Cell) -> dict[str, str]:
    """The identities of a cell's inputs by role, those that only shard its work apart."""
    return {
        role: used.identity
        for role, used in cell.inputs.items()
        if used.stage not in SHARDING_STAGES
    }


def _flattened(unit: str, treatment: Settings, control: Settings) -> Iterable[Difference]:
    flat = [_flat(unit, settings) for settings in (treatment, control)]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        yield from _values(key, *(part.get(key) for part in flat))


def _values(key: str, treatment: Any, control: Any) -> Iterable[Difference]:
    if treatment != control:
        yield Difference(key, _text(treatment), _text(control))


def _flat(prefix: str, settings: Settings) -> Settings:
    """Nested settings as dotted keys."""
    flat: Settings = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}"
        flat |= _flat(name, value) if isinstance(value, dict) else {name: value}
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    # A hash of a file is told by its beginning.
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _start(cell: Cell) -> Cell:
    while cell.stage != "model":
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return cell


def _chat_template(cell: Cell) -> str | None:
    """The chat template that the study file gives the start model, where a training reads it."""
    while cell.stage != "model":
        if template := cell.settings.get("files", {}).get("chat_template"):
            return str(template)
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return None


def _sft(cell: Cell) -> Cell | None:
    """The training behind a checkpoint after SFT."""
    if cell.stage != "sft":
        return None
    return cell.inputs.get("run", cell)
