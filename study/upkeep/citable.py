"""What makes an archive citable: who to cite, the environment, a reproducibility checklist."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from core.stages import TRAINING_STAGES
from core.yaml_text import to_yaml

CITATION, ZENODO = "CITATION.cff", ".zenodo.json"
ENVIRONMENT, CHECKLIST = "environment.json", "checklist.md"
TO_STATE = "To be stated by the authors"
PAPER = {
    "type": "generic",
    "title": "Alignment Midtraining for Animals",
    "authors": [
        {"family-names": "Brazilek", "given-names": "Jasmine"},
        {"family-names": "Tidmarsh", "given-names": "Miles"},
    ],
    "year": 2026,
    "url": "https://arxiv.org/abs/2604.13076",
}
BIBTEX = (
    "@misc{brazilek2026alignment, title={Alignment Midtraining for Animals}, year={2026}, "
    "author={Brazilek, Jasmine and Tidmarsh, Miles}, eprint={2604.13076}, archivePrefix={arXiv}}"
)
Manifests = Mapping[str, Mapping[str, Any]]


def citation(study: str, ended: str) -> str:
    """CITATION.cff of the archive; its authors are for the authors to state."""
    entry = {
        "cff-version": "1.2.0",
        "message": "Cite this archive and the paper that it reproduces.",
        "title": f"Replication archive of the study {study}",
        "type": "dataset",
        "authors": [{"name": TO_STATE}],
        "date-released": ended[:10],
        "references": [PAPER],
    }
    return to_yaml(entry)


def zenodo(study: str) -> str:
    """.zenodo.json of the archive, for its deposit at Zenodo."""
    entry = {
        "title": f"Replication archive of the study {study}",
        "upload_type": "dataset",
        "description": "Settings, manifests, ledgers, scores, tables and report of a study; "
        "no weights. README.md says what each file is.",
        "creators": [{"name": TO_STATE}],
        "related_identifiers": [{"identifier": "arXiv:2604.13076", "relation": "isDerivedFrom"}],
    }
    return json.dumps(entry, indent=1) + "\n"


def environment(manifests: Manifests) -> str:
    """environment.json: in what the cells ran, each with the number of cells.

    The locks of the packages are files of the code.
    """
    cells = manifests.values()
    packages: dict[str, Counter[str]] = {}
    variables: dict[str, Counter[str]] = {}
    for manifest in cells:
        for name, version in manifest["packages"].items():
            packages.setdefault(name, Counter())[version] += 1
        for name, value in (manifest.get("environment") or {}).items():
            variables.setdefault(name, Counter())[str(value)] += 1
    hardware = [manifest.get("hardware") or {} for manifest in cells]
    data = {
        "packages": {name: dict(counts) for name, counts in sorted(packages.items())},
        "variables": {name: dict(counts) for name, counts in sorted(variables.items())},
        "hosts": _counts(manifest["host"] for manifest in cells),
        "gpus": _counts(gpu for row in hardware for gpu in row.get("gpus", [])),
        "drivers": _counts(row.get("driver") for row in hardware),
        "processors": _counts(row.get("processor") for row in hardware),
        "kernels": _counts(row.get("kernel") for row in hardware),
        "slurm": {
            "jobs": len({manifest["slurm_job"] for manifest in cells} - {None}),
            "clusters": _counts(row.get("slurm_cluster") for row in hardware),
            "partitions": _counts(row.get("slurm_partition") for row in hardware),
        },
        "commits": _counts(_commit(manifest) for manifest in cells),
    }
    return json.dumps(data, indent=1) + "\n"


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    """Each value that is on record, and in how many cells; the most frequent first."""
    return dict(Counter(value for value in values if value).most_common())


def _commit(manifest: Mapping[str, Any]) -> str:
    code = manifest["code"]
    return f"{code['commit'] or 'unknown'}{' with changes' if code['dirty'] else ''}"


def checklist(manifests: Manifests, results: Mapping[str, Any]) -> str:
    """checklist.md: the questions of conferences' reproducibility checklists that files answer.

    They are those of the NeurIPS paper checklist, in the kit's words. Questions about the text of
    a paper are left to its authors.
    """
    rows = [
        ("Claims", TO_STATE, "whether the abstract claims what results/headline.txt says"),
        ("Limitations", TO_STATE, "results/report.html lists missing data, bounds and notes"),
        ("Theory and proofs", "Not applicable", "nothing is proved"),
        *_evidence(manifests, results),
        ("Ethics, broader impact, safeguards", TO_STATE, ""),
        ("Licences of models, data and benchmarks", TO_STATE, f"used are {_assets(manifests)}"),
        ("New assets and their documentation", "Yes", "README.md, croissant.json, cards"),
        ("People as subjects or paid workers", *_people(results)),
        ("Use of language models", "Yes", _language_models(results)),
    ]
    lines = ["# Reproducibility checklist", ""]
    lines += ["Answers come from manifests and results. Check them, and state what is left.", ""]
    lines += ["| Question | Answer | Why, or where to look |", "|---|---|---|"]
    lines += [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _evidence(manifests: Manifests, results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The questions that manifests and results answer."""
    contrasts = results["contrasts"]
    seeds = sorted({row["seeds"] for row in contrasts})
    tested = [row for row in contrasts if row["low"] is not None]
    trained = [m for m in manifests.values() if m["stage"] in TRAINING_STAGES]
    declared = results["declaration"]
    if declared is None:
        when = "No", "no record that anything was declared before the data"
    elif declared["differences"]:
        when = "In part", f"not as declared: {'; '.join(declared['differences'])}"
    else:
        when = "Yes", f"results/declaration.json, sha256 {declared['sha256'][:12]}"
    few = [number for number in seeds if number < 2]
    error_bars = "Yes" if tested and not few else "In part" if tested else "No"
    hours = sum(_hours(manifest) for manifest in manifests.values())
    return [
        (
            "Can the results be computed again?",
            "Yes",
            "from this archive alone: `study verify` and `study report` of it",
        ),
        (
            "Are code and data open?",
            "In part",
            "code, settings and scores are here; weights are not, and benchmarks are fetched",
        ),
        (
            "Are all settings given?",
            "Yes",
            f"cells/*/*/config.yaml; {len(trained)} trainings with steps and losses in "
            "manifest.json and metrics.jsonl",
        ),
        (
            "Are intervals given, and what varies in them?",
            error_bars,
            f"{len(tested)} of {len(contrasts)} contrasts have an interval over training seeds "
            f"and questions; seeds per arm: {', '.join(map(str, seeds)) or 'none'}",
        ),
        ("Was it declared before the data?", *when),
        (
            "What did it take to compute?",
            "Yes",
            f"{hours:,.1f} hours of {len(manifests)} cells, each in its manifest; "
            "hardware in environment.json. Failed and repeated runs are not counted",
        ),
    ]


def _hours(manifest: Mapping[str, Any]) -> float:
    start, end = (datetime.fromisoformat(manifest[key]) for key in ("started", "ended"))
    return (end - start).total_seconds() / 3600


def _assets(manifests: Manifests) -> str:
    """The start models, corpora and benchmarks, by the names of their cells."""
    names = sorted(
        f"{manifest['stage']} {manifest['name']}"
        for manifest in manifests.values()
        if manifest["stage"] in ("model", "documents")
    )
    return ", ".join(names) or "none of its own"


def _people(results: Mapping[str, Any]) -> tuple[str, str]:
    graded = [n for n, row in results["benchmarks"].items() if "human" in row["other_judges"]]
    if graded:
        return TO_STATE, f"people graded answers of {', '.join(graded)}"
    return "Not applicable", "no person graded or wrote anything here"


def _language_models(results: Mapping[str, Any]) -> str:
    writers = {row["model"] for row in results["writers"] if row["model"]}
    judges = {row["judge"] for row in results["benchmarks"].values() if row["judge"]}
    names = [", ".join(sorted(models)) or "none" for models in (writers, judges)]
    return f"documents by {names[0]}; scores by {names[1]}"
