"""The archive's metadata for machines: every cell an action, valid by the public validator."""

import fnmatch
import json
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from core.paths import ROOT
from study.upkeep.ro_crate import NAME
from tests.study.test_archive import SMALL, finished, make, members

pytestmark = pytest.mark.multiprocess
# The context that ro-crate-py ships, as an answer in the validator's cache: it needs no network.
WARM = """
import io, sys
from pathlib import Path
import rocrate
from requests.adapters import BaseAdapter, HTTPAdapter
from requests_cache import CachedSession
from urllib3 import HTTPResponse

class Shipped(BaseAdapter):
    def send(self, request, **options):
        body = (Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_bytes()
        kind = {"Content-Type": "application/ld+json"}
        options = dict(preload_content=False, request_url=request.url)
        raw = HTTPResponse(body=io.BytesIO(body), status=200, headers=kind, **options)
        return HTTPAdapter().build_response(request, raw)
    def close(self):
        pass

session = CachedSession(sys.argv[1], expire_after=-1, backend="sqlite", allowable_methods=("GET",))
session.mount("https://", Shipped())
kinds = {"Accept": "application/ld+json, application/json"}
session.get("https://w3id.org/ro/crate/1.1/context", headers=kinds)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small study's archive: name -> content. Its study file has a name with blanks."""
    base = finished(tmp_path_factory.mktemp("study") / "work/runs")
    study = shutil.copy(SMALL, base.parents[1] / "our study #2, 50 %.yaml")
    return members(Path(make(base, "a.zip", study=Path(study))["path"]))


def test_every_cell_is_made_by_an_action_from_its_inputs(packed: dict[str, bytes]) -> None:
    files = {name.removeprefix("small/") for name in packed}
    graph = json.loads(packed[f"small/{NAME}"])["@graph"]
    entities: dict[str, Any] = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    described = {name for name, entity in entities.items() if entity["@type"] == "File"}
    assert {*map(unquote, described)} == files - {NAME, "SHA256SUMS"}
    assert "study/our%20study%20%232%2C%2050%20%25.yaml" in described
    manifests = fnmatch.filter(files, "cells/*/*/manifest.json")
    cells = {name.rpartition("/")[0] for name in manifests}
    assert {f"{cell}/" for cell in cells} == {
        name for name in entities if name[:6] == "cells/"
    } - files
    actions = [entity for entity in graph if entity["@type"] == "CreateAction"]
    assert {action["result"]["@id"] for action in actions} == {f"{cell}/" for cell in cells}
    for action in actions:
        folder = action["result"]["@id"]
        manifest = json.loads(packed[f"small/{folder}manifest.json"])
        used = action.get("object", [])
        used = [used] if isinstance(used, dict) else used
        assert {one["@id"] for one in used} == {
            f"cells/{source['cell']}/" for source in manifest["inputs"].values()
        }
        assert (action["startTime"], action["endTime"]) == (manifest["started"], manifest["ended"])
    for entity in graph:
        for value in entity.values():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict) and "://" not in part["@id"]:
                    assert part["@id"] in entities


@pytest.mark.nightly
def test_the_public_validators_pass_it(packed: dict[str, bytes], tmp_path: Path) -> None:
    """In an environment of their own: they pin older packages."""
    for name, content in packed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    venv.create(tmp_path / "venv", with_pip=True)

    def run(*command: str) -> str:
        tool = str(tmp_path / "venv/bin" / command[0])
        ran = subprocess.run([tool, *command[1:]], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    run("pip", "install", "-q", "roc-validator", "rocrate", "cffconvert")
    cache = str(tmp_path / "cache")
    run("python", "-c", WARM, cache)
    options = ["-p", "process-run-crate", "--offline", "--cache-path", cache, "-v", "--no-paging"]
    said = run("rocrate-validator", "validate", *options, str(tmp_path / "small"))
    assert "RO-Crate is a valid process-run-crate" in said
    for file in (ROOT / "CITATION.cff", tmp_path / "small/CITATION.cff"):
        assert "valid" in run("cffconvert", "--validate", "-i", str(file))
