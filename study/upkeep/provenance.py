"""The way back from published numbers: every cell and file behind them, by hash, and what has changed since."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from core.cell.identity import read_config
from core.cell.manifest import NOT_OUTPUTS, PACKAGES, code_version, installed
from core.cell.publish import results as results_of
from core.errors import UserError
from core.files import fingerprints, sha256
from core.paths import ROOT
from core.stages import STAGES
from core.strict_yaml import did_you_mean
from study.spec.sources import recorded

Row = dict[str, Any]
SCORE = ("benchmark", "arm", "seed", "dose")
# Facts of a cell in a trace, by their names in its settings and counts.
SHOWN = {
    "template",
    "writer",
    "judge",
    "source",
    "seed",
    "dose",
    "documents",
    "tokens",
    "rows",
    "updates",
    "last_loss",
}


SHOWN |= {"temperature", "questions", "epochs", "answers", "grades", "missing_grades", "cost"}


NEEDED = {"identity", "inputs", "outputs", "counts", "packages", "code", "started", "ended"}
FAULTS = {"changed": "changed since it was made", "missing": "is missing", "added": "was added"}
AGAIN = "python -m study run STUDY"


def published(base: Path, results: Path | None = None) -> Path:
    """The analysis cell that the study's published results name; the newest where they name none that there is.

    Raises UserError where nothing is published, or the study has no analysis.
    """
    results, found = (
        results or results_of(base),
        sorted((base / "analysis").glob("*-*"), key=os.path.getmtime),
    )
    if not results.is_dir() or not found:
        raise UserError(f"{results}: no results of {base} are published; {AGAIN}")
    identity = (read(results / "manifest.json") or {}).get("identity", "")
    return next(
        (folder for folder in found if identity and folder.name.endswith(identity[:8])), found[-1]
    )


def read(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or can't be read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def chain(analysis: Path, base: Path, hashes: bool = True) -> list[Row]:
    """Every cell behind an analysis, inputs before users, with what is on disk against what was recorded.

    A row: cell, stage, `manifest` (its sha256 now, None without one), `made` (its content), `config`, `pruned`,
    `inputs` (role, cell, wanted: the sha256 of its manifest when it was used) and `checks` (kind: output or external;
    file, path, wanted, now, state: same, changed, missing, added, pruned, unknown, unread). Sizes are compared first;
    with `hashes` then every file is read, the small ones first, several at a time and none twice.
    """
    known = (read(base / "fetched.json") or {"sources": []})["sources"]
    rows: dict[str, Row] = {}

    def walk(place: str) -> None:
        rows[place] = _row(place, base, known)
        for used in rows[place]["inputs"]:
            if used["cell"] not in rows:
                walk(used["cell"])
        rows[place] = rows.pop(place)  # behind its inputs

    walk(analysis.relative_to(base).as_posix())
    todo = [
        c
        for row in rows.values()
        for c in row["checks"]
        if hashes and c["state"] in ("unread", "changed")
    ]
    found = read_all([check["path"] for check in todo])
    for check in todo:
        check["now"] = found[check["path"]]
        check["state"] = "same" if check["now"] == check["wanted"] else "changed"
    return sorted(rows.values(), key=lambda row: STAGES.index(row["stage"]))


def read_all(paths: list[str]) -> dict[str, str | None]:
    """sha256 of files by path, None of those that can't be read. Small ones come first: most faults are in them."""

    def one(path: str) -> str | None:
        with suppress(OSError):
            return sha256(Path(path))
        return None

    once = sorted(set(paths), key=lambda path: os.path.getsize(path) if os.path.exists(path) else 0)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(once, pool.map(one, once), strict=True))


def _row(place: str, base: Path, known: list[Any]) -> Row:
    folder, config = base / place, {}
    made, pruned = (
        read(folder / "manifest.json"),
        read(folder / "pruned.json") or {"files": {}, "manifests": []},
    )
    made = made if isinstance(made, dict) and made.keys() >= NEEDED else None
    with suppress(OSError, yaml.YAMLError):  # of an edited one the hash tells
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    outputs, checks = made["outputs"] if made else {}, []
    for name, wanted in outputs.items():
        path, as_pruned = (
            folder / name,
            pruned["files"].get(name, {}).get("sha256") == wanted["sha256"],
        )
        state = "unread" if path.is_file() else "pruned" if as_pruned else "missing"
        if state == "unread" and path.stat().st_size != wanted["bytes"]:
            state = "changed"
        checks.append(_check("output", name, path, wanted["sha256"], state))
    own = {*NOT_OUTPUTS, *outputs}
    for path in sorted(folder.rglob("*")) if made else []:
        name = str(path.relative_to(folder))
        if path.is_file() and not {name, path.name} & own and not name.startswith("."):
            checks.append(_check("output", name, path, None, "added"))
    inputs = (made or config).get("inputs", {})
    return {
        **{
            "cell": place,
            "stage": place.split("/")[0],
            "made": made,
            "config": config,
            "pruned": pruned,
        },
        "manifest": sha256(folder / "manifest.json")
        if (folder / "manifest.json").exists()
        else None,
        "inputs": [
            {"role": r, "cell": i["cell"], "wanted": i.get("manifest_sha256")}
            for r, i in inputs.items()
        ],
        "checks": [*checks, *(_external(config, known) if config else [])],
    }


