"""YAML files read strictly: unknown keys, wrong types and duplicates are errors, all reported at once."""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from core.errors import UserError

Problems = list[
    tuple[tuple[Any, ...], str]
]  # (path of the value in the file, what is wrong and what is valid)


def did_you_mean(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, [str(v) for v in valid], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


Where = dict[tuple[Any, ...], int]  # path of a value in the file -> its line


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: PyYAML follows 1.1, where `on` is true, `1e-4` a string and `2026-01-01` a date."""


YamlLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.endswith((":int", ":null", ":merge"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> tuple[Any, Where, list[str]]:
    """The file's value, the line of every value in it, and its mistakes of form (a key given twice)."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, YamlLoader)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; give the path of a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
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
                        f"{path}:{key.start_mark.line + 1}: {dotted((*at, key.value))}: given twice; keep one"
                    )
                seen.add(key.value)
                walk(value, (*at, key.value))
                where[(*at, key.value)] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*at, i))

    walk(node, ())
    return yaml.load(text, YamlLoader), where, twice


def validate(kind: type, raw: Any) -> Any:
    """`raw` as a dataclass of this kind. Raises pydantic's ValidationError."""
    # Through JSON, because pydantic's strict mode takes a mapping for a dataclass only there.
    return TypeAdapter(kind).validate_json(json.dumps(raw))


def explain(path: Path, error: ValidationError, kind: type, where: Where) -> list[str]:
    """pydantic's findings as our lines: where, what, and what is valid."""
    lines = []
    for problem in error.errors():
        # Keys of a mapping are reported below the mapping with a final "[key]".
        at = tuple(part for part in problem["loc"] if part != "[key]")
        fault, value = problem["type"], problem.get("input")
        if fault == "unexpected_keyword_argument":
            valid = _valid_keys(kind, at[:-1])
            text = f"unknown key{did_you_mean(str(at[-1]), valid)}; valid keys: {', '.join(valid)}"
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
        lines.append(located(path, at, text, where))
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


def dotted(at: tuple[Any, ...]) -> str:
    return ".".join(map(str, at))


def located(path: Path, at: tuple[Any, ...], text: str, where: Where) -> str:
    nearest = at
    while nearest and nearest not in where:
        nearest = nearest[:-1]
    return f"{path}:{where.get(nearest, 1)}: {dotted(at)}: {text}"


def in_file_order(lines: list[str]) -> list[str]:
    """Lines of mistakes sorted by the line of the file they speak of, each once."""

    def number(line: str) -> int:
        match = re.search(r":(\d+): ", line)
        return int(match.group(1)) if match else 0

    return sorted(dict.fromkeys(lines), key=number)


STRICT = ConfigDict(extra="forbid", strict=True)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=40)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
