"""What several commands share.

The study and its arguments as typed, checks before anything runs, the results that are shown.
"""

import argparse
import math
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from core.cell.external_files import check_unchanged
from core.cell.identity import Cell
from core.cell.manifest import LINKED, read_manifest
from core.cell.release import RECORD, register_readers, release
from core.declaration import FILE, read_declaration, short
from core.errors import Problem, UserError
from core.paths import ROOT, as_seen_on_nodes
from core.stages import STAGES, TRAINING_STAGES
from core.strict_yaml import did_you_mean
from core.visible_gpus import visible_gpus
from study.forecast import study_cost
from study.forecast.budget import check_budget, parse_budget
from study.forecast.gpu_rates import stage_gpu, stage_rates
from study.forecast.training_time import Layout
from study.spec.addition import Addition
from study.spec.doses import unreachable
from study.spec.load import load_study
from study.spec.schema import Study
from study.spec.source_cells import sources
from study.spec.sources import Source, locate, missing
from study.spec.start_models import model_problems
from study.upkeep.prune import needed_again
from study.upkeep.replaced import ASK_ABOVE, check_replaced, replaced

CLUSTER = "cluster."  # how an override begins that is of the cluster profile
BUDGET_HELP = (
    "exit with an error if the forecast exceeds a limit, such as cost=200 gpu_hours=500 "
    "disk_gb=2000"
)


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that start cells; `check_before_start` reads them."""
    parser.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=BUDGET_HELP)
    limits = " or ".join(f"{key} {limit:g}" for key, limit in ASK_ABOVE.items())
    parser.add_argument(
        "--yes",
        action="store_true",
        help="replace finished cells whose settings changed, even if they took more than "
        f"{limits}; train again what is needed and was pruned",
    )


def add_stages_argument(parser: argparse.ArgumentParser) -> None:
    """The option of the commands that start cells of some stages alone."""
    parser.add_argument(
        "--stages",
        type=stage_names,
        default=STAGES,
        metavar="STAGE,STAGE",
        help="start only cells of these stages, such as drafts,documents,judge",
    )


def stage_names(text: str) -> tuple[str, ...]:
    """The type of an option that lists stages, separated by commas."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in STAGES]:
        guess = did_you_mean(unknown[0], list(STAGES))
        valid = ", ".join(STAGES)
        raise argparse.ArgumentTypeError(f"no stage {unknown[0]!r}{guess}; stages are {valid}")
    return names


def startable(todo: list[Cell], stages: Collection[str]) -> list[Cell]:
    """Those of the unfinished cells `todo` that can run when only cells of `stages` do."""
    unfinished_now = {cell.identity for cell in todo}
    chosen: dict[str, Cell] = {}
    for cell in todo:  # inputs before their users
        inputs = [used.identity for used in cell.inputs.values()]
        if cell.stage in stages and all(
            identity in chosen or identity not in unfinished_now for identity in inputs
        ):
            chosen[cell.identity] = cell
    return list(chosen.values())


def needed_first(todo: list[Cell], stages: Collection[str]) -> list[str]:
    """The other stages whose unfinished cells those of `stages` need. `todo`: unfinished cells."""
    unfinished_now = {cell.identity for cell in todo}
    needed = {
        used.stage
        for cell in todo
        for used in cell.inputs.values()
        if cell.stage in stages and used.identity in unfinished_now
    }
    return [stage for stage in STAGES if stage in needed and stage not in stages]


def positive(text: str) -> int:
    """The type of an option that counts, such as `--jobs`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def seconds(text: str) -> float:
    """The type of an option that is a time to wait."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait")
    return number


def load(args: argparse.Namespace, addition: Addition | None = None) -> tuple[Study, Path]:
    """The study of the command line, with an addition to it, and its folder below `--runs`."""
    if cluster_overrides(args) and not getattr(args, "cluster", None):
        raise UserError(
            where=f"--set {CLUSTER}{cluster_overrides(args)[0]}",
            what="is a value of a cluster profile, and this command reads none",
            fix="leave it out, or name the profile of `plan` or `submit` by --cluster",
        )
    study = load_study(args.study, args.seeds, _study_overrides(args), addition)
    return study, as_seen_on_nodes(args.runs.absolute()) / study.study