def _check(kind: str, file: str, path: Path, wanted: str | None, state: str) -> Row:
    return {
        "kind": kind,
        "file": file,
        "path": str(path),
        "wanted": wanted,
        "now": None,
        "state": state,
    }


def _external(config: Row, known: list[Any]) -> list[Row]:
    """Checks of the files that the cell read from outside of the study's folder."""
    settings, places, model = config["settings"], config["resources"], config["stage"] == "model"
    files = settings.get("files", {})
    pairs = [(settings.get("data_sha256") or settings.get("data"), places.get("data"))]
    pairs += (
        [(files, places.get("path"))]
        if model
        else [(files[name], places["files"][name]) for name in files]
    )
    if source := settings.get("source"):
        pairs.append((source.get("sha256") or source, places.get("path" if model else "source")))
    pairs += zip(settings.get("avoid", {}).values(), places.get("avoid", []), strict=False)
    pairs += [(settings.get("chat_template_sha256"), places.get("chat_template"))]
    pairs += [(settings.get("tokenizer"), places.get("tokenizer"))]
    pairs += [(settings.get("tokenizer_sha256"), f"{places.get('tokenizer')}/tokenizer.json")]
    if sheet := places.get("sheet"):
        key = Path(sheet).with_suffix(".key.json")
        pairs += [(settings["sheet_sha256"], sheet), (settings["key_sha256"], key)]
    served = settings.get("writer") or settings.get("judge") or {}
    pairs += [(served.get("files"), places.get("address", {}).get("path"))]
    return [
        check
        for what, place in pairs
        if what and place
        for check in _compare(what, Path(place), known)
    ]


def _compare(what: Any, path: Path, known: list[Any]) -> list[Row]:
    """Checks of one file or folder against its identity: a sha256, a hub's or URL's pin, or a folder's fingerprints."""
    if not path.exists():  # in a copy of the code, perhaps, that was pruned
        path = ROOT / re.sub(r".*/slurm/code-\w+/", "", str(path))

    def check(file: Path, wanted: str | None, state: str) -> Row:
        return _check(
            "external",
            str(file),
            file,
            wanted,
            state if file.exists() or state == "missing" else "missing",
        )

    if isinstance(what, str):
        return [check(path, what, "unread")]
    if "hub" in what or "url" in what:
        entry, below = recorded(known, what), Path(what.get("file") or "").parts
        if files := entry.get("files"):
            root = path.parents[len(below) - 1] if below else path
            return [check(root / name, file["sha256"], "unread") for name, file in files.items()]
        wanted = what.get("sha256") or entry.get("sha256")
        return [check(path, wanted, "unread" if wanted else "unknown")]
    now = fingerprints(str(path)) if path.is_dir() else {}
    states = {
        name: "same" if now.get(name) == wanted else "changed" for name, wanted in what.items()
    }
    states |= dict.fromkeys(now.keys() - what.keys(), "added")
    return [check(path / name, what.get(name), state) for name, state in sorted(states.items())]


def faults(rows: list[Row], base: Path, results: Path | None = None) -> list[dict[str, str]]:
    """What is no longer as it was when the published results were made: {cell, file, fault, consequence, cure}."""
    found = [(cell, *rest, rests_on(cell, rows)) for cell, *rest in _faults(rows, base)]
    found += _published_faults(rows[-1], results or results_of(base))
    keys = ("cell", "file", "fault", "cure", "consequence")
    return [dict(zip(keys, fault, strict=True)) for fault in found]


