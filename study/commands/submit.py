"""Submit all missing cells to Slurm, then exit; or go on until the study is done."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.publish import publish, results
from core.declaration import read_declaration
from core.errors import Problem, UserError
from core.stages import STAGES
from study.commands.common import (
    add_stages_argument,
    add_start_arguments,
    check_before_start,
    cluster_args,
    load,
    load_cluster,
    needed_first,
    parallel_plans,
    prepare_folders,
    relative_to_cwd,
    show_declaration,
    startable,
    study_args,
    submit_command,
    unfinished,
)
from study.commands.status_plan import start_page
from study.forecast import inference_gpus, study_cost
from study.forecast.budget import parse_budget
from study.forecast.priority import ranks
from study.forecast.training_cost import forecast, grouped
from study.spec import expand
from study.spec.study_declaration import EVALUATIONS, declare

MAX_NAMES = 5  # cells named in one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        type=Path,
        required=True,
        metavar="NAME",
        help="a profile of slurm/clusters, or a file",
    )
    parser.add_argument(
        "--until-done",
        action="store_true",
        help="stay, and submit what remains as the limits on jobs allow (in tmux or screen)",
    )
    add_stages_argument(parser)
    add_start_arguments(parser)


def submit(args: argparse.Namespace) -> int:
    """Submit, and print what was. Returns 1 where --until-done ends with cells that failed."""
    from slurm.notify import NOTIFIED
    from slurm.submissions import check_owner
    from slurm.submit import submit
    from slurm.until_done import until_done

    study, base = load(args)
    check_owner(base)
    profile = load_cluster(args)
    cluster = cluster_args(args)
    cells = expand.in_order(expand.analysis(study, base))
    unfinished_before = prepare_folders(cells, base, args)
    stages = [stage for stage in args.stages if not profile.is_on_login(stage)]
    todo = [cell for cell in unfinished_before if cell.stage in stages]
    check_before_start(args, study, base, cells, todo, profile)
    rows = [row for row in forecast(cells, base, parallel_plans(profile)) if row["left"]]
    vllm_gpus = inference_gpus.compare(todo, profile)
    if refused := grouped(rows, "refused") + vllm_gpus["refused"]:
        fix = "change the cluster profile or the recipe"
        raise UserError.of(Problem("", line, fix) for line in refused)
    if any(cell.stage in EVALUATIONS for cell in todo):
        declare(study, base, cells)
    start_page(cells, base, profile)
    (base / "slurm" / NOTIFIED).unlink(missing_ok=True)
    limit_gb = parse_budget(args.budget).get("disk_gb")
    disk = study_cost.disk_limit(cells, base, parallel_plans(profile), profile, limit_gb)
    warnings = [f"warning: {line}" for line in grouped(rows, "warnings") + vllm_gpus["warnings"]]
    order = ranks(cells[-1])
    if args.until_done:
        _report(warnings)
        try:
            facts = until_done(
                cells,
                base,
                profile,
                cluster,
                lambda line: _report([line]),
                stages=args.stages,
                disk=disk,
                ranks=order,
            )
        except KeyboardInterrupt:
            again = "what is queued goes on, the same command submits the rest"
            print(f"stopped; {again}", file=sys.stderr)
            return 130
    else:
        facts = submit(cells, base, profile, cluster, stages=args.stages, disk=disk, ranks=order)
        _report(warnings)
    del facts["remaining"]
    facts["behind"] = len(facts["behind"])
    if facts["finished"] == facts["cells"]:
        publish(base / cells[-1].relpath, last_only=True)
    if args.json:
        declaration = (read_declaration(base) or {}).get("sha256")
        print(json.dumps(facts | {"declaration": declaration}, indent=1))
    else:
        again = submit_command(base, study_args(args), cluster)
        rest = unfinished(cells, base)
        named = study_args(args)
        ready = len(startable(rest, facts["login"]))
        print(_show(facts, named, again, relative_to_cwd(results(base)), ready))
        missing = needed_first(rest, stages)
        if missing and not facts["submitted"] and not facts["queued"] and args.stages != STAGES:
            print(f"nothing could start: {', '.join(stages)} need {', '.join(missing)} first")
        show_declaration(base)
    failed = args.until_done and facts["finished"] < facts["cells"]
    if failed:
        count = facts["cells"] - facts["finished"]
        why = f"python -m study status {study_args(args)} shows why"
        print(f"{count} cells failed, or wait for one that did; {why}", file=sys.stderr)
    return int(failed)


def _report(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _show(facts: dict[str, Any], named: str, again: str, results_folder: Path, ready: int) -> str:
    """The text about one submission.

    `named`: how the user named the study. `again`: the command that submits it. `ready`: cells that
    can start on the login node now.
    """
    lines = []
    if facts["jobs"]:
        lines += [tabulate(facts["jobs"], headers="keys"), ""]
    lines.append(
        f"{facts['cells']} cells: {facts['finished']} finished, "
        f"{facts['queued']} in the queue already, {facts['submitted']} submitted now"
    )
    if facts["left"]:
        what = "submit again"
        if facts["continues"]:
            what = f"job {facts['continues']} submits them"
        lines.append(
            f"{facts['left']} cells remain because of the limits on jobs and disk; "
            f"{what} when other jobs have ended"
        )
        if not facts["continues"]:
            lines.append("--until-done submits them from here, as the limit allows")
    if facts["login"]:
        stages = ",".join(facts["login"])
        lines.append(
            f"left to this login node: python -m study run {named} --stages {stages}; "
            f"{ready} cells can start there now, {facts['behind']} cells wait for it: submit again "
            "when it has ended"
        )
    for line in facts["waits"]:
        lines.append(f"waits: {line}; they start when enough are up")
    if facts["held"]:
        lines.append(f"Slurm holds jobs back: scontrol release {' '.join(facts['held'])}")
    lines += _orphan_lines(facts["orphans"], named)
    if len(copies := facts["queued_code"]) > sum(row["current"] for row in copies):
        lines += _code_lines(copies, named, again)
    if facts["finished"] == facts["cells"]:
        lines.append(f"nothing is missing; the results are in {results_folder}")
    else:
        lines.append(
            f"python -m study status {named} shows the progress; "
            f"the results will be in {results_folder}"
        )
    return "\n".join(lines)


def _orphan_lines(orphans: list[dict[str, Any]], named: str) -> list[str]:
    """The queued jobs of an earlier version of the study file, and the command that ends them."""
    if not orphans:
        return []
    cells = [cell for row in orphans for cell in row["cells"]]
    shown = ", ".join(cells[:MAX_NAMES])
    more = f" and {len(cells) - MAX_NAMES} more" if cells[MAX_NAMES:] else ""
    return [
        f"{len(orphans)} queued jobs run cells that are not in the study file now: {shown}{more}",
        f"to cancel them and no others: python -m study cancel {named} --orphans",
    ]


def _code_lines(copies: list[dict[str, Any]], named: str, again: str) -> list[str]:
    """Which code the queued jobs run, and the commands by which all run the code as it is now."""
    lines = ["queued jobs run the code as it was when they were submitted:"]
    for row in copies:
        commit = f"commit {row['commit'][:8]}" if row["commit"] else "commit not known"
        state = {True: ", with changes that are not committed", False: ""}.get(row["dirty"], "")
        copy = f" ({Path(row['code']).name})" if row["code"] else ""
        now = "; the code as it is now" if row["current"] else ""
        lines.append(f"  {row['jobs']} jobs: {commit}{state}{copy}{now}")
    return [
        *lines,
        f"to run all by the code as it is now: python -m study cancel {named} && {again}",
    ]
