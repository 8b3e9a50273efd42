"""Checks of corpora: their prompts (an ending, a file in its place), and the embedder."""

from contextlib import suppress
from typing import Any

from core.files import read_text
from core.paths import is_there, resolve
from study.spec.checks import PIN, Mistake, Mistakes
from study.spec.template import prompt_mistakes, usable_template


def corpus_mistakes(raw: dict[str, Any]) -> Mistakes:
    """Endings that the template does not have, prompt files and embedders that can't be used."""
    mistakes = _embedder(raw.get("embedder"))
    corpora = raw.get("corpora")
    for name, corpus in corpora.items() if isinstance(corpora, dict) else ():
        template = usable_template(corpus.get("template")) if isinstance(corpus, dict) else {}
        if template:
            mistakes += _of_corpus(("corpora", name), corpus, template)
    return mistakes


def _embedder(embedder: Any) -> Mistakes:
    at = ("embedder",)
    if not isinstance(embedder, dict):
        return []
    if bool(embedder.get("path")) == bool(embedder.get("hub")):
        return [Mistake(at, "needs exactly one of path, hub (with revision)")]
    if embedder.get("hub") and not embedder.get("revision"):
        return [Mistake(at, "hub needs revision, a commit (40 hex)", PIN)]
    return []


def _of_corpus(at: tuple[str, str], corpus: dict[str, Any], template: dict[str, Any]) -> Mistakes:
    mistakes: Mistakes = []
    ending = corpus.get("ending")
    endings = template.get("endings", {})
    if isinstance(ending, str) and ending not in endings:
        what = f"the template has no ending {ending!r}"
        mistakes.append(Mistake((*at, "ending"), what, f"valid: {', '.join(endings) or 'none'}"))
    path = corpus.get("prompt_file")
    if not isinstance(path, str) or not path or not is_there(path):
        return mistakes  # study.spec.path_checks names a file that is lacking
    if ending is not None:
        what = "the prompt is from a file, which has an ending of its own"
        mistakes.append(Mistake((*at, "ending"), what, "remove it, or remove prompt_file"))
    if template.get("forms"):
        what = "the template has two prompts, for questions and for answers"
        mistakes.append(Mistake((*at, "prompt_file"), what, "name another template"))
        return mistakes
    with suppress(ValueError):  # study.spec.path_checks names a file that is no text
        if (prompt := read_text(resolve(path))).strip():
            mistakes += [
                Mistake((*at, "prompt_file"), f"{path}: {what}", fix)
                for what, fix in prompt_mistakes(prompt, template.get("slots") or {})
            ]
    return mistakes