def _faults(rows: list[Row], base: Path) -> Iterator[tuple[str, str, str, str]]:
    removed = (read(base / "pruned.json") or {"cells": {}})["cells"]
    owners = {
        c["wanted"]: f"{c['file']} of {row['cell']}"
        for row in rows
        for c in row["checks"]
        if c["wanted"]
    }
    for row in rows:
        place, folder, made = row["cell"], base / row["cell"], row["made"]
        if made is None:
            what = (
                "can't be read"
                if row["manifest"]
                else f"is gone{' with its folder' * (not folder.is_dir())}"
            )
            if place not in removed:
                yield (
                    place,
                    "manifest.json",
                    what,
                    f"bring it back from a copy, or delete it and {AGAIN}",
                )
            continue
        if not made["identity"].startswith(place.rsplit("-", 1)[1]):
            fault = f"is that of {made['stage']}/{made['name']}-{made['identity'][:8]}: the folder holds another cell"
            yield (
                place,
                "manifest.json",
                fault,
                f"bring the folder back from a copy, or delete it and {AGAIN}",
            )
            continue
        users, alike = _others(row, rows)
        if users and not alike:
            later = any(made["ended"] > user["made"]["started"] for user in users)
            names = f"{users[0]['cell']}{f' and {len(users) - 1} more' if users[1:] else ''}"
            cure = (
                f"bring the former folder back from a copy, or delete their manifests and {AGAIN}"
            )
            yield (
                place,
                "manifest.json",
                f"was {'made again' if later else 'edited'} since {names} used it",
                cure,
            )
        for check in row["checks"]:
            if check["state"] not in FAULTS:
                continue
            fault = (
                f"is now {owners[check['now']]}"
                if check["now"] in owners
                else FAULTS[check["state"]]
            )
            cure, first = (
                f"bring back the file with sha256 {check['wanted']}",
                folder / check["file"].split("/")[0],
            )
            if check["state"] == "added":
                cure = "move it away"
            elif check["kind"] == "external":
                fault = f"input from outside: {fault.replace('made', 'used')}"
                cure += f"; {AGAIN} makes other cells with another"
            else:
                cure += f", or delete {first} and {folder}/manifest.json and {AGAIN}"
            yield place, check["file"], fault, cure


def _others(row: Row, rows: list[Row]) -> tuple[list[Row], bool]:
    """The users of a cell that had another manifest of it; whether a pruned cell was then made again byte by byte."""
    had = [(u, i["wanted"]) for u in rows for i in u["inputs"] if i["cell"] == row["cell"]]
    had = [(user, digest) for user, digest in had if digest not in (None, row["manifest"])]
    hashed = {
        name: file["sha256"] for name, file in row["pruned"]["files"].items() if file["sha256"]
    }
    same = all(
        row["made"]["outputs"].get(name, {}).get("sha256") == digest
        for name, digest in hashed.items()
    )
    alike = (
        bool(hashed) and same and {digest for _, digest in had} <= set(row["pruned"]["manifests"])
    )
    return [user for user, _ in had], alike


