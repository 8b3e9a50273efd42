"""YAML files read strictly: unknown keys, wrong types and duplicates are errors.

All mistakes of a file are reported at once, each with its line, its key and what is valid.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from yaml._yaml import CParser
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from core.errors import Problem, UserError
from core.renamed import RENAMED_KEYS, RENAMED_VALUES

T = TypeVar("T")
KeyPath = tuple[Any, ...]  # keys and list positions that lead to a value
Problems = list[tuple[KeyPath, str]]  # (path of the value, what is wrong and what is valid)
LineNumbers = dict[KeyPath, int]  # path of a value -> its line in the file, from 1


@dataclass(frozen=True)
class FileProblem(Problem):
    """A problem in a line of a file; 0 for one of the file as a whole."""

    line: int = 0


def did_you_mean(word: str, valid: list[str]) -> str:
    """ " (did you mean X?)" for the valid word that is most like `word`; "" where none is."""
    close = difflib.get_close_matches(word, [str(v) for v in valid], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class YamlLoader(yaml.SafeLoader):
    """Plain scalars of YAML 1.2.

    PyYAML follows YAML 1.1, where `on` is true, `1e-4` a string, `2026-01-01` a date and `3090:4` a
    number.
    """


YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Not 3090:4 and 1:30:00, which YAML 1.1 takes for numbers of base 60; not 0042, which is a name.
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|"
        r"^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class _FastLoader(CParser, YamlLoader):
    """A YamlLoader whose parser is libyaml.

    Nodes are composed in Python: libyaml overflows the stack of C on a deeply nested file.
    """

    get_single_node = Composer.get_single_node

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)


# Far beyond any file of the kit. A file that is larger, or becomes so by its aliases, would take
# the memory of the machine.
MAX_BYTES = 2**19
MAX_VALUES = 100_000
MAX_DEPTH = 50
MAX_DIGITS = 40
MAX_INTEGER = 2**63  # tables of results hold none that is larger
KEY_KINDS = ("str", "int", "merge")
_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
}


def read_yaml(path: Path) -> tuple[Any, LineNumbers, list[Problem]]:
    """Read a YAML file.

    Returns:
        The file's value, the line of every value in it, and a problem for each key given twice.

    Raises:
        UserError: The file can't be read, is larger than MAX_BYTES or is not YAML.
    """
    try:
        # A device or a pipe might never end.
        if path.exists() and not path.is_file():
            raise UserError(
                where=str(path), what="not a regular file", fix="give the path of a YAML file"
            )
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            what = f"larger than {MAX_BYTES >> 10} KiB, too large for a file of settings"
            raise UserError(where=str(path), what=what, fix="give the path of a YAML file")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            where=str(path),
            what=f"cannot be read: {error.strerror}",
            fix="give the path of a YAML file",
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            where=f"{path}:{line}", what=f"not UTF-8: {error.reason}", fix="save it as UTF-8"
        ) from None
    value, node = parse_yaml(text, str(path))
    lines: LineNumbers = {}
    duplicates: list[Problem] = []

    def walk(node: yaml.Node | None, at: KeyPath) -> None:
        if node is None:
            return
        lines[at] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                key_path = (*at, key.value)
                line = key.start_mark.line + 1
                if key.value in seen:
                    location = f"{path}:{line}: {dotted(key_path)}"
                    duplicates.append(FileProblem(location, "given twice", "keep one", line))
                seen.add(key.value)
                walk(value, key_path)
                lines[key_path] = line
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                walk(item, (*at, position))

    walk(node, ())
    return value, lines, duplicates


def parse_yaml(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its node. `source`: the text's name in an error.

    Raises:
        UserError: The text is not YAML, has more than MAX_VALUES values or MAX_DEPTH levels, or has
            what JSON cannot hold: a key that is no text or whole number, a tag such as `!!set`, an
            anchor that contains itself, infinity.
    """
    try:
        loader, node = _composed(text)
        if node is None:
            return None, None
        _check_node(node, source, {}, 0)
        return loader.construct_document(node), node
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", None) or 0)
        if is_deep := isinstance(error, RecursionError):
            what = f"more than {MAX_DEPTH} levels"
        raise UserError(
            where=source if is_deep else f"{source}:{line + 1}",
            what=f"not valid YAML: {what}",
            fix="correct it; put a text that holds {, [, # or : in quotes",
        ) from None


