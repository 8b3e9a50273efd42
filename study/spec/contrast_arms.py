"""What the two arms of a contrast share, and in what the cells behind them differ.

A difference between two arms is the effect of what was varied only where nothing else differs. Each
setting of the cells behind a checkpoint belongs to one unit:

corpus   all of the documents' cell, and which wording of its questions is trained on
recipe   the recipe of midtraining, as recipe.KEY
start    the start model, and how it is prompted: with a chat template or not, and which
sft      instruction tuning: its recipe, data and replay
dose     rows of instruction data
system   system prompt of the evaluations
prefill  beginning of their answers

These are the units where each arm has at most one training on documents, and then at most one
SFT. Of longer chains each step is a unit, stepN by its position in the treatment arm, with corpus,
recipe and so on below it; `chain` has the steps that only one of the arms has.

A unit covers what is below it: `recipe` covers recipe.lr, `sft` covers sft.recipe.lr.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.model_size import start_model
from core.stages import SHARDING_STAGES
from study.spec.chains import dose_step, steps_of
from study.spec.checkpoint import Checkpoint, run_of, trainings_of
from study.spec.fingerprints import content_hash
from study.spec.schema import Arm, Contrast, Study
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
    """Whether runs of one seed share their first training in both arms.

    They are then compared within seeds.
    """

    def first_trainings(arm: str, dose: int | None) -> dict[int, Cell | None]:
        return {
            row.seed: next(iter(trainings_of(row.cell)), None)
            for row in evaluated
            if row.seed is not None and row.arm == arm and dose in (None, row.dose)
        }

    treatment = first_trainings(contrast.treatment, contrast.treatment_dose)
    control = first_trainings(contrast.control, contrast.control_dose)
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


def audit(evaluated: list[Checkpoint], study: Study) -> list[Audit]:
    """In what the arms of each contrast differ, at any seed that both have."""
    audits = []
    for contrast in study.contrasts:
        listed: dict[str, Difference] = {}
        for treatment, control in _pairs(evaluated, contrast):
            for difference in _compare(treatment, control, study):
                listed.setdefault(difference.key, difference)
        differing = list(listed.values())
        declared = list(contrast.varies or [])
        if contrast.treatment_dose != contrast.control_dose:
            declared.append("dose")
        if not declared and differing:
            declared = [differing[0].unit]
        more = [row for row in differing if not any(_covers(unit, row.key) for unit in declared)]
        unknown = any(study.arms[side].scores for side in (contrast.treatment, contrast.control))
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
    """The checkpoints that a contrast compares, seed by seed.

    One without a seed is compared with those of all seeds. Where no seed is common to both, the
    first of each are compared.
    """
    by_dose: dict[tuple[str, int], dict[int | None, Checkpoint]] = {}
    for row in evaluated:
        by_dose.setdefault((row.arm, row.dose), {})[row.seed] = row
    doses = [dose for arm, dose in by_dose if arm == contrast.treatment]
    if contrast.treatment_dose is not None and contrast.control_dose is not None:
        wanted = [(contrast.treatment_dose, contrast.control_dose)]
    else:
        chosen = doses if contrast.doses is None else contrast.doses
        wanted = [(dose, dose) for dose in doses if dose in chosen]
    pairs = []
    for a, b in wanted:
        treatments = by_dose.get((contrast.treatment, a), {})
        controls = by_dose.get((contrast.control, b), {})
        seeds = treatments.keys() | controls.keys()
        sides = [
            (treatments.get(seed, treatments.get(None)), controls.get(seed, controls.get(None)))
            for seed in sorted(seeds, key=lambda seed: -1 if seed is None else seed)
        ]
        common = [(x, y) for x, y in sides if x and y]
        firsts = zip(treatments.values(), controls.values(), strict=False)
        pairs += common or [*firsts][:1]
    return pairs


def _compare(treatment: Checkpoint, control: Checkpoint, study: Study) -> Iterator[Difference]:
    sides = (treatment, control)
    arms = [study.arms[side.arm] for side in sides]
    kinds = [_kinds(arm) for arm in arms]
    if all(map(_is_short, kinds)):
        yield from _midtraining(*(_cell_of(side, "midtrain") for side in sides))
    yield from _cells("start", *(start_model(side.cell) for side in sides))
    yield from _prompting(treatment, control, study)
    yield from _values("dose", treatment.dose, control.dose)
    for key in ("system", "prefill"):
        yield from _files(key, *(dict(side.prompts).get(key) for side in sides))
    if all(map(_is_short, kinds)):
        tunings = [_cell_of(side, "sft") for side in sides]
        if tunings[0] and tunings[1]:
            yield from _tuning("sft", tunings[0], tunings[1])
        return
    matched = SequenceMatcher(None, kinds[0], kinds[1], autojunk=False).get_matching_blocks()
    if sum(block.size for block in matched) < max(map(len, kinds)):
        names = [", ".join(listed) or ABSENT for listed in kinds]
        yield Difference("chain", names[0], names[1])
    of_dose = [dose_step(arm) for arm in arms]
    for block in matched:
        for n in range(block.size):
            numbers = [block.a + n, block.b + n]
            steps = treatment.steps[numbers[0]], control.steps[numbers[1]]
            unit, kind = f"step{numbers[0] + 1}", kinds[0][numbers[0]]
            yield from _step(unit, kind, *steps, has_arms_dose=numbers == of_dose)


def _prompting(treatment: Checkpoint, control: Checkpoint, study: Study) -> Iterator[Difference]:
    """Whether the start models are prompted by a chat template, and the templates given to them.

    A template counts where both sides read it: as prompts, or to train on conversations.
    """
    sides = (treatment, control)
    models = [study.models[side.start] for side in sides]
    if treatment.chat != control.chat:
        yield from _values("start.chat", *(model.chat for model in models))
    if all(side.chat or any(map(_has_conversations, side.steps)) for side in sides):
        yield from _files("start.chat_template", *(model.chat_template for model in models))


def _has_conversations(cell: Cell | None) -> bool:
    return cell is not None and "question_variant" in cell.settings


def _kinds(arm: Arm) -> list[str]:
    """The kinds of an arm's steps; none of one that somebody else has trained."""
    return [step.kind for step in steps_of(arm)]


