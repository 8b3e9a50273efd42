"""Read a study file: YAML in, `schema.Study` out, or every mistake in it at once."""

import copy
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core.errors import Problem, UserError
from core.strict_yaml import LineNumbers, in_file_order, located, override, read_yaml, validate_file
from core.yaml_text import to_yaml
from study.spec.addition import Addition
from study.spec.arm_checks import arm_mistakes
from study.spec.chain_checks import with_step_arms
from study.spec.chains import with_chains
from study.spec.checks import (
    THIS_STUDY,
    has_replicates,
    recipe_names,
    references,
    task_names,
    template_names,
)
from study.spec.claim_roles import role_mistakes
from study.spec.contrast_checks import contrast_mistakes
from study.spec.corpus_checks import corpus_mistakes
from study.spec.declaration import declaration_problems
from study.spec.endpoint_checks import endpoint_mistakes
from study.spec.fingerprints import recipe_problems
from study.spec.macro_checks import macro_mistakes
from study.spec.path_checks import path_mistakes
from study.spec.presets import fill_in_presets
from study.spec.rl_checks import rl_mistakes
from study.spec.schema import Study
from study.spec.template import template_problems
from study.spec.value_checks import value_mistakes


def load_study(
    path: Path,
    seeds: list[int] | None = None,
    overrides: list[str] | None = None,
    addition: Addition | None = None,
) -> Study:
    """The study in `path`, with `--seeds` and `--set key.path=value` applied.

    `addition`: arms and contrasts beside those of the file. Raises UserError with every mistake in
    the file.
    """
    raw, lines, problems = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(where=str(path), what="must be a mapping that starts with `study: NAME`")
    if "extends" in raw:
        raw, problems = _extended(path, raw.pop("extends"), raw, problems)
    for text in overrides or []:
        override(raw, text, "the study file")
    if addition:
        problems += addition.add_to(raw)
    if seeds is not None:
        problems += _run_only(raw, seeds)
    return _checked(path, raw, lines, problems)


def _checked(path: Path, raw: dict[str, Any], lines: LineNumbers, problems: list[Problem]) -> Study:
    """The study that the file in `path` is; `raw` gets the values of presets.

    Raises UserError with `problems` and every mistake.
    """
    fill_in_presets(raw)
    study, mistakes = validate_file(path, raw, Study, lines)
    problems += mistakes
    in_names = [*arm_mistakes(raw), *path_mistakes(raw)]
    with_steps = with_step_arms(raw)  # other settings may name arms that end with a step
    in_names += [
        mistake
        for check in (
            references,
            corpus_mistakes,
            endpoint_mistakes,
            contrast_mistakes,
            role_mistakes,
            macro_mistakes,
            value_mistakes,
            rl_mistakes,
        )
        for mistake in check(with_steps)
    ]
    typed = shlex.quote(str(path))
    problems += [
        located(path, m.at, m.what, lines, m.fix.replace(THIS_STUDY, typed)) for m in in_names
    ]
    problems += [problem for recipe in recipe_names(raw) for problem in recipe_problems(*recipe)]
    problems += [problem for name in template_names(raw) for problem in template_problems(name)]
    problems += [problem for name in task_names(raw) for problem in declaration_problems(name)]
    if problems or study is None:
        raise UserError.of(in_file_order(problems))
    return with_chains(study)


def dump_study(study: Study) -> str:
    """A study file that is read as `study`: without `extends`, and with what was overridden."""
    content = TypeAdapter(Study).dump_python(study, mode="json", exclude_defaults=True)
    return to_yaml(content, width=100)


def _run_only(raw: dict[str, Any], seeds: list[int]) -> list[Problem]:
    """Run only `seeds`, and add to the study's those that are not among them.

    A problem for each that can't be added, since its position, by which a corpus with replicates
    gives it one, would change with the next one added.
    """
    planned = raw["seeds"] if isinstance(raw.get("seeds"), list) else []
    added = [seed for seed in seeds if seed not in planned]
    raw["seeds"] = planned + added
    raw["only_seeds"] = seeds
    if not added or not has_replicates(raw):
        return []
    what = "is not in `seeds`, whose order says on which replicate of a corpus a seed is trained"
    fix = "add it at the end of `seeds` in the study file"
    return [Problem(f"--seeds {seed}", what, fix) for seed in added]


def _extended(
    path: Path, other: Any, raw: dict[str, Any], problems: list[Problem]
) -> tuple[dict[str, Any], list[Problem]]:
    """The study `other` beside `path` with the keys of `raw` instead; null removes a key."""
    if not isinstance(other, str):
        raise UserError(
            where=str(path), what=f"extends is {other!r}", fix="give the name of one study file"
        )
    base, lines, base_problems = read_yaml(path.parent / other)
    if not isinstance(base, dict) or "extends" in base:
        raise UserError(
            where=str(path),
            what=f"extends {other}, which is no study, or extends another",
            fix="name one that stands alone",
        )
    # Its mistakes are in its own lines.
    _checked(path.parent / other, copy.deepcopy(base), lines, [*base_problems])
    return _merged(base, raw), problems + base_problems


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    merged = {
        key: _merged(base[key], value) if key in base else value for key, value in changes.items()
    }
    # null takes a key away only where it is given here.
    return {
        key: value
        for key, value in (base | merged).items()
        if value is not None or key not in changes
    }