def _composed(text: str) -> tuple[YamlLoader, yaml.Node | None]:
    """A loader of the text, and its node."""
    try:
        fast = _FastLoader(text)
        return fast, fast.get_single_node()
    except (yaml.YAMLError, UnicodeEncodeError):  # Python's parser says better what is wrong
        loader = YamlLoader(text)
        return loader, loader.get_single_node()


def _as_float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


def _check_node(node: yaml.Node, source: str, sizes: dict[int, int], depth: int) -> int:
    """The number of values that a node stands for, with what its aliases repeat.

    sizes: of the nodes that were checked, by their ids; 0 of those that are being checked.

    Raises UserError at what a file of settings does not hold.
    """

    def refuse(what: str, fix: str, at: yaml.Node = node) -> UserError:
        return UserError(where=f"{source}:{at.start_mark.line + 1}", what=what, fix=fix)

    if id(node) in sizes:
        if not sizes[id(node)]:
            raise refuse("not valid YAML: an anchor contains itself", "write its value out")
        return sizes[id(node)]
    if node.tag not in _TAGS:
        raise refuse(f"has the tag {node.tag!r}", "remove the tag")
    if depth > MAX_DEPTH:
        raise refuse(f"more than {MAX_DEPTH} levels", "nest less deeply")
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.rpartition(":")[2]
        if kind == "float" and not math.isfinite(_as_float(node.value)):
            raise refuse(f"{node.value} is no finite number", "give a number")
        if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
            raise refuse(f"a number of {len(node.value)} digits", "give a smaller one")
        if kind == "int" and abs(int(node.value.replace("_", ""), 0)) >= MAX_INTEGER:
            raise refuse(f"the number {node.value} is beyond 64 bits", "give a smaller one")
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check_node(item, source, sizes, depth + 1) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                fix = "put what is in {{ }} or [ ] in quotes, or replace it by its value"
                raise refuse("a list or mapping is used as a key", fix, key)
            if key.tag.rpartition(":")[2] not in KEY_KINDS:
                raise refuse(f"{key.value!r} is used as a key", "put the key in quotes", key)
            size += _check_node(key, source, sizes, depth + 1)
            size += _check_node(value, source, sizes, depth + 1)
    if size > MAX_VALUES:
        raise refuse(f"its aliases stand for more than {MAX_VALUES} values", "write them out")
    sizes[id(node)] = size
    return size


def override(raw: dict[str, Any], text: str, file: str) -> None:
    """Apply one `key.path=value` to what a file says; list elements are named by their index.

    `file`: what the file is, for the message of the UserError that a wrong one raises.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(
            where=f"--set {text}", what="must be key.path=value, such as sft.doses=[0,100]"
        )
    *parents, last = key.split(".")
    target: Any = raw
    for part in parents:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            raise UserError(
                where=f"--set {text}",
                what=f"there is no {part!r} in {file}",
                fix=f"give keys of {file}, or the index of a list's element",
            )
    parsed, _ = parse_yaml(value, f"--set {text}")
    if isinstance(target, dict):
        target[last] = parsed
    elif isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = parsed
    else:
        raise UserError(
            where=f"--set {text}",
            what=f"{'.'.join(parents)} has no {last!r}",
            fix="give the key of a mapping, or the index of a list's element",
        )


def validate(kind: type[T], raw: Any) -> T:
    """`raw` as a dataclass of this kind. Raises pydantic's ValidationError."""
    # Through JSON, because pydantic's strict mode takes a mapping for a dataclass only there.
    return TypeAdapter(kind).validate_json(json.dumps(raw))


def validate_file(
    path: Path, raw: Any, kind: type[T], lines: LineNumbers
) -> tuple[T | None, list[Problem]]:
    """`raw`, read from `path` by `read_yaml`, as this kind; or None and a problem per mistake."""
    try:
        return validate(kind, raw), []
    except ValidationError as error:
        return None, explain(path, error, kind, lines)