def check_archive_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that an archive in the place of a study file does not take."""
    given = [option for option in ("seeds", "overrides", "trace") if getattr(args, option, None)]
    if given:
        option = {"overrides": "set"}.get(given[0], given[0])
        raise UserError(
            where=f"--{option}",
            what=f"has no meaning for an archive, {args.study}",
            fix="leave it out, or name the study file",
        )


def _study_overrides(args: argparse.Namespace) -> list[str]:
    return [text for text in args.overrides or [] if not text.startswith(CLUSTER)]


def cluster_overrides(args: argparse.Namespace) -> list[str]:
    """What `--set cluster.KEY=VALUE` sets in the cluster profile, without the `cluster.`."""
    overrides = args.overrides or []
    return [text.removeprefix(CLUSTER) for text in overrides if text.startswith(CLUSTER)]


def load_cluster(args: argparse.Namespace) -> Any:
    """The cluster profile (slurm.profile) of the command line; None without `--cluster`."""
    if args.cluster is None:
        return None
    from slurm.profile import load_profile

    return load_profile(args.cluster, cluster_overrides(args))


def cluster_args(args: argparse.Namespace) -> str:
    """The cluster profile as the user named it, with what was set in it: words of a shell."""
    words = [str(args.cluster)]
    for override in cluster_overrides(args):
        words += ["--set", f"{CLUSTER}{override}"]
    return shlex.join(words)


def study_args(args: argparse.Namespace) -> str:
    """The arguments that name the study, as the user typed them: for a command to type next."""
    words = [str(args.study)]
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    for override in _study_overrides(args):
        words += ["--set", override]
    words += ["--runs", str(args.runs)] if args.runs != ROOT / "runs" else []
    return shlex.join(words)


def start_command(base: Path, named: str, is_toy: bool) -> str:
    """The command that starts the unfinished cells of a study, as it can be typed.

    It submits where the study was submitted before, and on a login node (Slurm and no GPU) any
    study but one of toy models. Else it runs them on this machine.

    `named`: of `study_args`. `is_toy`: whether the kit makes all its models.
    """
    if (base / "slurm" / "jobs.jsonl").exists():
        return submit_command(base, named)
    if not is_toy and shutil.which("sbatch") and not visible_gpus():
        return submit_command(base, named)
    return f"python -m study run {named}"


def has_toys_alone(study: Study) -> bool:
    """Whether the kit makes all models of a study."""
    return all(model.make for model in study.models.values())


def submit_command(base: Path, named: str, cluster: str | None = None) -> str:
    """The command that submits a study, as it can be typed.

    The cluster profile is that of the study's last submission, else the one that the user has
    written, else a NAME to fill in.

    `named`: of `study_args`. `cluster`: of `cluster_args`, where the caller knows it.
    """
    from slurm import profile, submissions

    cluster = cluster or submissions.last_cluster(base / "slurm")
    cluster = cluster or shlex.quote(profile.written_profile() or "NAME")
    return f"python -m study submit {named} --cluster {cluster}"


def parallel_plans(profile: Any) -> dict[str, Layout]:
    """Where trainings run, by stage, by a cluster profile (slurm.profile); empty without one."""
    if profile is None:
        return {}
    layouts = {}
    for stage in TRAINING_STAGES:
        resources = profile.resources(stage)
        layouts[stage] = Layout(
            resources.nodes * resources.tasks_per_node,
            resources.tasks_per_node,
            resources.minutes,
            profile.requeue,
            resources.gpu_memory_gb,
            resources.tokens_per_second,
            stage_gpu(profile, stage),
            stage_rates(profile, stage),
            resources.mem_gb and resources.mem_gb * 2**30 / 1e9,
            profile.signal_seconds,
        )
    return layouts


def shown_names(cells: list[Cell]) -> dict[str, str]:
    """Names of the cells by identity; where two cells of a stage have one, with the hash."""
    counts = Counter((cell.stage, cell.name) for cell in cells)
    return {
        cell.identity: cell.label if counts[cell.stage, cell.name] > 1 else cell.name
        for cell in cells
    }


def unfinished(cells: list[Cell], base: Path) -> list[Cell]:
    """Those of the cells that have no manifest yet."""
    return [cell for cell in cells if not read_manifest(base / cell.relpath)]


def unlink_moved(cells: list[Cell], base: Path) -> None:
    """Make the finished cells that link to a model's former place unfinished: they link anew.

    Raises UserError where the model at the new place is not the one that the cell was made with,
    though sizes and ends of its files are the same.
    """
    for cell in cells:
        planned = cell.resources.get("files", {}).get(LINKED)
        if not planned:
            continue
        folder = base / cell.relpath
        linked = ((read_manifest(folder) or {}).get("files", {})).get(LINKED)
        if linked and planned != linked["path"] and Path(planned).exists():
            check_unchanged({LINKED: {**linked, "path": planned}}, base, f"{folder} was made")
            (folder / "manifest.json").unlink()


def prepare_folders(cells: list[Cell], base: Path, args: argparse.Namespace) -> list[Cell]:
    """Make the folders of a study's cells fit for a start; returns the unfinished cells.

    Cells that link to a model's former place become unfinished (`unlink_moved`); with `--yes` so do
    checkpoints whose weights went and are needed again. Noted is which cells read checkpoints.
    Weights that a killed cell has left are removed.
    """
    unlink_moved(cells, base)
    for problem in needed_again(cells, base) if args.yes else ():
        for manifest in problem.manifests:
            manifest.unlink(missing_ok=True)
    remaining = unfinished(cells, base)
    register_readers(remaining, base)
    identities = {cell.identity for cell in remaining}
    for cell in cells:
        for role in cell.resources.get("release", ()):
            checkpoint = base / cell.inputs[role].relpath
            if cell.identity not in identities and not (checkpoint / RECORD).exists():
                release(checkpoint, base)
    return remaining


def check_before_start(
    args: argparse.Namespace,
    study: Study,
    base: Path,
    cells: list[Cell],
    todo: list[Cell],
    profile: Any = None,
) -> None:
    """Raise UserError for what would otherwise stop the cells in hours.

    Checked are: pruned checkpoints that an unfinished cell would read, API keys that the
    environment lacks, doses that a recipe does not reach, what the cells would refuse of a start
    model, models and data sets that are not here yet (compute nodes have no network to get them
    by), `--budget`, and without `--yes` finished cells that would be made again.

    Args:
        args: The command line.
        study: The study.
        base: Its folder below `--runs`.
        cells: All cells of the study.
        todo: Those that are started now.
        profile: The cluster profile (slurm.profile), where there is one.
    """
    started = {cell.identity for cell in todo}
    in_question = [c for c in cells if c.identity in started or read_manifest(base / c.relpath)]
    if pruned := needed_again(in_question, base):
        raise UserError.of(pruned)
    if problems := _missing_keys(todo):
        raise UserError.of(problems)
    if problems := [*unreachable(study), *model_problems(todo)]:
        raise UserError.of(problems)
    if problems := missing(_sources_of(study, todo), study_args(args)):
        raise UserError.of(problems)
    budget = parse_budget(args.budget)
    room = profile.disk_gb if profile else None
    if budget or room:
        # Only `submit` bounds the trainings on their way.
        limit_gb = budget.get("disk_gb") if profile else None
        totals = study_cost.totals(cells, base, parallel_plans(profile), profile, limit_gb)
        check_budget(totals, budget)
        check_budget(totals, {"disk_gb": room} if room else {}, "in the cluster profile")
    check_replaced(replaced(in_question, base, profile), args.yes)


def _sources_of(study: Study, cells: list[Cell]) -> list[Source]:
    """The sources that these cells read."""
    files = {path for cell in cells for path in cell.resources.get("files", {}).values()}
    return [source for source in sources(study) if str(locate(source)) in files]


def _missing_keys(cells: list[Cell]) -> list[Problem]:
    names = {cell.resources.get("address", {}).get("key_env") for cell in cells}
    what = "is not set; an endpoint reads its key from it"
    return [
        Problem("", f"{name} {what}", f"export {name}=...")
        for name in sorted(name for name in names if name and not os.environ.get(name))
    ]


def show_declaration(base: Path) -> None:
    """Print the hash of the study's declaration, and how a third party can date it."""
    if record := read_declaration(base):
        tag = f"declared-{base.name}-{short(record['sha256'])}"
        text = shlex.quote(f"{base.name} declared, sha256 {record['sha256']}")
        print(f"declared as {record['sha256']} ({relative_to_cwd(base / FILE)})")
        print("to have a third party date it, push a tag:")
        print(f"  git tag -a {tag} -m {text} && git push origin {tag}")


def show_results(results: Path, args: argparse.Namespace) -> None:
    """Print the headline of the results, and where all of them are."""
    if args.json:
        return print((results / "results.json").read_text())
    print((results / "headline.txt").read_text())
    for label, name in (("report", "report.html"), ("tables", "tables"), ("data", "results.json")):
        print(f"{label:<7} {relative_to_cwd(results / name)}")


def relative_to_cwd(path: Path) -> Path:
    """The path relative to the working directory where it is below it, else as it is."""
    here = as_seen_on_nodes(Path.cwd())
    return path.relative_to(here) if path.is_relative_to(here) else path
