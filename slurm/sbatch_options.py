"""Options of sbatch that a profile passes on (`sbatch:`), and those that have a setting instead."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator

# What the kit writes itself, or would not work with another value -> what to set instead.
_INSTEAD = {
    "partition": "set partition",
    "account": "set account",
    "qos": "set qos",
    "constraint": "set constraint",
    "time": "set minutes",
    "nodes": "set nodes",
    **dict.fromkeys(
        ("ntasks", "ntasks-per-node", "ntasks-per-gpu", "ntasks-per-socket", "ntasks-per-core"),
        "set tasks_per_node",
    ),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "set cpus, the cores of one task"),
    "mem": "set mem_gb",
    **dict.fromkeys(
        ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-task"),
        "set gpus_per_node, such as gpus_per_node: h100:4",
    ),
    "array": "set array_parallelism and max_array",
    "signal": "set signal_seconds",
    **dict.fromkeys(("requeue", "no-requeue"), "set requeue"),
    **dict.fromkeys(("dependency", "kill-on-invalid-dep"), "jobs wait for their own inputs"),
    "job-name": "names tell study, stage and cell",
    "comment": "the kit finds its jobs by their comments",
    **dict.fromkeys(("output", "error", "input", "open-mode"), "logs are in runs/STUDY/slurm/jobs"),
    "chdir": "jobs run from a copy of the code",
    **dict.fromkeys(("export", "export-file", "propagate"), "set variables by a line of setup"),
    **dict.fromkeys(("clusters", "cluster"), "submit on a login node of that cluster"),
    **dict.fromkeys(
        ("wrap", "test-only", "parsable", "wait", "hold", "help", "usage", "version"),
        "it is no request of a job",
    ),
}
# In place of mem_gb, which is the memory of a node: some sites refuse that.
MEMORY = ("mem-per-cpu", "mem-per-gpu")
# The letters of sbatch's options (`man sbatch`).
_LETTERS = {
    "A": "account",
    "a": "array",
    "B": "extra-node-info",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "O": "overcommit",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "W": "wait",
    "w": "nodelist",
    "x": "exclude",
}


def _check_name(name: str) -> str:
    bare = name.strip("-")
    long = _LETTERS.get(bare) or bare.replace("_", "-").lower()
    # sbatch takes every beginning of an option's name that no other option has.
    meant = [option for option in _INSTEAD if len(long) > 1 and option.startswith(long)]
    if meant and long not in MEMORY:
        raise ValueError(f"is written by the kit: {_INSTEAD.get(long, _INSTEAD[meant[0]])}")
    if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
        example = long if len(long) > 1 and re.fullmatch(r"[a-z0-9-]+", long) else "mail-type"
        raise ValueError(f"must be a long option of sbatch without its dashes, such as {example}")
    return name


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if "\n" in str(_text(value)):
            raise ValueError(f"{name} must be one line")
        is_tres = name == "gres" or name.startswith("tres-per-")
        if is_tres and re.search(r"\bgpu\b", str(_text(value)), re.IGNORECASE):
            raise ValueError(f"{name} of GPUs is written by the kit: {_INSTEAD['gpus']}")
    return options


def _check_value(value: Any) -> Any:
    values = value if isinstance(value, list) and value else [value]
    if not all(isinstance(item, str | int | float) for item in values):
        raise ValueError("must be a text, a number, true, false, or a list of these")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Value = Annotated[Any, AfterValidator(_check_value)]
Options = Annotated[dict[Name, Value], AfterValidator(_check_options)]


def merged(of_all: dict[str, Any], of_stage: dict[str, Any]) -> dict[str, Any]:
    """A stage's options: its own in place of the profile's, but for nodes that either excludes."""
    options = of_all | of_stage
    if of_all.get("exclude") and of_stage.get("exclude"):
        options["exclude"] = f"{_text(of_all['exclude'])},{_text(of_stage['exclude'])}"
    return options


def as_parameters(options: dict[str, Any]) -> dict[str, str | bool]:
    """The options as submitit's `additional_parameters`: True is a flag, false leaves one out."""
    return {name: _text(value) for name, value in options.items() if value is not False}


def _text(value: Any) -> str | bool:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)