def explain(path: Path, error: ValidationError, kind: type, lines: LineNumbers) -> list[Problem]:
    """pydantic's errors as problems with file, line, key and what is valid.

    Args:
        path: The file.
        error: What `validate` raised.
        kind: The dataclass that was validated.
        lines: From `read_yaml`.
    """
    problems: list[Problem] = []
    # Where an old key is given, its new name is not missing as well.
    renamed = {
        (*details["loc"][:-1], RENAMED_KEYS.get(str(details["loc"][-1])))
        for details in error.errors()
        if details["type"] == "unexpected_keyword_argument"
    }
    for details in error.errors():
        # Keys of a mapping are reported below the mapping with a final "[key]".
        at = tuple(part for part in details["loc"] if part != "[key]")
        kind_of_error = details["type"]
        if kind_of_error in ("missing", "missing_argument") and at in renamed:
            continue
        value = details.get("input")
        fix = ""
        if kind_of_error == "unexpected_keyword_argument":
            valid = _valid_keys(kind, at[:-1])
            new = RENAMED_KEYS.get(str(at[-1]))
            if new in valid:
                what = f"`{at[-1]}` is now `{new}`"
                fix = "rename it (CHANGELOG.md, 0.2.0)"
            else:
                what = f"unknown key{did_you_mean(str(at[-1]), valid)}"
                fix = f"valid keys: {', '.join(valid)}"
        elif kind_of_error in ("missing", "missing_argument"):
            what = "missing"
            fix = "this key is required"
        elif kind_of_error == "string_pattern_mismatch" and at[-1] == "revision":
            what = f"{value!r} is not a commit (40 of 0-9 and a-f), which alone never changes"
            fix = "fetch tells the newest"
        elif kind_of_error == "string_pattern_mismatch" and at[-1] in ("url", "sha256"):
            right = "an https:// address" if at[-1] == "url" else "a SHA-256 (64 of 0-9 and a-f)"
            what = f"{value!r} is not {right}"
        elif kind_of_error == "string_pattern_mismatch" and "varies" in at:
            what = f"{value!r} is nothing that differs between arms"
            fix = "valid: corpus, start, recipe, sft, dose, system, prefill, chain, step1 ..."
        elif kind_of_error == "string_pattern_mismatch":
            what = f"{value!r} is not a name"
            fix = "use letters, digits and _, starting with a letter or digit"
        elif kind_of_error == "literal_error" and (new := _renamed(at, value)):
            what = f"`{_yaml_word(value)}` is now `{new}`"
            fix = "rename it (CHANGELOG.md, 0.2.0)"
        elif kind_of_error == "literal_error":
            what = f"{value!r} is not a valid choice"
            fix = f"valid: {details['ctx']['expected']}"
        else:
            is_yaml_word = value is None or isinstance(value, bool)
            shown = _yaml_word(value) if is_yaml_word else repr(value)
            what = f"{shown}: {_plain(details['msg'])}"
        problems.append(located(path, at, what, lines, fix))
    return problems


def _renamed(at: KeyPath, value: Any) -> str | None:
    """Today's name of a value of an older version."""
    return RENAMED_VALUES.get(str(at[-1]), {}).get(_yaml_word(value))


def _yaml_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(message: str) -> str:
    """pydantic's message in the words of YAML."""
    for word, replacement in (
        ("Input should", "should"),
        ("valid array", "valid list"),
        ("an object", "a mapping"),
        (" after validation", ""),
        ("Value error, ", ""),
    ):
        message = message.replace(word, replacement)
    return message[0].lower() + message[1:]


def _valid_keys(kind: type, at: tuple[Any, ...]) -> list[str]:
    """The keys that are valid at a path, from the JSON schema of the dataclass."""
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


def dotted(at: KeyPath) -> str:
    """The path of a value as it is written in messages and for --set: `arms.animal.start`."""
    return ".".join(map(str, at))


def located(path: Path, at: KeyPath, what: str, lines: LineNumbers, fix: str = "") -> Problem:
    """A problem of the value `at`, with the line of it or of the nearest value around it."""
    nearest = at
    while nearest and nearest not in lines:
        nearest = nearest[:-1]
    line = lines.get(nearest, 1)
    location = f"{path}:{line}: {dotted(at)}" if at else f"{path}:{line}"
    return FileProblem(location, what, fix, line)


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by their lines in the file, each once."""

    def line(problem: Problem) -> int:
        return problem.line if isinstance(problem, FileProblem) else 0

    return sorted(dict.fromkeys(problems), key=line)


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=40)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
