"""Names of a study file that come to the same LaTeX command in macros.tex (`analysis.macros`)."""

from collections.abc import Iterable, Iterator

from analysis.macro_names import command_word
from core.strict_yaml import KeyPath
from study.spec.checks import Mapping, Mistake, Mistakes, as_list

# The path of a name, what has it, and the words that its commands have of it.
Named = tuple[KeyPath, str, tuple[object, ...]]


def macro_mistakes(raw: Mapping) -> Mistakes:
    """Two names, or two pairs of names, that give one command, such as arms a_b and aB."""
    arms, benchmarks, corpora = (
        list(raw[section]) if isinstance(raw.get(section), dict) else []
        for section in ("arms", "benchmarks", "corpora")
    )
    return [
        *_clashes((("benchmarks", name), f"{name!r}", (name,)) for name in benchmarks),
        *_clashes((("corpora", name), f"{name!r}", (name,)) for name in corpora),
        *_clashes(
            (("arms", arm), f"{arm!r} on {bench!r}", (arm, bench))
            for arm in arms
            for bench in benchmarks
        ),
        *_clashes(_contrasts(raw)),
    ]


def _contrasts(raw: Mapping) -> Iterator[Named]:
    for n, contrast in enumerate(as_list(raw.get("contrasts"))):
        if not isinstance(contrast, dict) or not isinstance(contrast.get("name"), str):
            continue
        name = contrast["name"]
        doses = [contrast.get("treatment_dose"), contrast.get("control_dose")]
        doses += as_list(contrast.get("doses"))
        for bench in as_list(contrast.get("benchmarks")):
            yield (
                ("contrasts", n),
                f"contrast {n + 1}, {name!r} on {bench!r},",
                (name, bench, *doses),
            )


def _clashes(commands: Iterable[Named]) -> Mistakes:
    first: dict[str, tuple[KeyPath, str]] = {}
    mistakes: dict[KeyPath, Mistake] = {}
    for at, name, parts in commands:
        word = "".join(map(command_word, parts))
        before, other = first.setdefault(word, (at, name))
        if (before, other) != (at, name):
            what = f"{name} and {other} have one name in LaTeX commands: {word}"
            mistakes.setdefault(at, Mistake(at, what, "rename one of them"))
    return list(mistakes.values())
