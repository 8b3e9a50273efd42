"""Check what is on disk against the manifests."""

from pathlib import Path

from study.cells import Cell, read_manifest, sha256


def verify(cells: list[Cell], base: Path) -> tuple[int, list[dict[str, str]]]:
    """Hash every output of every cell, and follow every input to the manifest it had when it was used.

    Returns the number of files checked and the faults, each {"cell", "file", "fault"}.
    """
    faults, checked = [], 0
    for cell in cells:
        folder = base / cell.place
        manifest = read_manifest(folder)
        if not manifest:
            faults.append({"cell": cell.place, "file": "manifest.json", "fault": "not finished"})
            continue
        for role, wanted in manifest["inputs"].items():
            path = base / wanted["cell"] / "manifest.json"
            if not path.exists() or sha256(path) != wanted["manifest_sha256"]:
                faults.append({"cell": cell.place, "file": role, "fault": f"{wanted['cell']} was made again since"})
        for name, wanted in manifest["outputs"].items():
            checked += 1
            path = folder / name
            if not path.exists():
                faults.append({"cell": cell.place, "file": name, "fault": "missing"})
            elif sha256(path) != wanted["sha256"]:
                faults.append({"cell": cell.place, "file": name, "fault": "changed since it was made"})
    return checked, faults
