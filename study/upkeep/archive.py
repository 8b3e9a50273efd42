"""One file to replicate a study's numbers from.

It holds settings, manifests, ledgers, scores and tables; no weights and no keys.
"""

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.claims_file import CLAIMS as ALL_CLAIMS
from core.cell.identity import read_config
from core.cell.lookup import RunsIndex, input_folder
from core.cell.manifest import read_manifest
from core.errors import Problem, UserError
from core.files import sha256
from core.paths import ROOT, resolve
from core.stages import CHECKPOINT_STAGES
from core.yaml_text import from_yaml
from study.upkeep import citable, croissant, ro_crate
from study.upkeep.packed_code import KIT, code_files
from study.upkeep.provenance import read_from
from study.upkeep.unpacked import CLAIMS, PACKED, REPLACED

# Files of a training; a corpus' held_out.jsonl holds documents.
TRAINING_FILES = ("metrics.jsonl", "speed.jsonl", "held_out.jsonl")
# Questions in full, which may be under a licence.
SAMPLES = ("samples.eval", "scored.eval", "samples.jsonl")


@dataclass(frozen=True)
class Secret:
    """A kind of key that no file may hold."""

    what: str
    substring: str  # a part of it that is found quickly
    pattern: str


_EDGE = r"(?<![A-Za-z0-9+/_-])"  # base64 of pictures must not look like keys
SECRETS = (
    Secret("a key that begins with sk-", "sk-", _EDGE + r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}"),
    Secret("a Hugging Face token", "hf_", _EDGE + r"hf_[A-Za-z0-9]{20,}"),
    Secret("a Google key", "AIza", _EDGE + r"AIza[A-Za-z0-9_-]{35}"),
    Secret("an xAI key", "xai-", _EDGE + r"xai-[A-Za-z0-9]{20,}"),
    Secret("a GitHub token", "gh", _EDGE + r"(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{30,}"),
    Secret("an AWS key", "AKIA", _EDGE + r"AKIA[0-9A-Z]{16}\b"),
    Secret(
        "a bearer token",
        "earer",
        r"\b[Bb]earer(?:\s|%20)+(?=[A-Za-z._~+/-]*\d)[A-Za-z0-9._~+/-]{16,}",
    ),
    Secret("a password in a URL", "://", r"://[^/\s:@\"']+:[^/\s:@\"']{3,}@"),
    Secret("a private key", "PRIVATE KEY", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
)
# Of an environment variable whose value no file may hold.
SECRET_NAME = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD)$")
REMOVE = "remove it there, give up that key, and archive again"
HOME = re.compile(rb"(?<![\w.~-])(?:/root|/home/[\w.-]+|/Users/[\w.-]+)(?![\w.-])")
README = """# Replication archive of the study `{study}`

- `study/`: the study file
- `results/study.yaml`: the same as one file, with the `--seeds` and `--set` of the command line
- `claims.yaml`: the claims of the paper that the results answer
- `cells/STAGE/CELL/config.yaml`: every setting of a cell, recipes and templates too
- `cells/.../manifest.json`: hashes of inputs and outputs, seeds, versions, counts, cost, times;
  `log.txt` beside it
- `cells/documents/.../corpus_stats.json`: what a corpus is made of
- `cells/documents/.../match.json`: how it differs from the corpus that it is matched to
- `calls.jsonl` of corpora and judges: the ledger of calls, each with the hash of its request, the
  reply, tokens and cost
- `cells/.../scores.parquet`: scores of a checkpoint
- `cells/.../directions.npz`: of a probe, the direction and the AUROC of each layer
- an input whose path begins with `../` was made in another study; it is below `cells/` here too
- `results/declaration.json`: what was declared before the first score, and when;
  `results/looks.json`: the verdicts of the looks that were taken
- `results/`: the long table of all scores (`scores.parquet`), results.json, tables, figures and
  report, as they were published
- `sha256sum -c SHA256SUMS` checks all files
- `code/kit.tar`: the kit at the commit of the analysis, with the locks of its packages;
  `code/changes.diff`: how the checkout differed from it when this was packed
- `environment.json`: packages, variables, hosts, GPUs, drivers, Slurm and commits of the cells
- `croissant.json`: what each column of `results/scores.parquet` is (Croissant 1.0)
- `checklist.md`: the questions of a reproducibility checklist, answered from these files
- `CITATION.cff`, `.zenodo.json`: for its citation and deposit; state the authors there
- `ro-crate-metadata.json`: the same for machines (RO-Crate 1.1, Process Run Crate 0.5): which
  action made which cell of which others. State the licence of your results there

Not in it: weights; corpora, except examples on their cards and replies in their ledgers{samples}.
What judges reply may quote a few words of either, and the report shows a few of both.
{replaced}
## The analysis again

`python -m study verify` and `report` take this archive as it is. The tables alone, in the kit's
folder, at commit {commit} ({dirty}), with its environment (`make environment`):

```python
import json, pathlib, pandas, yaml
from analysis.results import analyze
from analysis.robustness import holds_of, robustness_rows
from analysis.rows import to_jsonable
from analysis.settings import AnalysisSettings
from analysis.table import primary_judge_rows

archive = "PATH/{study}"
config = yaml.safe_load(open(f"{{archive}}/cells/{analysis}/config.yaml"))
settings = AnalysisSettings.parse(config["settings"])
table = pandas.read_parquet(f"{{archive}}/results/scores.parquet")
looks = pathlib.Path(f"{{archive}}/results/looks.json")
looks = json.loads(looks.read_text()) if looks.exists() else None
results = analyze(primary_judge_rows(table, settings.other_judges), settings, looks)
contrasts = results["contrasts"]
checks = to_jsonable(robustness_rows(table, contrasts, settings.other_judges, settings.seeds))
for row in contrasts:
    row["holds"] = holds_of(row, checks)
published = json.load(open(f"{{archive}}/results/results.json"))
print({{name: results[name] == published[name] for name in results}})
```

## The study again

`python -m study run PATH/{study}/results/study.yaml` (or `submit`) there. Writers and judges need
keys, in the variables that `key_env` names; their answers, and so documents and grades, may differ.
A ledger that is put into its cell's folder (`runs/{study}/STAGE/CELL/calls.jsonl`) is used instead
of calls.
"""


