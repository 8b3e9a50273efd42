"""Write the commits of what a study file names on the Hugging Face Hub into the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from core.errors import Problem, UserError
from core.files import write_atomically
from core.strict_yaml import KeyPath, dotted, parse_yaml
from study.upkeep.fetch import collect_problems


@dataclass(frozen=True)
class Unpinned:
    """A repository that the study file names without a commit.

    Attributes:
        at: The path of the mapping that names it.
        repo: The repository, as OWNER/NAME.
        kind: model or dataset.
        position: Where in the text its commit goes.
        before: What stands before the commit there.
    """

    at: KeyPath
    repo: str
    kind: str
    position: int
    before: str


def pin(path: Path) -> list[tuple[str, str]]:
    """Insert `revision: COMMIT`, the newest, behind each `hub` of the file that lacks one.

    The rest of the text stays as it is, with its comments. Nothing is written where a repository
    can't be asked.

    Returns:
        The repositories and their commits, in the file's order.

    Raises:
        UserError: The file is not YAML, or a repository can't be asked.
    """
    from huggingface_hub import HfApi

    text = path.read_text(encoding="utf-8")
    _, node = parse_yaml(text, str(path))
    unpinned = [*{item.position: item for item in _unpinned(node, (), text)}.values()]
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
    for item in sorted(unpinned, key=lambda item: -item.position):
        commit = f"{item.before}revision: {commits[item.repo, item.kind]}"
        text = text[: item.position] + commit + text[item.position :]
    if unpinned:
        write_atomically(path, text)
    return [(dotted(item.at), commits[item.repo, item.kind]) for item in unpinned]


def _unpinned(node: yaml.Node | None, at: KeyPath, text: str) -> Iterator[Unpinned]:
    """The mappings with a `hub` and no `revision`, also in lists."""
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _unpinned(item, (*at, position), text)
    if not isinstance(node, yaml.MappingNode):
        return
    values = {key.value: value for key, value in node.value}
    hub = values.get("hub")
    if isinstance(hub, yaml.ScalarNode) and hub.value and "revision" not in values:
        kind = "model" if at[:1] in (("models",), ("embedder",)) else "dataset"
        end = hub.end_mark.index
        if node.flow_style:
            yield Unpinned(at, hub.value, kind, end, ", ")
        else:
            line_end = text.find("\n", end)
            key = next(key for key, _ in node.value if key.value == "hub")
            indent = " " * key.start_mark.column
            yield Unpinned(
                at, hub.value, kind, len(text) if line_end < 0 else line_end, f"\n{indent}"
            )
    for key, value in node.value:
        yield from _unpinned(value, (*at, key.value), text)
