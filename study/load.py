"""Read a study file: YAML in, `schema.Study` out, or every mistake in it at once."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from study.errors import UserError
from study.references import guess, references, resolve, training_mistakes
from study.schema import Study, TinyLlama, Training

Where = dict[tuple[Any, ...], int]  # path of a value in the file -> its line


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: PyYAML follows 1.1, where `on` is true, `1e-4` a string and `2026-01-01` a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":int", ":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> tuple[Any, Where, list[str]]:
    """The file's value, the line of every value in it, and its mistakes of form (a key given twice)."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    where: Where = {}
    twice: list[str] = []

    def walk(node: yaml.Node | None, at: tuple[Any, ...]) -> None:
        if node is None:
            return
        where[at] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if key.value in seen:
                    twice.append(
                        f"{path}:{key.start_mark.line + 1}: {_dotted((*at, key.value))}: given twice; keep one"
                    )
                seen.add(key.value)
                walk(value, (*at, key.value))
                where[(*at, key.value)] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*at, i))

    walk(node, ())
    return yaml.load(text, _Loader), where, twice


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
    mistakes += [_line(path, at, text, where) for at, text in references(raw)]
    if mistakes or study is None:
        raise UserError(*in_file_order(mistakes))
    return study


def _extended(path: Path, other: str, raw: dict[str, Any], mistakes: list[str]) -> tuple[dict[str, Any], list[str]]:
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


def validate(kind: type, raw: Any) -> Any:
    """`raw` as a dataclass of this kind. Raises pydantic's ValidationError."""
    # Through JSON, because pydantic's strict mode takes a mapping for a dataclass only there.
    return TypeAdapter(kind).validate_json(json.dumps(raw))


def load_recipe(relative: str, kind: type[Training] | type[TinyLlama]) -> dict[str, Any]:
    """A recipe file as plain data with every default filled in. Raises UserError with one line per mistake."""
    path = resolve(relative)
    raw, where, mistakes = read_yaml(path)
    try:
        recipe = validate(kind, raw)
    except ValidationError as error:
        raise UserError(*in_file_order(mistakes + explain(path, error, kind, where))) from None
    found: dict[str, Any] = TypeAdapter(kind).dump_python(recipe)
    at, training = ((), found) if kind is Training else (("pretrain",), found["pretrain"])
    mistakes += [_line(path, (*at, *key), text, where) for key, text in training_mistakes(training)]
    if mistakes:
        raise UserError(*in_file_order(mistakes))
    return found


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
    parsed = yaml.load(value, _Loader)
    if isinstance(target, dict):
        target[last] = parsed
    elif isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = parsed
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} is not a mapping; give the key of a mapping")


def explain(path: Path, error: ValidationError, kind: type, where: Where) -> list[str]:
    """pydantic's findings as our lines: where, what, and what is valid."""
    lines = []
    for problem in error.errors():
        # Keys of a mapping are reported below the mapping with a final "[key]".
        at = tuple(part for part in problem["loc"] if part != "[key]")
        fault, value = problem["type"], problem.get("input")
        if fault == "unexpected_keyword_argument":
            valid = _valid_keys(kind, at[:-1])
            text = f"unknown key{guess(str(at[-1]), valid)}; valid keys: {', '.join(valid)}"
        elif fault in ("missing", "missing_argument"):
            text = "missing; this key is required"
        elif fault == "string_pattern_mismatch" and at[-1] == "revision":
            text = f"{value!r} is not a commit (40 of 0-9 and a-f), which alone never changes; fetch tells the newest"
        elif fault == "string_pattern_mismatch":
            text = f"{value!r} is not a name; use letters, digits and _, starting with a letter or digit"
        elif fault == "literal_error":
            text = f"{value!r} is not a valid choice; valid: {problem['ctx']['expected']}"
        else:
            text = f"{value!r}: {_plain(problem['msg'])}"
        lines.append(_line(path, at, text, where))
    return lines


def _plain(message: str) -> str:
    """pydantic's message in the words of YAML."""
    for word, ours in (
        ("Input should", "should"),
        ("valid array", "valid list"),
        ("an object", "a mapping"),
        (" after validation", ""),
    ):
        message = message.replace(word, ours)
    return message[0].lower() + message[1:]


def _valid_keys(kind: type, at: tuple[Any, ...]) -> list[str]:
    """The keys that may stand at a path of a file of this kind, from the JSON schema of its dataclass."""
    root = TypeAdapter(kind).json_schema()
    node = root
    for part in at:
        node = _deref(root, node)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            named = node.get("patternProperties") or {"": node.get("additionalProperties") or {}}
            node = node.get("properties", {}).get(part) or next(iter(named.values()))
    return sorted(_deref(root, node).get("properties", {}))


def _deref(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _dotted(at: tuple[Any, ...]) -> str:
    return ".".join(map(str, at))


def _line(path: Path, at: tuple[Any, ...], text: str, where: Where) -> str:
    nearest = at
    while nearest and nearest not in where:
        nearest = nearest[:-1]
    return f"{path}:{where.get(nearest, 1)}: {_dotted(at)}: {text}"


def in_file_order(lines: list[str]) -> list[str]:
    """Lines of mistakes sorted by the line of the file they speak of, each once."""

    def number(line: str) -> int:
        match = re.search(r":(\d+): ", line)
        return int(match.group(1)) if match else 0

    return sorted(dict.fromkeys(lines), key=number)
