"""ro-crate-metadata.json of an archive: RO-Crate 1.1 with the profile Process Run Crate 0.5.

Each cell is a folder (a Dataset) that one action made from the folders of its inputs.
Specification: https://w3id.org/ro/crate/1.1 and https://w3id.org/ro/wfrun/process/0.5.
"""

import json
import mimetypes
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

NAME = "ro-crate-metadata.json"
CRATE = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
KIT = "#kit"
LICENSE = "#license"
Entity = dict[str, Any]


def crate(study: str, names: Collection[str], manifests: Mapping[str, dict[str, Any]]) -> str:
    """The text of the file.

    Args:
        study: The study's name.
        names: The files in the archive.
        manifests: `STAGE/CELL` -> the manifest of each cell in it. The last to end is the analysis.
    """
    code = next(m["code"] for m in manifests.values() if m["stage"] == "analysis")
    files = sorted(names)
    cells = sorted(manifests)
    roots = [file for file in files if not file.startswith("cells/")]
    entities = [
        {
            "@id": NAME,
            "@type": "CreativeWork",
            "conformsTo": {"@id": CRATE},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Replication archive of the study {study}",
            "description": "Settings, manifests, ledgers, scores, tables and report of a study; "
            "no weights. README.md says what each file is.",
            "datePublished": max(manifest["ended"] for manifest in manifests.values()),
            "license": {"@id": LICENSE},
            "conformsTo": {"@id": PROFILE},
            "hasPart": _ids([*map(quote, roots), *map(_folder, cells)]),
            "mentions": _ids(map(_action, cells)),
        },
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": LICENSE,
            "@type": "CreativeWork",
            "name": "To be stated by the authors",
            "description": "The archive is the study's authors'. Models, benchmarks and data that "
            "it names have licences of their own.",
        },
        {
            "@id": KIT,
            "@type": "SoftwareApplication",
            "name": "Alignment midtraining for animals: a reproduction kit",
            "softwareVersion": f"commit {code['commit'] or 'unknown'}",
            "url": "https://arxiv.org/abs/2604.13076",
        },
    ]
    for file in files:
        entities.append(_file(file))
    for cell in cells:
        parts = [file for file in files if file.startswith(_folder(cell))]
        entities += _cell(cell, manifests[cell], manifests, parts)
    context = f"{CRATE}/context"
    return json.dumps({"@context": context, "@graph": entities}, indent=1) + "\n"


def _cell(
    cell: str, manifest: dict[str, Any], manifests: Mapping[str, Any], parts: list[str]
) -> Iterator[Entity]:
    """The folder of a cell, and the action that made it."""
    stage, name = manifest["stage"], manifest["name"]
    yield {
        "@id": _folder(cell),
        "@type": "Dataset",
        "name": f"{stage} {name}",
        "description": f"Settings, manifest and log of the {stage} cell {name}",
        "identifier": manifest["identity"],
        "hasPart": _ids(map(quote, parts)),
    }
    inputs = (
        "/".join(used["cell"].split("/")[-2:]) for used in manifest["inputs"].values()
    )  # a cell of another study is packed here too
    action = {
        "@id": _action(cell),
        "@type": "CreateAction",
        "name": f"{stage} {name}",
        "description": f"Run of the {stage} cell {name} on {manifest['host']}",
        "instrument": {"@id": KIT},
        "startTime": manifest["started"],
        "endTime": manifest["ended"],
        "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        "object": _ids(sorted({_folder(used) for used in inputs if used in manifests})),
        "result": _ids([_folder(cell)]),
    }
    yield {key: value for key, value in action.items() if value != []}


def _file(name: str) -> Entity:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # An @id is part of an address, in which a blank is %20.
    entity = {"@id": quote(name), "@type": "File", "name": name.rpartition("/")[2]}
    return {**entity, "encodingFormat": kind}


def _folder(cell: str) -> str:
    return f"cells/{cell}/"


def _action(cell: str) -> str:
    return f"#run-{cell.replace('/', '-')}"


def _ids(names: Iterable[str]) -> list[Entity] | Entity:
    """References; one alone is no list (JSON-LD, compacted)."""
    references = [{"@id": name} for name in names]
    return references[0] if len(references) == 1 else references