def archive(
    study_file: Path, base: Path, results: Path, path: Path, samples: bool = False
) -> dict[str, Any]:
    """Write the archive of a published study as one .tar.gz or .zip.

    The same files give the same bytes. base: the study's folder below runs. results: what was
    published; the cells that it was made of, by their manifests, are packed. samples: questions and
    answers in full, too. Paths of this machine (checkout, runs, homes) are replaced in texts.
    Returns path, sha256, files, cells, and the names of `replaced` files. Raises UserError for each
    file that holds a key, or the path of a home where it can't be replaced.
    """
    if not path.name.endswith((".tar.gz", ".zip")):
        raise UserError(
            where=str(path), what="an archive ends in .tar.gz or .zip", fix="name it so"
        )
    manifest = read_manifest(results)
    if not manifest:
        raise UserError(
            where=str(results),
            what="holds no results",
            fix="publish them again: python -m study run, as before",
        )
    analysis = RunsIndex(base, ["analysis"]).finished("analysis", manifest["identity"])
    if not analysis:
        raise UserError(
            where=str(results),
            what="the analysis that they were copied from is gone",
            fix="make it anew: python -m study run, as before",
        )
    cells = sorted(cells_behind(analysis))
    sources = _sources(study_file, base, results, cells, samples)
    sources |= _claims(analysis)
    secrets = _secret_values(sources)
    sums: list[str] = []
    replaced: dict[str, str] = {}  # name -> sha256 of the file as it is here
    problems: list[Problem] = []
    for name, file in sources.items():  # one at a time: ledgers are large
        content = file.read_bytes()
        clean = _clean(name, content, base)
        sums.append(f"{hashlib.sha256(clean).hexdigest()}  {name}\n")
        if clean != content:
            replaced[name] = hashlib.sha256(content).hexdigest()
        problems += [Problem(str(file), what, fix) for what, fix in _leaks(name, clean, secrets)]
    if problems:
        raise UserError.of(problems)
    readme = _readme(study_file, base, _packed_as(analysis), manifest["code"], samples, replaced)
    manifests = {_packed_as(cell): read_manifest(cell) or {} for cell in cells}
    written = {"README.md": readme, REPLACED: json.dumps(replaced, indent=1).encode()}
    written |= _citable(base.name, results, sources, manifests)
    for name, content in code_files(**manifest["code"]).items():
        written[name] = content if name == KIT else _clean(name, content, base)
        # The kit's tests hold what looks like keys and homes.
        find = _values if name == KIT else _leaks
        leaks = find(name, written[name], secrets)
        problems += [Problem(name, what, fix) for what, fix in leaks]
    if problems:
        raise UserError.of(problems)
    written[ro_crate.NAME] = ro_crate.crate(base.name, [*written, *sources], manifests).encode()
    sums += [f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in written.items()]
    written["SHA256SUMS"] = "".join(sums).encode()
    names = [*written, *sources]

    def content_of(name: str) -> bytes:
        return written.get(name) or _clean(name, sources[name].read_bytes(), base)

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = _zip if path.suffix == ".zip" else _tar
    with open(temporary, "wb") as packed:
        pack(packed, base.name, names, content_of)
    temporary.rename(path)
    return {
        "path": str(path),
        "sha256": sha256(path),
        "files": len(names),
        "cells": len(cells),
        "replaced": [*replaced],
    }


