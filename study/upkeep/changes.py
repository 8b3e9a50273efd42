"""What has changed since the results were published, what it affects, and how to restore it."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from core.cell.manifest import PACKAGES, code_version, installed, results_sha256
from core.cell.publish import results as results_of
from core.files import sha256
from study.upkeep.provenance import SCORE, Row, pruned_cells

# By the state of a check.
CHANGES = {"changed": "changed since it was made", "missing": "is missing", "added": "was added"}
MADE_AGAIN = "made again with the same results"
Change = tuple[str, str, str, str]  # cell, file, what changed, what to do


def find_changes(
    rows: list[Row],
    base: Path,
    study_args: str,
    results: Path | None = None,
    originals: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, str]]:
    """What is no longer as it was when the published results were made.

    rows: of `provenance.lineage`. study_args: what names the study on the command line, for the
    commands to type next. originals: of `published_changes`. Returns {cell, file, problem,
    consequence, fix} each: the last two are what of the results is affected and what to do.
    """
    keys = ("cell", "file", "problem", "fix", "consequence")
    run = f"python -m study run {study_args}"
    changes = [
        (*change, affected_results(change[0], rows)) for change in _cell_changes(rows, base, run)
    ]
    changes += published_changes(rows[-1], results or results_of(base), run, originals)
    return [dict(zip(keys, change, strict=True)) for change in changes]


def _cell_changes(rows: list[Row], base: Path, run: str) -> Iterator[Change]:
    removed = pruned_cells(base)
    checks = [(row, check) for row in rows for check in row["checks"] if check["wanted"]]
    owners = {check["wanted"]: f"{check['file']} of {row['cell']}" for row, check in checks}
    for row in rows:
        relpath = row["cell"]
        folder = base / relpath
        manifest = row["manifest"]
        if manifest is None:
            change = "can't be read"
            if row["manifest_sha256"] is None:
                change = "is gone" if folder.is_dir() else "is gone with its folder"
            if relpath not in removed:
                fix = f"bring it back from a copy, or delete it and {run}"
                yield relpath, "manifest.json", change, fix
            continue
        if not manifest["identity"].startswith(relpath.rsplit("-", 1)[1]):
            other = f"{manifest['stage']}/{manifest['name']}-{manifest['identity'][:8]}"
            change = f"is that of {other}: the folder holds another cell"
            fix = f"bring the folder back from a copy, or delete it and {run}"
            yield relpath, "manifest.json", change, fix
            continue
        users, same_results = _users_of_another(row, rows)
        if users and not same_results:
            remade = _is_remade(row, users)
            others = f" and {len(users) - 1} more" if users[1:] else ""
            change = (
                f"was {'made again' if remade else 'edited'} since {users[0]['cell']}{others} "
                "used it"
            )
            fix = f"bring the former folder back from a copy, or delete their manifests and {run}"
            yield relpath, "manifest.json", change, fix
        for check in row["checks"]:
            if check["state"] in CHANGES:
                yield _file_change(relpath, folder, check, owners, run)


def _file_change(
    relpath: str, folder: Path, check: Row, owners: dict[str, str], run: str
) -> Change:
    """One file of a cell, or from outside, that is not what was recorded."""
    change = CHANGES[check["state"]]
    if check["now"] in owners:
        change = f"is now {owners[check['now']]}"
    fix = f"bring back the file with sha256 {check['wanted']}"
    if check["state"] == "added":
        fix = "move it away"
    elif check["kind"] == "external":
        change = f"input from outside: {change.replace('made', 'used')}"
        fix += f"; {run} makes other cells with another"
    else:
        part = folder / check["file"].split("/")[0]
        fix += f", or rm -rf {shlex.join([str(part), str(folder / 'manifest.json')])} and {run}"
    return relpath, check["file"], change, fix


def _users_of_another(row: Row, rows: list[Row]) -> tuple[list[Row], bool]:
    """The users of a cell that had another manifest of it.

    And whether the cell was made again since, with the same results.
    """
    others = [
        (user, needed["wanted_results"])
        for user in rows
        for needed in user["inputs"]
        if needed["cell"] == row["cell"] and needed["wanted"] not in (None, row["manifest_sha256"])
    ]
    users = [user for user, _ in others]
    same = {wanted for _, wanted in others} == {results_sha256(row["manifest"])}
    return users, same and _is_remade(row, users)


def is_made_again(row: Row, rows: list[Row]) -> bool:
    """Whether a cell was made again since it was used, with the same results."""
    users, same_results = _users_of_another(row, rows)
    return bool(users) and same_results


def _is_remade(row: Row, users: list[Row]) -> bool:
    """Whether a cell ended after one of its users began; otherwise its manifest was edited."""
    ended: str = row["manifest"]["ended"]
    return any(ended > user["manifest"]["started"] for user in users)


def published_changes(
    last: Row, results: Path, run: str, originals: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, str, str, str, str]]:
    """Files of the published results that are not those of the analysis they were copied from.

    originals: name -> sha256 of files that were changed on purpose since, before that.
    """
    if last["manifest"] is None:
        return  # listed already, and nothing to compare with
    outputs = last["manifest"]["outputs"]
    expected = {name: output["sha256"] for name, output in outputs.items() if name != "config.yaml"}
    expected["manifest.json"] = last["manifest_sha256"]
    files = [path for path in results.rglob("*") if path.is_file()]
    digests = {str(path.relative_to(results)): sha256(path) for path in files} | {**originals}
    for name in sorted({*expected, *digests}):
        if digests.get(name) == expected.get(name):
            continue
        if name not in digests:
            change = "is missing"
        elif name in expected:
            change = "was edited: the analysis wrote another"
        else:
            change = "was added: no analysis wrote it"
        fix = f"{run} copies all of it anew"
        yield last["cell"], str(results / name), change, fix, f"the published {name}"


def affected_results(cell: str, rows: list[Row]) -> str:
    """What of the published results depends on a cell: benchmarks, arms, contrasts and tables."""
    last = rows[-1]
    dependents = {cell}
    for row in rows:  # inputs before their users
        if any(used["cell"] in dependents for used in row["inputs"]):
            dependents.add(row["cell"])
    roles = {
        used["role"]
        for used in last["inputs"]
        if used["cell"] in dependents or cell == last["cell"]
    }
    settings = last["config"].get("settings") or {"rows": [], "contrasts": []}
    scores = [row for row in settings["rows"] if row["role"] in roles]
    values = {key: list(dict.fromkeys(str(row[key]) for row in scores)) for key in SCORE}
    arms = {*values["arm"]}
    benchmarks = {*values["benchmark"]}
    contrasts = [
        contrast["name"]
        for contrast in settings["contrasts"]
        if {contrast["treatment"], contrast["control"]} & arms
        and {*contrast["benchmarks"]} & benchmarks
    ]
    outputs = (last["manifest"] or {"outputs": {}})["outputs"]
    # A table has several files (`analysis.run`), and all.tex is a paper with all of them.
    files = [Path(name).name for name in outputs if name.startswith("tables/")]
    tables = {name.partition(".")[0] for name in files} - {"all"}
    if not any(role.startswith("corpus-") for role in roles):
        tables -= {"corpora"}
    if not scores:
        tables &= {"corpora", "judges"}
    parts = {"scores": [f"{len(scores)} of {len(settings['rows'])}"] if scores else []}
    parts |= {f"{key}s": names for key, names in values.items()}
    parts |= {"contrasts": contrasts, "tables": sorted(tables)}
    return "; ".join(f"{label} {', '.join(names)}" for label, names in parts.items() if names)


def notes(rows: list[Row], base: Path) -> list[str]:
    """What is no mistake: other code, packages and variables, pruned files, cells made again."""
    cells: dict[str, list[str]] = defaultdict(list)
    code = code_version()
    packages = {name: installed(name) for name in PACKAGES}
    removed = pruned_cells(base)
    variables = _differing_variables(rows)
    for row in rows:
        texts = variables.get(row["cell"], [])
        if row["manifest"]:
            texts += _version_notes(row["manifest"], code, packages)
            if is_made_again(row, rows):
                texts.append(MADE_AGAIN)
        elif row["cell"] in removed:
            texts.append(f"removed on {removed[row['cell']]['date']} by prune")
        pruned = [check["file"] for check in row["checks"] if check["state"] == "pruned"]
        dates = {row["pruned"][name]["date"] for name in pruned}
        texts += [f"pruned on {date} by prune" for date in sorted(dates)]
        for text in texts:
            cells[text].append(row["cell"])
    return [
        f"{text}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
        for text, names in cells.items()
    ]


def _differing_variables(rows: list[Row]) -> dict[str, list[str]]:
    """Cell -> variables that change numbers (`core.numeric_environment`) and that most cells of its
    stage had otherwise."""
    stages: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if "environment" in (row["manifest"] or {}):
            stages[row["stage"]][row["cell"]] = row["manifest"]["environment"]
    texts: dict[str, list[str]] = defaultdict(list)
    for stage, environments in stages.items():
        for name in sorted({name for values in environments.values() for name in values}):
            values = [environment.get(name) for environment in environments.values()]
            usual = Counter(values).most_common(1)[0][0]
            for cell, environment in environments.items():
                if (value := environment.get(name)) != usual:
                    texts[cell].append(
                        f"numbers may differ from other cells of {stage}: {name} was "
                        f"{value or 'not set'}, not {usual or 'unset'}"
                    )
    return texts


def _version_notes(manifest: Row, code: Row, packages: dict[str, str | None]) -> list[str]:
    texts = []
    for name, now in packages.items():
        then = manifest["packages"].get(name)
        if then != now:
            texts.append(f"{name} was {then} and is {now}")
    before = str(manifest["code"]["commit"])[:8]
    after = str(code["commit"])[:8]
    if before != after and manifest["code"]["commit"]:
        texts.append(f"the code was {before} and is {after}")
    if manifest["code"]["commit"] is None:
        texts.append("no record of the code's commit")
    if manifest["code"]["dirty"]:
        texts.append("the code was none that a commit holds")
    return texts
