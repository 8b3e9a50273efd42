"""What a study declares before its first score, and how its file differs from that later."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.declaration import FILE, content_sha256, read_declaration, write_declaration
from core.stages import EVALUATION_STAGES
from study.spec import benchmarks
from study.spec.chains import corpora_of, replicates_of
from study.spec.checkpoint import prompts_of
from study.spec.doses import doses
from study.spec.fingerprints import model_name
from study.spec.schema import Benchmark, Study
from study.spec.sources import identities

Content = dict[str, Any]
EVALUATIONS = EVALUATION_STAGES | {"judge"}
ALPHA = 0.05  # of a family, over all looks (analysis.estimates.ALPHA)


def content_of(study: Study) -> Content:
    """What a study declares, of its settings as resolved."""
    replicates = {
        name: replicates_of(study, arm)
        for name, arm in sorted(study.arms.items())
        if corpora_of(study, arm)
    }
    is_ordered = study.looks or any(count > 1 for count in replicates.values())
    content = {
        # Their order counts where looks take the first of them, or replicates are trained in turn.
        "seeds": study.seeds if is_ordered else sorted(study.seeds),
        "replicates": replicates,
        "looks": study.looks,
        "alpha": ALPHA,
        "contrasts": [asdict(contrast) for contrast in study.contrasts],
        "doses": {arm: doses(study, arm) for arm in sorted(study.arms)},
        "benchmarks": {
            name: _benchmark(study, bench) for name, bench in sorted(study.benchmarks.items())
        },
        "claim_roles": study.claim_roles,
    }
    prompts = {
        name: identities({key: {"path": path} for key, path in prompts_of(arm)})
        for name, arm in sorted(study.arms.items())
        if prompts_of(arm)
    }
    if prompts:
        content["prompts"] = prompts
    as_read: Content = json.loads(json.dumps(content))
    return as_read


def _benchmark(study: Study, bench: Benchmark) -> Content:
    return {
        "task": bench.task,
        **identities(benchmarks.sources(bench)),  # questions and rubric, by their hashes
        "judge": model_name(study, bench.judge),
        "epochs": bench.epochs,
        "exclude": sorted(bench.exclude),
        "arms": bench.arms and sorted(bench.arms),
        "doses": bench.doses and sorted(bench.doses),
    }


def declare(study: Study, base: Path, cells: Iterable[Cell]) -> Content | None:
    """The declaration of the study in `base` (core.declaration). It is written if there is none.

    Where all finished evaluations are of another folder of the runs folder with the same
    declaration, as in a copy from another machine, that is taken over. None where it is too late
    for one: an evaluation is finished. `cells`: all of the study.
    """
    if not (base / FILE).exists():
        content = content_of(study)
        folders = _scored_folders(base, cells)
        if not folders and not _has_scores(base):
            write_declaration(base, content)
        elif record := _copied(folders, content):
            write_declaration(base, content, record["time"])
    return read_declaration(base)


def _copied(folders: set[Path], content: Content) -> Content | None:
    """The first of the declarations of the folders that the finished evaluations are in.

    None where one of them declares another content, or none.
    """
    records = [read_declaration(folder) for folder in sorted(folders)]
    if not all(record and record["declared"] == content for record in records):
        return None
    return min(filter(None, records), key=lambda record: record["time"], default=None)


def planned(
    study: Study, base: Path | None, cells: Iterable[Cell]
) -> tuple[Content | None, Content]:
    """What the results say of the declaration, and the declared content.

    The first has `sha256` and `differences` of the study file. It is None where no record shows
    that anything was declared before the data; then the study file's content is the second. Of a
    study without evaluations it is what `declare` will write.

    Args:
        study: The study file as it is now.
        base: The study's folder; None: nothing is there.
        cells: Cells of the study, with their folders.
    """
    now = content_of(study)
    record = read_declaration(base) if base else None
    folders = _scored_folders(base, cells) if base and not record else set()
    record = record or _copied(folders, now)
    if record:
        differences = [*find_differences(record["declared"], now)]
        return {"sha256": record["sha256"], "differences": differences}, record["declared"]
    if base and (folders or _has_scores(base)):
        return None, now
    return {"sha256": content_sha256(now), "differences": []}, now


def _scored_folders(base: Path, cells: Iterable[Cell]) -> set[Path]:
    """The folders of the studies that the finished evaluations among `cells` are in."""
    return {
        folder.parents[1]
        for folder in (base / cell.relpath for cell in cells if cell.stage in EVALUATIONS)
        if (folder / "manifest.json").exists()
    }


def _has_scores(base: Path) -> bool:
    """Whether any evaluation in the study's folder is finished, of whatever study file."""
    stages = sorted(EVALUATIONS)
    return any(next(base.glob(f"{stage}/*/manifest.json"), None) for stage in stages)


def find_differences(declared: Content, now: Content) -> Iterator[str]:
    """How the study file differs from the declaration, such as "seeds 0, 1, 2 (declared 0, 1)"."""
    before, after = (
        {contrast["name"]: contrast for contrast in content["contrasts"]}
        for content in (declared, now)
    )
    for name in dict.fromkeys([*after, *before]):
        yield from _differences(f"contrast {name}", before.get(name), after.get(name))
    yield from _regrouped(before, after)
    for key in sorted((declared.keys() | now.keys()) - {"contrasts"}):
        yield from _differences(key, declared.get(key), now.get(key))


def _differences(path: str, declared: Any, now: Any) -> Iterator[str]:
    if declared == now:
        return
    if isinstance(declared, dict) and isinstance(now, dict):
        for key in sorted(declared.keys() | now.keys()):
            yield from _differences(f"{path}: {key}", declared.get(key), now.get(key))
    elif declared is None and isinstance(now, dict):
        yield f"{path}: not declared"
    elif now is None and isinstance(declared, dict):
        yield f"{path}: declared, and left out now"
    elif ": files: " in path:
        yield f"{path}: another content than declared"
    else:
        yield f"{path} {_shown(now)} (declared {_shown(declared)})"


def _regrouped(before: dict[str, Content], after: dict[str, Content]) -> Iterator[str]:
    """A line where families do not have the contrasts that they were declared with."""
    families = dict.fromkeys(row["family"] for row in [*after.values(), *before.values()])
    texts = []
    for family in families:
        then, today = (
            [name for name, row in rows.items() if row["family"] == family]
            for rows in (before, after)
        )
        if sorted(then) != sorted(today):
            texts.append(f"{family} has {_shown(today)} (declared {_shown(then)})")
    if texts:
        yield f"families regrouped: {'; '.join(texts)}"


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