def _citable(
    study: str, results: Path, sources: dict[str, Path], manifests: dict[str, dict[str, Any]]
) -> dict[str, bytes]:
    """The files by which an archive is cited, deposited, read and checked."""
    ended = max(manifest["ended"] for manifest in manifests.values())
    data = json.loads((results / "results.json").read_text(encoding="utf-8"))
    files = {
        citable.CITATION: citable.citation(study, ended),
        citable.ZENODO: citable.zenodo(study),
        citable.ENVIRONMENT: citable.environment(manifests),
        citable.CHECKLIST: citable.checklist(manifests, data),
    }
    if table := sources.get(croissant.TABLE):
        import pyarrow.parquet

        columns = pyarrow.parquet.read_schema(table).names
        files[croissant.NAME] = croissant.croissant(
            study, columns, sha256(table), ended, citable.BIBTEX
        )
    return {name: text.encode() for name, text in files.items()}


def cells_behind(analysis: Path) -> set[Path]:
    """The folders of the cell `analysis` and of all that it was made of, by their manifests.

    Some may be those of other studies. Raises UserError where one is not there.
    """
    cells: set[Path] = set()
    remaining = [analysis]
    problems = []
    while remaining:
        folder = remaining.pop()
        if folder in cells:
            continue
        cells.add(folder)
        if not folder.resolve().is_relative_to(analysis.parents[2].resolve()):
            what = "lies outside the runs folder"
            problems.append(Problem(str(folder), what, "move it there, or run the study again"))
            continue
        if manifest := read_manifest(folder):
            inputs = manifest["inputs"].values()
            remaining += [input_folder(folder.parents[1], used) for used in inputs]
        else:
            what = "is not finished, but the published results need it"
            problems.append(Problem(str(folder), what, "run the study again"))
    if problems:
        raise UserError.of(sorted(problems, key=str))
    return cells


def _packed_as(folder: Path) -> str:
    """STAGE/CELL: the name of a cell in the archive, whichever study it was made in."""
    return f"{folder.parent.name}/{folder.name}"


def _sources(
    study_file: Path, base: Path, results: Path, cells: list[Path], samples: bool
) -> dict[str, Path]:
    """The files to pack by their names in the archive, sorted."""
    sources = {f"study/{file.name}": file for file in _extended(study_file)}
    sources["fetched.json"] = base / "fetched.json"
    sources |= {f"results/{file.relative_to(results)}": file for file in results.rglob("*")}
    for folder in cells:
        names = [*PACKED, *(SAMPLES if samples else ())]
        if folder.parent.name in ("model", *CHECKPOINT_STAGES):
            names += TRAINING_FILES
        sources |= {f"cells/{_packed_as(folder)}/{name}": folder / name for name in names}
    # What a link leads to was not meant to be published; a study file the user has named.
    files = (file for name, file in sources.items() if not name.startswith("study/"))
    if links := [file for file in files if file.is_symlink()]:
        fix = "put the file itself there"
        raise UserError.of(Problem(str(file), "is a link", fix) for file in links)
    return {name: file for name, file in sorted(sources.items()) if file.is_file()}


def _claims(analysis: Path) -> dict[str, Path]:
    """The file of claims that the results answer. A job has read its own copy of the code.

    Raises UserError where it is not there any more as it was.
    """
    config = read_config(analysis)
    recorded = config["resources"].get("files", {}).get("claims")
    if not recorded:
        return {}
    wanted = config["settings"]["files"]["claims"]
    path = resolve(recorded)
    of_kit = resolve(ALL_CLAIMS).with_name(path.name)  # of a checkout that was moved
    for file in (read_from(str(path), analysis), of_kit):
        if file.is_file() and sha256(file) == wanted:
            return {CLAIMS: file}
    what = "is gone, or was edited since the analysis"
    fix = f"bring back the file with sha256 {wanted}, or run the study again"
    raise UserError(where=str(path), what=what, fix=fix)


_CHANGES = {
    True: "with changes that were not committed",
    False: "as committed",
    None: "git was not there to tell changes",
}


