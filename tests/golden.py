"""The identities of studies/tiny.yaml, so that a release says which cells become new: python -m
tests.golden

A changed identity makes everybody who has a runs folder compute, and pay, again. Therefore the list
may change only together with a new version whose section of CHANGELOG.md names the stages of the
cells that become new.
"""

import json
import platform
import re
import sys
import tomllib

from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study

FILE = ROOT / "tests/golden.json"
HEADING = "### Cells that become new"


def identities() -> dict[str, str]:
    """ "STAGE/NAME" -> identity of every cell of studies/tiny.yaml, as a fixed Python version would
    have them."""
    version = platform.python_version
    platform.python_version = lambda: (
        "3.11.2"
    )  # the toy model reads the English of this Python's documentation
    try:
        cells = expand.in_order(expand.analysis(load_study(ROOT / "studies/tiny.yaml")))
    finally:
        platform.python_version = version
    return {f"{cell.stage}/{cell.name}": cell.identity for cell in cells}


def current_version() -> str:
    return str(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    )


def new_cells(version: str) -> str:
    """What the section of a version in CHANGELOG.md says of cells that become new; empty without
    such a section."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(version)}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    return section[0].partition(HEADING)[2].split("###")[0].strip() if section else ""


def main() -> int:
    """Write the list anew. 2 where the version or the changelog does not allow it."""
    stored, now, version = (
        json.loads(FILE.read_text(encoding="utf-8")),
        identities(),
        current_version(),
    )
    if stored["identities"] == now and stored["version"] == version:
        return 0
    changed = {key.split("/")[0] for key in now if stored["identities"].get(key) != now[key]}
    if changed and stored["version"] == version:
        print(
            f"error: pyproject.toml: version is still {version}; set the next version",
            file=sys.stderr,
        )
        return 2
    if lacking := sorted(stage for stage in changed if stage not in new_cells(version)):
        print(
            f"error: CHANGELOG.md: section {version}: {HEADING!r} does not name {', '.join(lacking)}",
            file=sys.stderr,
        )
        return 2
    FILE.write_text(
        json.dumps({"version": version, "identities": now}, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
