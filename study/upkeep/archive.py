"""One file to replicate a study's numbers from: settings, manifests, ledgers, scores, tables; no weights, no keys."""

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from core.cell.manifest import read_manifest
from core.errors import UserError
from core.files import sha256
from core.paths import ROOT

# Of a cell, where it has them. Weights, corpora and step checkpoints are never among it.
KEPT = ("config.yaml", "manifest.json", "log.txt", "card.json", "balance.json", "calls.jsonl", "scores.parquet")
TRAINED = ("metrics.jsonl", "speed.jsonl", "held_out.jsonl")  # of a training; a corpus' held_out.jsonl holds documents
SAMPLES = ("samples.eval", "scored.eval", "samples.jsonl")  # questions in full, which may be under a licence
EDGE = r"(?<![A-Za-z0-9+/_-])"  # base64 of pictures must not look like keys
SECRETS = {  # what it is: a piece of it that is found quickly, and all of it
    "a key that begins with sk-": ("sk-", EDGE + r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}"),
    "a Hugging Face token": ("hf_", EDGE + r"hf_[A-Za-z0-9]{20,}"),
    "a Google key": ("AIza", EDGE + r"AIza[A-Za-z0-9_-]{35}"),
    "an xAI key": ("xai-", EDGE + r"xai-[A-Za-z0-9]{20,}"),
    "a GitHub token": ("gh", EDGE + r"(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{30,}"),
    "an AWS key": ("AKIA", EDGE + r"AKIA[0-9A-Z]{16}\b"),
    "a bearer token": ("earer", r"\b[Bb]earer(?:\s|%20)+(?=[A-Za-z._~+/-]*\d)[A-Za-z0-9._~+/-]{16,}"),
    "a password in a URL": ("://", r"://[^/\s:@\"']+:[^/\s:@\"']{3,}@"),
    "a private key": ("PRIVATE KEY", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
SECRET_NAME = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD)$")  # of an environment variable
HOME = re.compile(rb"(?<![\w.~-])(?:/root|/home/[\w.-]+|/Users/[\w.-]+)(?![\w.-])")
README = """# Replication archive of the study `{study}`

- `study/`: the study file; `cells/STAGE/CELL/config.yaml`: every setting of a cell, recipes and templates too
- `cells/.../manifest.json`: hashes of inputs and outputs, seeds, versions, counts, cost, times; `log.txt` beside it
- `cells/documents/.../card.json`: what a corpus is made of; `balance.json`: beside the one that it is matched to;
  `calls.jsonl`, also of judges: the ledger of calls, each with the hash of its request, reply, tokens and cost
- `cells/.../scores.parquet`: scores of a checkpoint; `results/`: the long table of all of them (`scores.parquet`),
  results.json, tables, figures and report, as they were published; `sha256sum -c SHA256SUMS` checks all files

Not in it: weights; corpora, but for examples on their cards and replies in their ledgers{samples}. What judges reply
may quote a few words of either, and the report shows a few of both.
{replaced}
## The analysis again

In the kit's folder, at commit {commit} ({dirty}), with its environment (`make environment`):

```python
import json, pandas, yaml
from analysis.results import analyze
from analysis.settings import AnalysisSettings
from analysis.table import primary_judge_rows

archive = "PATH/{study}"
config = yaml.safe_load(open(f"{{archive}}/cells/{analysis}/config.yaml"))
settings = AnalysisSettings.parse(config["settings"])
table = pandas.read_parquet(f"{{archive}}/results/scores.parquet")
results = analyze(primary_judge_rows(table, settings.other_judges), settings)
published = json.load(open(f"{{archive}}/results/results.json"))
print({{name: results[name] == published[name] for name in results}})
```

## The study again

`python -m study run PATH/{study}/study/{file}` (or `submit`) there. Writers and judges want keys, in the variables that
`key_env` names; their answers, and so documents and grades, may differ. A ledger that is put into its cell's folder
(`runs/{study}/STAGE/CELL/calls.jsonl`) is used instead of calls.
"""


def archive(study_file: Path, base: Path, results: Path, path: Path, samples: bool = False) -> dict[str, Any]:
    """Write the archive of a published study as one .tar.gz or .zip: the same bytes from the same files.

    `base`: the study's folder below runs; `results`: what was published. In it are the cells that the results were made
    of, by their manifests. `samples`: questions and answers in full, too. Paths of this machine (checkout, runs, homes)
    are replaced in texts. Returns path, sha256, files, cells, and the names of `replaced` files.
    Raises UserError with a line for each file that holds a key, or the path of a home where it can't be replaced.
    """
    if not path.name.endswith((".tar.gz", ".zip")):
        raise UserError(f"{path}: an archive ends in .tar.gz or .zip; name it so")
    if not (published := read_manifest(results)):
        raise UserError(f"{results}: holds no results; python -m study report {study_file}")
    last = f"analysis/{published['name']}-{published['identity'][:8]}"
    cells = sorted(chain(base, last))
    sources = {f"study/{file.name}": file for file in _extended(study_file)} | {"fetched.json": base / "fetched.json"}
    sources |= {f"results/{file.relative_to(results)}": file for file in results.rglob("*")}
    for cell in cells:
        trained = TRAINED if cell.startswith(("model/", "midtrain/", "sft/")) else ()
        kept = (*KEPT, *trained, *(SAMPLES if samples else ()))
        sources |= {f"cells/{cell}/{name}": base / cell / name for name in kept}
    sources = {name: file for name, file in sorted(sources.items()) if file.is_file()}
    sums, replaced, mistakes, secrets = [], [], [], _secrets(sources)
    for name, file in sources.items():  # one at a time: ledgers are large
        content = file.read_bytes()
        clean = _clean(name, content, base)
        sums.append(f"{hashlib.sha256(clean).hexdigest()}  {name}\n")
        replaced += [name] if clean != content else []
        mistakes += [f"{file}: {fault}" for fault in _faults(name, clean, secrets)]
    if mistakes:
        raise UserError(*mistakes)
    said = "Paths were replaced in these files; their hashes in manifests are of the originals:" if replaced else ""
    text = README.format(
        study=base.name,
        file=study_file.name,
        analysis=last,
        commit=published["code"]["commit"],
        dirty="with changes that were not committed" if published["code"]["dirty"] else "as committed",
        samples="" if samples else "; questions and answers of benchmarks, some of which are under licences",
        replaced=said + "".join(f"\n- `{name}`" for name in replaced) + "\n" * bool(replaced),
    ).encode()
    own = {"README.md": text}
    own["SHA256SUMS"] = "".join([*sums, f"{hashlib.sha256(text).hexdigest()}  README.md\n"]).encode()
    names, staged = [*own, *sources], path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = _zip if path.suffix == ".zip" else _tar
    with open(staged, "wb") as packed:
        pack(packed, base.name, names, lambda n: own.get(n) or _clean(n, sources[n].read_bytes(), base))
    staged.rename(path)
    return {"path": str(path), "sha256": sha256(path), "files": len(names), "cells": len(cells), "replaced": replaced}


def chain(base: Path, last: str) -> set[str]:
    """The cell `last` and all that it was made of, by their manifests. Raises UserError where one is not there."""
    found: set[str] = set()
    left, missing = [last], []
    while left:
        if (place := left.pop()) in found:
            continue
        found.add(place)
        if manifest := read_manifest(base / place):
            left += [needed["cell"] for needed in manifest["inputs"].values()]
        else:
            missing.append(f"{base / place}: is not finished, but the published results need it; run the study again")
    if missing:
        raise UserError(*sorted(missing))
    return found


def _extended(study_file: Path) -> list[Path]:
    """The study file, and the one beside it that it extends."""
    other = yaml.safe_load(study_file.read_text(encoding="utf-8")).get("extends")
    return [study_file, study_file.parent / other] if other else [study_file]


def _secrets(sources: dict[str, Path]) -> dict[str, bytes]:
    """Values of the environment that no file may hold, by the variable's name."""
    texts = [file.read_text(encoding="utf-8") for name, file in sources.items() if name.endswith(".yaml")]
    named = {name for text in texts for name in re.findall(r"\bkey_env['\"]?:\s*['\"]?(\w+)", text)}
    values = {name: value for name, value in os.environ.items() if name in named or SECRET_NAME.search(name.upper())}
    return {name: value.encode() for name, value in values.items() if len(value) >= 8}  # a shorter one may be anything


def _faults(name: str, content: bytes, secrets: dict[str, bytes]) -> Iterator[str]:
    cure = "remove it there, give up that key, and archive again"
    for part, text in _parts(name, content).items():
        inside = f" in {part}" if part else ""
        for variable, value in secrets.items():
            if value in text or json.dumps(value.decode())[1:-1].encode() in text:
                yield f"holds the value of {variable}{inside}; {cure}"
        for what, (piece, pattern) in SECRETS.items():
            if piece.encode() in text and (match := re.search(pattern.encode(), text)):
                line = text.count(b"\n", 0, match.start()) + 1
                yield f"holds what looks like {what}{inside}, line {line}; {cure}"
        if match := HOME.search(text):
            yield f"holds the path of a home, {match[0].decode()}{inside}, in a file that is no text; make it again"


def _parts(name: str, content: bytes) -> dict[str, bytes]:
    """What is to be searched: the file, or what an Inspect log packs."""
    if not name.endswith(".eval"):
        return {"": content}
    with suppress(ImportError):
        import zipfile_zstd  # noqa: F401  # Inspect's compression, which Python itself knows from 3.14 on
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
    places = {base: f"runs/{base.name}", base.parent: "runs", ROOT: ".", Path.home(): "~"}
    for place, short in sorted(places.items(), key=lambda pair: -len(str(pair[0]))):
        if len(place.parts) > 1:
            content = re.sub(re.escape(str(place)).encode() + rb"(?![\w.-])", short.encode(), content)
    return HOME.sub(b"~", content)


def _tar(packed: Any, folder: str, names: list[str], read: Callable[[str], bytes]) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as file,
    ):
        for name in names:
            content, member = read(name), tarfile.TarInfo(f"{folder}/{name}")  # of no time and no owner
            member.size, member.mode = len(content), 0o644
            file.addfile(member, io.BytesIO(content))


def _zip(packed: Any, folder: str, names: list[str], read: Callable[[str], bytes]) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            member = zipfile.ZipInfo(f"{folder}/{name}" if folder else name)  # of 1 January 1980
            member.external_attr, member.create_system = 0o644 << 16, 3
            file.writestr(member, read(name), zipfile.ZIP_DEFLATED)
