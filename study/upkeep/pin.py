"""Write the commits of what a study file names on the Hugging Face Hub into the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from core.errors import Problem, UserError
from core.files import write_atomically
from core.strict_yaml import KeyPath, dotted, parse_yaml, read_yaml
from study.upkeep.fetch import collect_problems

MARK = "\ufeff"  # a byte order mark, which YAML's positions do not count


@dataclass(frozen=True)
class Unpinned:
    """A repository that the study file names without a commit.

    Attributes:
        at: The path of the mapping that names it.
        repo: The repository, as OWNER/NAME.
        kind: model or dataset.
        start, end: What of the text gives way to its commit: nothing, or a null.
        before: What stands before the commit there.
    """

    at: KeyPath
    repo: str
    kind: str
    start: int
    end: int
    before: str


def pin(path: Path) -> list[tuple[str, str]]:
    """Insert `revision: COMMIT`, the newest, behind each `hub` of the file that lacks one.

    The rest of the text stays as it is, with its comments and line ends. Nothing is written where a
    repository can't be asked.

    Returns:
        The repositories and their commits, in the file's order.

    Raises:
        UserError: The file is not YAML, or a repository can't be asked.
    """
    from huggingface_hub import HfApi

    read_yaml(path)  # it says what is wrong with the file
    written = path.read_bytes().decode("utf-8")
    text = written.removeprefix(MARK)
    _, node = parse_yaml(text, str(path))
    unpinned = [*{item.start: item for item in _unpinned(node, (), text)}.values()]
    api = HfApi()
    commits: dict[tuple[str, str], str] = {}
    problems: list[Problem] = []
    for item in unpinned:
        source = {"hub": item.repo, "kind": item.kind}
        if (item.repo, item.kind) not in commits:
            with collect_problems(problems, source):
                info = api.repo_info(item.repo, repo_type=item.kind, timeout=10)
                commits[item.repo, item.kind] = str(info.sha)
    if problems:
        raise UserError.of(dict.fromkeys(problems))
    for item in sorted(unpinned, key=lambda item: -item.start):
        commit = commits[item.repo, item.kind]
        text = f"{text[: item.start]}{item.before}{commit}{text[item.end :]}"
    if unpinned:
        write_atomically(path, MARK * written.startswith(MARK) + text)
    return [(dotted(item.at), commits[item.repo, item.kind]) for item in unpinned]


def _unpinned(node: yaml.Node | None, at: KeyPath, text: str) -> Iterator[Unpinned]:
    """The mappings with a `hub` and no `revision`, also in lists."""
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _unpinned(item, (*at, position), text)
    if not isinstance(node, yaml.MappingNode):
        return
    values = {key.value: value for key, value in node.value}
    hub, revision = values.get("hub"), values.get("revision")
    if isinstance(hub, yaml.ScalarNode) and hub.value and _is_null(revision):
        kind = "model" if at[:1] in (("models",), ("embedder",)) else "dataset"
        if revision:
            start, end = revision.start_mark.index, revision.end_mark.index
            before = "" if text[start - 1].isspace() else " "
        elif node.flow_style:
            start = end = hub.end_mark.index
            before = ", revision: "
        else:
            line_end = "\r\n" if "\r\n" in text else "\n"
            start = text.find(line_end, hub.end_mark.index)
            start = end = len(text) if start < 0 else start
            key = next(key for key, _ in node.value if key.value == "hub")
            before = f"{line_end}{' ' * key.start_mark.column}revision: "
        yield Unpinned(at, hub.value, kind, start, end, before)
    for key, value in node.value:
        yield from _unpinned(value, (*at, key.value), text)


def _is_null(node: yaml.Node | None) -> bool:
    return node is None or node.tag == "tag:yaml.org,2002:null"