def _is_short(kinds: list[str]) -> bool:
    """Whether a chain has a training on documents at most, and then an SFT at most."""
    return kinds in ([], ["documents"], ["sft"], ["documents", "sft"])


def _cell_of(checkpoint: Checkpoint, stage: str) -> Cell | None:
    """The cell of a stage in a short chain."""
    runs = (run_of(cell) for cell in checkpoint.steps if cell)
    return next((run for run in runs if run.stage == stage), None)


def _step(
    unit: str, kind: str, treatment: Cell | None, control: Cell | None, has_arms_dose: bool
) -> Iterator[Difference]:
    """What differs in one step of two chains.

    kind: of the step, in both. has_arms_dose: its doses are those of both arms, whose difference is
        the unit `dose`.
    """
    if not has_arms_dose:
        doses = [cell.settings.get("dose") if cell else 0 for cell in (treatment, control)]
        yield from _values(f"{unit}.dose", *doses)
    if treatment is None or control is None:
        return
    runs = [run_of(cell) for cell in (treatment, control)]
    rows: Iterable[Difference] = ()
    if kind == "documents":
        rows = _midtraining(*runs)
    elif kind == "sft":
        rows = _tuning("sft", *runs)
    elif kind == "rl":
        rows = _reinforcement(*runs)
    elif kind == "merge":
        rows = _merge(*runs)
    else:
        rows = _flattened("merge", *(cell.settings for cell in runs))
    for row in rows:
        # stepN has the recipe and data of an SFT or RL at once.
        yield replace(row, key=f"{unit}.{row.key.removeprefix('sft.').removeprefix('rl.')}")


def _merge(treatment: Cell, control: Cell) -> Iterator[Difference]:
    yield from _flattened("merge", treatment.settings, control.settings)
    others = [cell.inputs["other1"] for cell in (treatment, control)]
    # What both chains were after one step differs as the steps before do.
    steps = [_step_of(*pair) for pair in zip(others, (treatment, control), strict=True)]
    if None in steps or steps[0] != steps[1]:
        yield from _cells("merge.arm", *others)


def _step_of(other: Cell, merge: Cell) -> int | None:
    """After which step of its own chain a merge takes a model (0: the start); None: of another."""
    cell = merge.inputs["start"]
    chain = [cell.identity]
    while cell.stage != "model":
        cell = run_of(cell).inputs["start"]
        chain.insert(0, cell.identity)
    return chain.index(other.identity) if other.identity in chain else None


def _reinforcement(treatment: Cell, control: Cell) -> Iterator[Difference]:
    yield from _cells("prompts", *(cell.inputs["documents"] for cell in (treatment, control)))
    # A chat template is told of the start model.
    settings = [
        cell.settings | {"seed": None, "files": cell.settings["files"] | {"chat_template": None}}
        for cell in (treatment, control)
    ]
    yield from _flattened("rl", *settings)


def _midtraining(treatment: Cell | None, control: Cell | None) -> Iterator[Difference]:
    corpora = [cell and cell.inputs["documents"] for cell in (treatment, control)]
    yield from _cells("corpus", *corpora)
    if treatment and control:
        variants = [cell.settings.get("question_variant") for cell in (treatment, control)]
        yield from _values("corpus.question_variant", *variants)
        yield from _flattened("recipe", treatment.settings["recipe"], control.settings["recipe"])


def _tuning(unit: str, treatment: Cell, control: Cell) -> Iterator[Difference]:
    settings = [cell.settings for cell in (treatment, control)]
    yield from _flattened(f"{unit}.recipe", *(part["recipe"] for part in settings))
    # The learning rate of a shared run decays towards its longest dose.
    rest = [{**part, "shared_run": part["dose"] if "doses" in part else None} for part in settings]
    for part in rest:
        part["files"] = {"data": part["files"]["data"]}
    ours = ("recipe", "seed", "dose", "doses")
    yield from _flattened(
        unit, *({key: part[key] for key in part if key not in ours} for part in rest)
    )
    replayed = [cell.inputs.get("replay") for cell in (treatment, control)]
    if all(replayed):
        steps = [_replayed_step(cell) for cell in (treatment, control)]
        if None in steps or steps[0] != steps[1]:
            yield from _cells(f"{unit}.replay_corpus", *replayed)


def _replayed_step(tuning: Cell) -> int | None:
    """The training on the documents that an SFT replays, by its position before it; else None."""
    before = trainings_of(tuning.inputs["start"])
    corpora = [
        cell.inputs["documents"].identity if cell.stage == "midtrain" else "" for cell in before
    ]
    replayed = tuning.inputs["replay"].identity
    return corpora.index(replayed) if replayed in corpora else None


def _files(key: str, treatment: str | None, control: str | None) -> Iterable[Difference]:
    """Two files with a prompt or a chat template, by their contents."""
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
