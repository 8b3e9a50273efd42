"""Fill the generated blocks of README.md and docs/*.md: python -m docs.generate [--check]

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`. With --check nothing is
written, and the exit code is 1 where a block is not up to date; tests/test_docs.py runs that.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from core.cell.failures import KNOWN_FAILURES
from core.paths import ROOT

BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING_RUN = Path("/nonexistent/runs")  # a forecast must not depend on what has run here


def attribute_docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring below it."""
    (node,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    texts = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value)).replace(
                "\n", " "
            )
    return texts


def type_name(hint: Any) -> str:
    """A type hint in the words of YAML."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        is_any = args[1] is Any or typing.get_args(args[1])[:1] == (Any,)
        return "mapping" if is_any else f"mapping to {type_name(args[1])}"
    if args:
        return " or ".join(type_name(arg) for arg in args if arg is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(hint) or f"[{hint.__name__}](#{hint.__name__.lower()})"


def default_of(field: "dataclasses.Field[Any]") -> str:
    default: Any = (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )
    info = default if hasattr(default, "is_required") else None  # pydantic's FieldInfo
    if info is not None:
        if info.is_required():
            return "required"
        default = info.get_default(call_default_factory=True)
    if default is dataclasses.MISSING:
        return "required"
    if default in (None, [], {}) or dataclasses.is_dataclass(default):
        return ""
    if isinstance(default, str) and "\n" in default:
        text = json.dumps(default)  # YAML would break the table's line
    else:
        text = yaml.safe_dump(default, default_flow_style=True, width=10**6)
        text = text.removesuffix("...\n").strip()
    return f"`{text}`" if len(text) < 40 else "see the source"


def fields_table(kind: type) -> str:
    """A table of a dataclass' fields: key, type, default, meaning."""
    texts, hints = attribute_docstrings(kind), typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        assert field.name in texts, f"{kind.__name__}.{field.name} has no docstring"
        rows.append(
            [f"`{field.name}`", type_name(hints[field.name]), default_of(field), texts[field.name]]
        )
    table = tabulate(
        rows,
        headers=["key", "type", "default", "meaning"],
        tablefmt="github",
        disable_numparse=True,
    )
    return re.sub(r" {2,}", " ", re.sub(r"-{4,}", "---", table))


def sections(module: str, names: list[str]) -> str:
    """A section for each of a module's dataclasses."""
    kinds = [getattr(importlib.import_module(module), name) for name in names]
    return (
        "\n\n".join(f"### {k.__name__}\n\n{inspect.getdoc(k)}\n\n{fields_table(k)}" for k in kinds)
        + "\n"
    )


def study_file() -> str:
    names = [
        "Study",
        "Endpoint",
        "Request",
        "Model",
        "Corpus",
        "QualityFilter",
        "Arm",
        "Step",
        "Rl",
        "Reward",
        "Midtrain",
        "Sft",
        "Remote",
        "Benchmark",
    ]
    return sections("study.spec.schema", [*names, "Engine", "Contrast", "Costs", "Tables"])


def studies() -> str:
    """The shipped study files, with the first sentence of each."""
    rows = []
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: re.match("# ?[^ ]", line), lines)
        text = " ".join(line.removeprefix("# ") for line in comment)
        sentence = re.split(r"(?<=[.?]) |:? (?:make|python -m) |:$", text)[0]
        rows.append([f"[{path.name}](../studies/{path.name})", sentence.rstrip(".")])
    return markdown(rows, ["file", "what it is"])


def recipe_file() -> str:
    return sections("core.recipe", ["Training", "Lora", "TinyLlama"])


def grpo_recipe() -> str:
    return sections("core.grpo_recipe", ["Grpo"])


def cluster_profile() -> str:
    return sections("slurm.profile", ["Profile", "Resources", "Measured"])


def markdown(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) + "\n"


def failures() -> str:
    rows = [
        [
            known.name,
            known.fix,
            "yes" if known.is_transient else "",
            f"`{known.pattern.pattern}`".replace("|", r"\|"),
        ]
        for known in KNOWN_FAILURES
    ]
    return markdown(rows, ["cause", "fix", "retried", "sign in a log (regular expression)"])