def _published_faults(last: Row, results: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Files of the published results that are not those of the analysis they were copied from."""
    if last["made"] is None:
        return  # said already, and nothing to compare with
    wanted = {
        name: output["sha256"]
        for name, output in last["made"]["outputs"].items()
        if name != "config.yaml"
    }
    wanted["manifest.json"] = last["manifest"]
    there = {
        str(path.relative_to(results)): sha256(path)
        for path in results.rglob("*")
        if path.is_file()
    }
    for name in sorted(n for n in {*wanted, *there} if there.get(n) != wanted.get(n)):
        fault = (
            "was edited: the analysis wrote another"
            if name in wanted
            else "was added: no analysis wrote it"
        )
        fault = fault if name in there else "is missing"
        yield (
            last["cell"],
            str(results / name),
            fault,
            f"{AGAIN} copies all of it anew",
            f"the published {name}",
        )


def rests_on(cell: str, rows: list[Row]) -> str:
    """What of the published results rests on a cell: benchmarks, arms, contrasts and tables."""
    last, reached = rows[-1], {cell}
    for row in rows:  # inputs before their users
        if any(i["cell"] in reached for i in row["inputs"]):
            reached.add(row["cell"])
    roles = {i["role"] for i in last["inputs"] if i["cell"] in reached or cell == last["cell"]}
    settings = last["config"].get("settings") or {"rows": [], "contrasts": []}
    scores = [r for r in settings["rows"] if r["role"] in roles]
    of = {key: list(dict.fromkeys(str(r[key]) for r in scores)) for key in SCORE}
    arms, benchmarks = {*of["arm"]}, {*of["benchmark"]}
    compared = [
        c["name"]
        for c in settings["contrasts"]
        if {c["of"], c["against"]} & arms and {*c["on"]} & benchmarks
    ]
    tables = {
        Path(name).stem
        for name in (last["made"] or {"outputs": {}})["outputs"]
        if name.startswith("tables/")
    }
    if not any(role.startswith("corpus-") for role in roles):
        tables -= {"corpora"}
    tables = tables if scores else tables & {"corpora", "judges"}
    parts = {"scores": [f"{len(scores)} of {len(settings['rows'])}"] * bool(scores)}
    parts |= {f"{key}s": values for key, values in of.items()}
    parts |= {"contrasts": compared, "tables": sorted(tables)}
    return "; ".join(f"{what} {', '.join(values)}" for what, values in parts.items() if values)


def notes(rows: list[Row], base: Path) -> list[str]:
    """What is no fault: code and packages other than now, what was pruned, what has no hash."""
    found: dict[str, list[str]] = defaultdict(list)
    code, now = code_version(), {name: installed(name) for name in PACKAGES}
    removed = (read(base / "pruned.json") or {"cells": {}})["cells"]
    for row in rows:
        made, said = row["made"], []
        if made is None:
            said += (
                [f"removed on {removed[row['cell']]['date']} by prune"]
                if row["cell"] in removed
                else []
            )
        else:
            then = {name: made["packages"].get(name) for name in now}
            said += [
                f"{name} was {then[name]} and is {now[name]}"
                for name in now
                if then[name] != now[name]
            ]
            commits = [str(one["commit"])[:8] for one in (made["code"], code)]
            said += (
                [f"the code was {commits[0]} and is {commits[1]}"]
                if commits[0] != commits[1]
                else []
            )
            said += ["the code was none that a commit holds"] if made["code"]["dirty"] else []
            users, alike = _others(row, rows)
            said += ["pruned and made again with the same bytes"] if users and alike else []
        gone = [check["file"] for check in row["checks"] if check["state"] == "pruned"]
        said += [
            f"pruned on {date} by prune"
            for date in sorted({row["pruned"]["files"][n]["date"] for n in gone})
        ]
        unknown = any(check["state"] == "unknown" for check in row["checks"])
        said += (
            ["an input from the network has no hash on record; python -m study fetch STUDY"]
            if unknown
            else []
        )
        for note in said:
            found[note].append(row["cell"])
    return [
        f"{note}: {cells[0]}{f' and {len(cells) - 1} more' * bool(cells[1:])}"
        for note, cells in found.items()
    ]


def trace(
    results: Path, base: Path, benchmark: str, arm: str, seed: int | None, dose: int
) -> list[dict[str, str]]:
    """The way back of one published score: {stage, cell, facts, sha256, recorded}, the analysis first.

    sha256 is that of the cell's manifest, `recorded` whether whoever used the cell had the same. Files from outside
    (questions, data, models) come last, with their state in `chain`. Raises UserError where there is no such score.
    """
    analysis, wanted = published(base, results), (benchmark, arm, seed, dose)
    rows = chain(analysis, base, hashes=False)
    roles: dict[tuple[Any, ...], str] = {}
    for score in read_config(analysis)["settings"]["rows"]:
        roles.setdefault(
            tuple(score[key] for key in SCORE), score["role"]
        )  # the judge that counts comes first
    if wanted not in roles:
        name, *known = (" ".join(map(str, key)) for key in (wanted, *roles))
        raise UserError(
            f"{results}: no score of {name}{did_you_mean(name, known)}; results.json there lists the scores"
        )
    said = (read(results / "results.json") or {"scores": []})["scores"]
    number = [
        f"score {s['score']}, n {s['n']}" for s in said if tuple(s[key] for key in SCORE) == wanted
    ]
    had = {(rows[-1]["cell"], *read_all([str(results / "manifest.json")]).values())}
    way: list[tuple[str, ...]] = []
    files: dict[tuple[str, ...], list[str]] = {}
    for row in reversed(rows):
        if not (uses := {digest for cell, digest in had if cell == row["cell"]}):
            continue
        last = row is rows[-1]
        had |= {
            (i["cell"], i["wanted"])
            for i in row["inputs"]
            if not last or i["role"] == roles[wanted]
        }
        same, facts = (
            "yes" if uses == {row["manifest"]} else "no",
            ", ".join(number) if last else _facts(row),
        )
        way.append((row["stage"], row["cell"], facts, row["manifest"] or "", same))
        for check in (check for check in row["checks"] if check["kind"] == "external"):
            files.setdefault((check["file"], check["wanted"] or "", check["state"]), []).append(
                row["stage"]
            )
    way += [
        ("file", name, f"read by {', '.join(by)}", *rest) for (name, *rest), by in files.items()
    ]
    return [
        dict(zip(("stage", "cell", "facts", "sha256", "recorded"), step, strict=True))
        for step in way
    ]


def _facts(row: Row) -> str:
    """The key facts of a cell: what it was told, and what it counted."""
    settings, shown = row["config"].get("settings", {}), []
    told = {**settings, **settings.get("sampling", {}), **(row["made"] or {"counts": {}})["counts"]}
    for key, value in ((key, told[key]) for key in told if key in SHOWN and told[key] is not None):
        if isinstance(value, dict):
            value = next(
                (value[k] for k in ("model", "topic", "hub", "url", "sha256") if value.get(k)),
                "given",
            )
        shown.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(shown)
