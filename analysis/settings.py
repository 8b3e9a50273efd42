"""The settings of the analysis cell as typed objects."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from analysis.rows import Row


@dataclass(frozen=True)
class Contrast:
    """A declared comparison: the score of `treatment` minus that of `control`.

    Without `treatment_dose` and `control_dose` the arms are compared at each SFT dose that both
    have; with them, `treatment` at one dose is compared with `control` at the other.
    """

    name: str
    treatment: str  # an arm
    control: str  # an arm
    benchmarks: tuple[str, ...]
    family: str  # the p-values of a family are corrected together; "primary" is the main one
    treatment_dose: int | None = None  # rows of SFT data
    control_dose: int | None = None  # rows of SFT data
    only_doses: tuple[int, ...] | None = None  # of those that both have
    margin: float | None = None  # of equivalence, score units (0..1), above 0
    paired: bool = False  # runs of one seed share their midtraining in both arms
    differences: tuple[str, ...] = ()  # settings in which the arms differ, such as recipe.lr

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> "Contrast":
        return cls(
            name=settings["name"],
            treatment=settings["treatment"],
            control=settings["control"],
            benchmarks=tuple(settings["benchmarks"]),
            family=settings["family"],
            treatment_dose=settings.get("treatment_dose"),
            control_dose=settings.get("control_dose"),
            only_doses=settings.get("doses") and tuple(settings["doses"]),
            margin=settings.get("margin"),
            paired=bool(settings.get("paired")),
            differences=tuple(settings.get("differences", ())),
        )

    @property
    def arms(self) -> tuple[str, str]:
        return self.treatment, self.control

    @property
    def doses(self) -> tuple[int, int] | None:
        """The declared doses of `treatment` and `control`; None where all common doses count."""
        if self.treatment_dose is None or self.control_dose is None:
            return None
        return self.treatment_dose, self.control_dose

    def dose_pairs(self, treatment: Set[int], control: Set[int]) -> list[tuple[int, int]]:
        """The doses (of treatment, of control) to compare, of those that each side has."""
        if self.doses is not None:
            return [self.doses] if self.doses[0] in treatment and self.doses[1] in control else []
        common = treatment & control
        if self.only_doses is not None:
            common &= set(self.only_doses)
        return [(dose, dose) for dose in sorted(common)]

    def row(self) -> Row:
        """The entries that name the contrast in a row of results.json."""
        return {"name": self.name, "treatment": self.treatment, "control": self.control}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the study declares it."""

    task: str
    title: str | None  # in the notes of tables
    direction: str  # which scores are good: higher, lower or neither
    judge: str | None  # the model that decides; None where nothing is judged
    dummy: bool  # the judge is the kit's deterministic one
    other_judges: tuple[str, ...]  # their grades are reported and decide nothing
    exclude: tuple[str, ...]  # ids of questions that the study leaves out
    reference: str | None = None  # of a probe: the arm whose direction others are compared with

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> "Benchmark":
        return cls(
            task=settings["task"],
            title=settings.get("title"),  # older archives have none
            direction=settings["direction"],
            judge=settings["judge"],
            dummy=settings["dummy"],
            other_judges=tuple(settings["other_judges"]),
            exclude=tuple(settings["exclude"]),
            reference=settings.get("reference"),
        )

    def row(self) -> Row:
        """The benchmark's entries in results.json."""
        return {
            "task": self.task,
            "title": self.title,
            "direction": self.direction,
            "judge": self.judge,
            "dummy": self.dummy,
            "other_judges": list(self.other_judges),
            "exclude": list(self.exclude),
        }


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one checkpoint on one benchmark by one judge: `inputs[role]/scores.parquet`."""

    role: str
    arm: str
    seed: int | None  # the training seed; None for a model that was not trained
    dose: int  # rows of SFT data
    benchmark: str
    checkpoint: str  # the cell that made the weights
    answers: str | None = None  # the cell of its answers, where people have graded some
    other_judge: str | None = None  # set where another judge than the deciding one graded
    replicate: int | None = None  # of the arm's corpus, where that was written several times

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> "ScoreFile":
        return cls(
            role=settings["role"],
            arm=settings["arm"],
            seed=settings["seed"],
            dose=settings["dose"],
            benchmark=settings["benchmark"],
            checkpoint=settings["checkpoint"],
            answers=settings.get("answers"),
            other_judge=settings.get("judge"),
            replicate=settings.get("replicate"),
        )


@dataclass(frozen=True)
class Costs:
    """What more data would cost, in one unit of hours or money; None where it is not given."""

    unit: str = "GPU-hours"
    seed: float | None = None  # one more training of one arm, with its answers and grades
    question: float | None = None  # one more, asked of all checkpoints
    epoch: float | None = None  # one more answer to every question


@dataclass(frozen=True)
class AnalysisSettings:
    """Everything that the analysis of one study is told, apart from the scores."""

    study: str
    seeds: list[int]  # that are planned, in the order in which they are run
    looks: list[int]  # numbers of seeds at which the study is judged; empty: all
    declaration: Row | None  # sha256, and differences of the study file from it; None: no record
    score_files: list[ScoreFile]
    missing: list[Row]  # planned checkpoints without scores: arm, seed, dose, benchmark
    labels: dict[str, str]  # role of a file with grades by people -> benchmark
    contrasts: list[Contrast]
    benchmarks: dict[str, Benchmark]
    claim_roles: dict[
        str, str | int | float
    ]  # of the paper's claims: see analysis.claims; empty: none
    costs: Costs
    untrained: dict[str, str]  # arm -> the arm with its start model alone, where there is one
    writers: list[Row]  # corpus, model, dummy, matched_to; replicates where there are several
    column: str  # what tables are made for: single, double or slide
    rungs: dict[str, str]  # of the reproduction ladder, by arm; empty: all is this study's own
    ladder: list[dict[str, Any]]  # claim roles of further rungs
    prompts: dict[str, str]  # arms under a system prompt or a prefill, and the names of the files
    canary: dict[str, Row]  # role of a file with grades of the canary -> judge, items (a hash)

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> "AnalysisSettings":
        """From the `settings` of the analysis cell's config.yaml."""
        benchmarks = settings["benchmarks"]
        return cls(
            study=settings["study"],
            seeds=settings["seeds"],
            looks=settings["looks"],
            declaration=settings["declaration"],
            score_files=[ScoreFile.parse(row) for row in settings["rows"]],
            missing=settings["missing"],
            labels=settings["labels"],
            contrasts=[Contrast.parse(contrast) for contrast in settings["contrasts"]],
            benchmarks={name: Benchmark.parse(benchmarks[name]) for name in benchmarks},
            claim_roles=settings["claim_roles"],
            costs=Costs(**settings["costs"]),
            untrained=settings.get("untrained", {}),
            writers=settings["writers"],
            column=settings.get("tables", {}).get("column", "single"),
            rungs=settings.get("rungs", {}),
            ladder=settings.get("ladder", []),
            prompts=settings.get("prompts", {}),
            canary=settings.get("canary", {}),
        )

    @property
    def judges(self) -> dict[str, str | None]:
        """Benchmark -> the judge that decides."""
        return {name: benchmark.judge for name, benchmark in self.benchmarks.items()}

    @property
    def other_judges(self) -> dict[str, tuple[str, ...]]:
        """Benchmark -> the judges whose grades are reported beside."""
        return {name: benchmark.other_judges for name, benchmark in self.benchmarks.items()}

    @property
    def excluded(self) -> dict[str, tuple[str, ...]]:
        """Benchmark -> ids of the questions that the study leaves out."""
        return {name: benchmark.exclude for name, benchmark in self.benchmarks.items()}