def endpoint_presets() -> str:
    from study.spec.presets import presets

    rows = []
    for name, preset in presets().items():
        request = yaml.safe_dump(preset["request"], default_flow_style=True, width=10**6).strip()
        facts = "; ".join(f"{fact} ({source or 'no source'})" for fact, source in preset["facts"])
        rows.append([f"`{name}`", preset["base_url"], f"`{request}`", facts])
    return markdown(rows, ["preset", "base_url", "request", "what is known, and its source"])


def commands() -> str:
    from study.cli import import_commands

    rows = [
        [f"`{m.__name__.rpartition('.')[2]}`", (m.__doc__ or "").splitlines()[0]]
        for m in import_commands([])
    ]
    return markdown(rows, ["command", "what it does"])


def benchmarks() -> str:
    rows = []
    for path in sorted((ROOT / "eval/benchmarks").glob("*.yaml")):
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        rows.append(
            [f"`{path.stem}`", f"`{declared['scorer']}`", declared.get("rows") or "", title]
        )
    return markdown(rows, ["task", "scorer", "rows", "what it is"])


def cost_assumptions() -> str:
    from study.forecast.assumptions import ASSUMPTIONS

    rows = [[a.what, f"{a.value:g}", a.unit, a.why] for a in ASSUMPTIONS]
    return markdown(rows, ["quantity", "value", "unit", "source"])


def gpu_types() -> str:
    from core.gpu_specs import GPUS

    rows = [
        [
            f"`{gpu.name.replace(' ', '_')}`",
            f"{gpu.peak_flops / 1e12:.0f}",
            f"{gpu.memory_bandwidth / 1e9:,.0f}",
            f"{gpu.link / 1e9:.0f}",
            gpu.source,
        ]
        for gpu in GPUS
    ]
    return markdown(rows, ["type", "peak, bf16 TFLOP/s", "memory, GB/s", "link, GB/s", "source"])


def forecast() -> str:
    """What `plan --cluster slurm/clusters/university.yaml` says of the three large studies."""
    from slurm.profile import load_profile
    from study.commands.common import parallel_plans
    from study.forecast import study_cost
    from study.spec import expand
    from study.spec.load import load_study

    profile, rows = load_profile(ROOT / "slurm/clusters/university.yaml"), []
    for name in ("paper", "paper_lora", "pilot"):
        cells = expand.in_order(expand.analysis(load_study(ROOT / f"studies/{name}.yaml")))
        totals = study_cost.totals(cells, NOTHING_RUN, parallel_plans(profile), profile)
        whole = totals["study"]
        row = [
            f"{name}.yaml",
            f"{len(cells):,}",
            f"{whole['gpu_hours']:,.1f}",
            f"{whole['cpu_hours']:,.0f}",
        ]
        disk = f"{totals['peak_gb']:,.0f}", f"{whole['disk_gb']:,.0f}"
        rows.append([*row, f"{whole['calls']:,.0f}", f"{whole['cost']:,.2f}", *disk])
    headers = ["study", "cells", "GPU-hours", "CPU-hours", "API calls", "API cost, $"]
    return markdown(rows, [*headers, "disk at most, GB", "at the end"])


BLOCKS: dict[str, Callable[[], str]] = {
    "studies": studies,
    "study-file": study_file,
    "endpoint-presets": endpoint_presets,
    "recipe-file": recipe_file,
    "grpo-recipe": grpo_recipe,
    "cluster-profile": cluster_profile,
    "failures": failures,
    "commands": commands,
    "benchmarks": benchmarks,
    "cost-assumptions": cost_assumptions,
    "gpu-types": gpu_types,
    "forecast": forecast,
}


def filled(text: str) -> str:
    """The text with every generated block made anew."""
    return BLOCK.sub(lambda match: match[1] + BLOCKS[match["name"]]() + match[3], text)


def main() -> int:
    check, stale = "--check" in sys.argv[1:], []
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = file.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(file)
            if not check:
                file.write_text(new, encoding="utf-8")
    for file in stale:
        state = "out of date; python -m docs.generate" if check else "written"
        print(f"{file.relative_to(ROOT)}: {state}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
