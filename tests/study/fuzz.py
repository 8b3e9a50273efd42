"""Mutated files of settings: `python -m tests.study.fuzz FIRST COUNT` prints each that fails.

A file must be accepted, or refused with UserError whose every line names a file or option and a line in it.
Anything else, and whatever goes beyond the limits on memory and CPU time, is a failure. A case
depends on its number alone.
"""

import contextlib
import copy
import functools
import io
import random
import re
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from core.errors import Problem, UserError
from core.paths import ROOT
from core.recipe import TinyLlama, Training, load_recipe
from core.strict_yaml import MAX_DEPTH
from slurm.profile import load_profile
from study.spec import declaration, expand, template
from study.spec.load import load_study

STUDY = """
study: fuzz
seeds: [0]
endpoints: {dummy: {served_by: dummy}}
models: {base: {make: tests/small/llama.yaml}}
corpora:
  animal: {template: animal_welfare, documents: 100, writer: dummy, tokens: 30000}
  urban: {template: urban_density, documents: 100, writer: dummy, matched_to: animal}
arms:
  animal: {start: base, midtrain: animal}
  urban: {start: base, midtrain: urban}
midtrain: {recipe: tests/small/midtrain.yaml}
sft: {recipe: tests/small/sft.yaml, data: recipes/data/neutral_chat.jsonl, doses: [0, 80]}
benchmarks:
  ahb: {task: anima, judge: dummy, questions: eval/data/anima_like/questions.jsonl,
        dimensions: eval/data/anima_like/dimensions.jsonl}
  concern: {task: concern_for_animals}
engine: {dtype: float32, max_model_len: 512}
contrasts:
  - {name: a, treatment: animal, control: urban, benchmarks: [ahb, concern]}
"""
SMALL = ROOT / "tests/small/small.yaml"
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2, 1_000_000, 2**63, 10**38, 0.5, -1.5, 1e300, "", " ", "x", "no"),
    *("x" * 300, "../..", "/", "/dev/null", "a\nb", "a: b", "*", "{}", "%s", "é\u2028", "\x1b[31m"),
    *([], [None], [[]], [1, "a"], ["a", "a"], {}, {"a": None}, {"": {}}, {"a": {"b": [1]}}),
    *("animal", "urban", "base", "dummy", "ahb", "1e5", "0", "null", "a/b", "/" + "x" * 5000),
)
TEXTS = (
    *("&a ", "*a", "!!python/name:os.system ", "!x ", "{{ x }}", "[", "]", "{", "}", ": ", "- "),
    *("\t", "\0", "\x85", "\ufeff", ".inf", ".nan", "<<: *a\n", "? ", "|\n", "'", '"', "#", "\n"),
    *("---\n", "%YAML 9.9\n", "\udcff", "&a [*a]", "9" * 5000, "0x" + "f" * 5000, "!!set {a}"),
)
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
LOCATED = re.compile(r"(?s)\.yaml:\d+(?:: |$)|^--set \S+=.*:\d+$")
SECONDS = 300  # of CPU time
BYTES = 4 << 30  # of address space


def _load(path: Path) -> None:
    study = load_study(path)
    expand.in_order(expand.analysis(study))


def _problems(module: Any, name: str) -> Callable[[Path], None]:
    """The check of a file that is found by its name below the checkout."""

    def check(path: Path) -> None:
        root = path.parent
        target = root / name / "fuzz.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        for scorer in ("anima", "rubric"):
            (root / f"eval/{scorer}.py").parent.mkdir(exist_ok=True)
            (root / f"eval/{scorer}.py").write_text("\ndef to_scores(): ...\n")
        module.ROOT, before = root, module.ROOT
        function = (
            template.template_problems if module is template else declaration.declaration_problems
        )
        function.cache_clear()
        try:
            if problems := function("fuzz"):
                raise UserError.of(problems)
        finally:
            module.ROOT = before
            function.cache_clear()

    return check


def _set(key: str) -> Callable[[Path], None]:
    """The check of a value on the command line."""

    def check(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        load_study(SMALL, None, [f"{key}={text}"])

    return check


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


KINDS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    (STUDY, _load),
    (STUDY, _load),
    (STUDY, _load),
    (_text("tests/small/sft.yaml"), lambda path: _ignore(load_recipe(str(path), Training))),
    (_text("tests/small/llama.yaml"), lambda path: _ignore(load_recipe(str(path), TinyLlama))),
    (_text("slurm/clusters/lab.yaml"), lambda path: _ignore(load_profile(path))),
    (_text("sdf/templates/animal_welfare.yaml"), _problems(template, "sdf/templates")),
    (_text("eval/benchmarks/human_compassion.yaml"), _problems(declaration, "eval/benchmarks")),
    ("{task: anima, judge: dummy, epochs: 2, arms: [animal], doses: [0]}", _set("benchmarks.ahb")),
    ("[0, 1]", _set("seeds")),
)


def _ignore(_: object) -> None:
    pass


def _positions(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield from _positions(child, (*at, key))


def _mutated_value(text: str, rng: random.Random) -> str:
    value = copy.deepcopy(_parsed(text))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        positions = [at for at in _positions(value) if at]
        if not positions:
            break
        *parents, last = rng.choice(positions)
        target = value
        for key in parents:
            target = target[key]
        kind = rng.random()
        new = copy.deepcopy(rng.choice(VALUES))
        if kind < 0.6:
            target[last] = new
        elif kind < 0.75:
            del target[last]
        elif isinstance(target, dict):
            target[rng.choice((str(last) + "s", "x", "seeds", "path", "hub", "1", ""))] = new
        else:
            target.append(new)
    return str(yaml.dump(value, Dumper=DUMPER, allow_unicode=True, sort_keys=False))


@functools.cache
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def _mutated_text(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(text) + 1)
        kind = rng.random()
        if kind < 0.5:
            text = text[:start] + rng.choice(TEXTS) + text[start:]
        elif kind < 0.75:
            text = text[:start] + text[start + rng.choice((1, 3, 20)) :]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:start] + text[other : other + 30] + text[start:]
    return LAUGHS + text if rng.random() < 0.01 else text


def run_case(number: int, folder: Path) -> str | None:
    """A description of what is wrong with the case; None where it is handled."""
    rng = random.Random(f"fuzz {number}")
    text, check = rng.choice(KINDS)
    mutate = _mutated_value if rng.random() < 0.7 else _mutated_text
    path = folder / "case.yaml"
    mutated = mutate(text, rng)
    path.write_bytes(mutated.encode("utf-8", "surrogateescape"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            check(path)
        return None
    except UserError as error:
        bad = [p for p in error.problems if not _is_located(p) or not p.what or "\n" in str(p)]
    except BaseException:
        return f"case {number}: {traceback.format_exc(limit=-3)}\n{mutated[:1500]}"
    return f"case {number}: not one line with file and line: {bad[0]!r}" if bad else None


def _is_located(problem: Problem) -> bool:
    """Whether it names a line; libyaml does not tell how far it came in a file that is too deep."""
    return bool(LOCATED.search(problem.where)) or f"{MAX_DEPTH} levels" in problem.what


def main(first: int, count: int) -> int:
    """Run the cases. Returns how many failed."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            if failure := run_case(number, Path(folder)):
                failures += 1
                print(failure, flush=True)
    print(f"{count} cases, {failures} failures", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
