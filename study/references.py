"""Names and paths of a study file that point nowhere, in circles, or twice."""

import difflib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_NAMED = ("models", "corpora", "arms", "benchmarks", "endpoints")

Found = list[tuple[tuple[Any, ...], str]]  # (path of the value in the file, what is wrong and what is valid)


def resolve(path: str) -> Path:
    """A path of a study file: relative to the checkout unless absolute."""
    return ROOT / path


def references(raw: dict[str, Any]) -> Found:
    """Names that point nowhere, in circles, or twice: (path in the file, text). Tolerates values of a wrong type."""
    names = {section: list(raw[section]) if isinstance(raw.get(section), dict) else [] for section in _NAMED}
    found: Found = []

    def must_be(section: str, at: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, str) and value not in names[section]:
            valid = names[section]
            listed = f"; valid: {', '.join(map(str, valid))}" if valid else f"; the file has no {section}"
            found.append(
                (at, f"there is no {section[:-1].replace('corpor', 'corpus')} {value!r}{guess(value, valid)}{listed}")
            )

    def each(section: str) -> list[tuple[str, dict[str, Any]]]:
        values = raw.get(section)
        return [(k, v) for k, v in values.items() if isinstance(v, dict)] if isinstance(values, dict) else []

    for name, arm in each("arms"):
        must_be("models", ("arms", name, "start"), arm.get("start"))
        must_be("corpora", ("arms", name, "midtrain"), arm.get("midtrain"))
        if arm.get("midtrain") and not raw.get("midtrain"):
            found.append((("arms", name, "midtrain"), "the file has no `midtrain: {recipe: ...}`; add it"))
    for name, corpus in each("corpora"):
        must_be("endpoints", ("corpora", name, "writer"), corpus.get("writer"))
        must_be("corpora", ("corpora", name, "matched_to"), corpus.get("matched_to"))
        if isinstance(corpus.get("template"), str):
            valid = sorted(p.stem for p in (ROOT / "sdf/templates").glob("*.yaml") if p.stem != "slots")
            if corpus["template"] not in valid:
                text = f"there is no template {corpus['template']!r}; valid: {', '.join(valid)}"
                found.append((("corpora", name, "template"), text))
    found += _cycles(dict(each("corpora")))
    for name, endpoint in each("endpoints"):
        if endpoint.get("served_by", "url") == "url":
            for key in ("base_url", "model", "key_env"):
                if not endpoint.get(key):
                    found.append((("endpoints", name), f"needs {key} (or `served_by: kit` for the stand-in)"))
    for name, model in each("models"):
        if bool(model.get("make")) == bool(model.get("path")):
            found.append((("models", name), "needs exactly one of make, path"))
        for key in ("make", "path"):
            found += _missing_file(("models", name, key), model.get(key))
    for name, bench in each("benchmarks"):
        needed = {"anima": ("questions", "dimensions", "judge"), "concern_for_animals": ("items",)}
        for key in needed.get(str(bench.get("task")), ()):
            if not bench.get(key):
                found.append((("benchmarks", name), f"task {bench.get('task')} needs {key}"))
        must_be("endpoints", ("benchmarks", name, "judge"), bench.get("judge"))
        for key in ("questions", "dimensions", "items"):
            found += _missing_file(("benchmarks", name, key), bench.get(key))
    for section in ("midtrain", "sft"):
        if isinstance(raw.get(section), dict):
            for key in ("recipe", "data"):
                found += _missing_file((section, key), raw[section].get(key))
    for i, contrast in enumerate(raw.get("contrasts") or [] if isinstance(raw.get("contrasts"), list) else []):
        if isinstance(contrast, dict):
            must_be("arms", ("contrasts", i, "of"), contrast.get("of"))
            must_be("arms", ("contrasts", i, "against"), contrast.get("against"))
            for j, bench in enumerate(contrast["on"] if isinstance(contrast.get("on"), list) else []):
                must_be("benchmarks", ("contrasts", i, "on", j), bench)
    found += _repeated(("seeds",), raw.get("seeds"), "seed")
    found += _repeated(
        ("sft", "doses"), (raw.get("sft") or {}).get("doses") if isinstance(raw.get("sft"), dict) else None, "dose"
    )
    return found


def _cycles(corpora: dict[str, dict[str, Any]]) -> Found:
    found = []
    for name in corpora:
        seen = [name]
        while (following := corpora.get(seen[-1], {}).get("matched_to")) in corpora and following not in seen:
            seen.append(following)
        if following == name:
            text = f"goes in a circle: {' -> '.join([*seen, name])}; one corpus must stand alone"
            found.append((("corpora", name, "matched_to"), text))
    return found


def _missing_file(at: tuple[Any, ...], value: Any) -> Found:
    if isinstance(value, str) and not resolve(value).exists():
        return [(at, f"no such file: {value} (paths are relative to the checkout unless absolute)")]
    return []


def _repeated(at: tuple[Any, ...], values: Any, what: str) -> Found:
    values = values if isinstance(values, list) else []
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    return [(at, f"{what} {v} is listed twice; each {what} once") for v in twice]


def guess(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, [str(v) for v in valid], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
