"""Read a study file: YAML in, `schema.Study` out, or every mistake in it at once."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core.errors import Problem, UserError
from core.strict_yaml import YamlLoader, explain, in_file_order, located, read_yaml, validate
from study.spec.checks import references
from study.spec.schema import Study


def load_study(path: Path, seeds: list[int] | None = None, overrides: list[str] | None = None) -> Study:
    """The study in `path`, with `--seeds` and `--set key.path=value` applied.

    Raises UserError with one line per mistake.
    """
    raw, where, mistakes = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping that starts with `study: NAME`")
    if isinstance(other := raw.pop("extends", None), str):
        raw, mistakes = _extended(path, other, raw, mistakes)
    if seeds is not None:
        raw["seeds"] = seeds
    for override in overrides or []:
        _override(raw, override)
    try:
        study = validate(Study, raw)
    except ValidationError as error:
        study = None
        mistakes += explain(path, error, Study, where)
    mistakes += [located(path, at, text, where) for at, text in references(raw)]
    if mistakes or study is None:
        raise UserError(*in_file_order(mistakes))
    return study


def _extended(
    path: Path, other: str, raw: dict[str, Any], mistakes: list[Problem]
) -> tuple[dict[str, Any], list[Problem]]:
    """The study beside `path` that this one extends, with its keys instead; null takes a key away."""
    base, _, more = read_yaml(path.parent / other)
    if not isinstance(base, dict) or "extends" in base:
        raise UserError(f"{path}: extends {other}, which is no study, or extends another; name one that stands alone")
    return _merged(base, raw), mistakes + more


def _merged(base: Any, own: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    found = {key: _merged(base[key], value) if key in base else value for key, value in own.items()}
    return {key: value for key, value in (base | found).items() if value is not None or key not in own}


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value`; list elements are named by their index."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: must be key.path=value, such as sft.doses=[0,100]")
    *parents, last = key.split(".")
    target: Any = raw
    for part in parents:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            raise UserError(f"--set {override}: there is no {part!r} in the study file; see `plan` for its keys")
    parsed = yaml.load(value, YamlLoader)
    if isinstance(target, dict):
        target[last] = parsed
    elif isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = parsed
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} is not a mapping; give the key of a mapping")