def _readme(
    study_file: Path,
    base: Path,
    analysis: str,
    code: dict[str, Any],
    samples: bool,
    replaced: Iterable[str],
) -> bytes:
    list_of_replaced = ""
    if replaced:
        list_of_replaced = (
            "Paths were replaced in these files; `replaced.json` has the hashes of the originals, "
            "which manifests have too:"
        )
        list_of_replaced += "".join(f"\n- `{name}`" for name in replaced) + "\n"
    excluded = "; questions and answers of benchmarks, some of which are under licences"
    return README.format(
        study=base.name,
        analysis=analysis,
        commit=code["commit"] or "unknown",
        dirty=_CHANGES[code["dirty"]],
        samples="" if samples else excluded,
        replaced=list_of_replaced,
    ).encode()


def _extended(study_file: Path) -> list[Path]:
    """The study file, and the one beside it that it extends."""
    other = from_yaml(study_file.read_text(encoding="utf-8")).get("extends")
    return [study_file, study_file.parent / other] if other else [study_file]


def _secret_values(sources: dict[str, Path]) -> dict[str, bytes]:
    """Values of the environment that no file may hold, by the variable's name."""
    files = [file for name, file in sources.items() if name.endswith(".yaml")]
    pattern = r"\bkey_env['\"]?:\s*['\"]?(\w+)"
    named = {
        name for file in files for name in re.findall(pattern, file.read_text(encoding="utf-8"))
    }
    values = {
        name: value.encode()
        for name, value in os.environ.items()
        if name in named or SECRET_NAME.search(name.upper())
    }
    # A shorter value may stand anywhere by chance.
    return {name: value for name, value in values.items() if len(value.decode()) >= 8}


def _leaks(name: str, content: bytes, secrets: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """What a file holds that must not be published, and what to do about it."""
    yield from _values(name, content, secrets)
    for part, text in _parts(name, content).items():
        inside = f" in {part}" if part else ""
        for secret in SECRETS:
            if secret.substring.encode() not in text:
                continue
            if match := re.search(secret.pattern.encode(), text):
                line = text.count(b"\n", 0, match.start()) + 1
                yield f"holds what looks like {secret.what}{inside}, line {line}", REMOVE
        if match := HOME.search(text):
            home = match[0].decode()
            what = f"holds the path of a home, {home}{inside}, in a file that is no text"
            yield what, "make it again"


def _values(name: str, content: bytes, secrets: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """The values of secret variables in a file, and what to do about it."""
    for part, text in _parts(name, content).items():
        inside = f" in {part}" if part else ""
        for variable, value in secrets.items():
            if value in text or json.dumps(value.decode())[1:-1].encode() in text:
                yield f"holds the value of {variable}{inside}", REMOVE


def _parts(name: str, content: bytes) -> dict[str, bytes]:
    """What is to be searched: the file, or what an Inspect log packs."""
    if not name.endswith(".eval"):
        return {"": content}
    with suppress(ImportError):
        # Inspect's compression, which Python itself knows from 3.14 on.
        import zipfile_zstd  # noqa: F401
    with zipfile.ZipFile(io.BytesIO(content)) as log:
        return {member: log.read(member) for member in sorted(log.namelist())}


def _clean(name: str, content: bytes, base: Path) -> bytes:
    """The content without this machine's paths, where it is a text or packs texts."""
    if name.endswith(".eval"):
        parts = _parts(name, content)
        clean = {part: _clean(part, text, base) for part, text in parts.items()}
        packed = io.BytesIO()
        _zip(packed, "", list(clean), clean.__getitem__)
        return content if clean == parts else packed.getvalue()
    try:
        content.decode()
    except UnicodeDecodeError:
        return content
    short_forms = {base: f"runs/{base.name}", base.parent: "runs", ROOT: ".", Path.home(): "~"}
    # The longest first: the others may be its beginning.
    for folder, short in sorted(short_forms.items(), key=lambda pair: -len(str(pair[0]))):
        if len(folder.parts) > 1:
            for text in {str(folder), json.dumps(str(folder))[1:-1]}:  # in JSON an ö is \u00f6
                pattern = re.escape(text).encode() + rb"(?![\w.-])"
                content = re.sub(pattern, short.encode(), content)
    return HOME.sub(b"~", content)


def _tar(packed: Any, folder: str, names: list[str], read: Callable[[str], bytes]) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as file,
    ):
        for name in names:
            content = read(name)
            member = tarfile.TarInfo(f"{folder}/{name}")  # of no time and no owner
            member.size = len(content)
            member.mode = 0o644
            file.addfile(member, io.BytesIO(content))


def _zip(packed: Any, folder: str, names: list[str], read: Callable[[str], bytes]) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            member = zipfile.ZipInfo(f"{folder}/{name}" if folder else name)  # of 1 January 1980
            member.external_attr = 0o644 << 16
            member.create_system = 3  # Unix
            file.writestr(member, read(name), zipfile.ZIP_DEFLATED)
