"""Files and folders that a study file names: they must be there, and be what they are read as."""

from collections.abc import Iterator
from typing import Any

from core.errors import UserError
from core.files import read_text
from core.paths import is_there, resolve
from core.row_formats import data_file
from core.strict_yaml import KeyPath
from study.spec.arm_checks import PROMPTS
from study.spec.checks import OWN_FILES, Mapping, Mistake, Mistakes, as_list, section_entries

RELATIVE = "paths are relative to the checkout unless absolute"
SHOWN = 200  # characters of a path in a message


def path_mistakes(raw: Mapping) -> Mistakes:
    """Paths that lead nowhere, or to a folder, a device or a format that can't be read there."""
    mistakes: Mistakes = []
    for section, values in _trainings(raw).items():
        mistakes += _file((*section, "recipe"), values.get("recipe"))
        mistakes += _rows((*section, "data"), values.get("data"))
    for name, corpus in section_entries(raw, "corpora").items():
        mistakes += _rows(("corpora", name, "path"), corpus.get("path"))
        mistakes += _file(("corpora", name, "exclude"), corpus.get("exclude"))
        mistakes += _text(("corpora", name, "prompt_file"), corpus.get("prompt_file"))
    mistakes += _file(("claims",), raw.get("claims"))
    if isinstance(embedder := raw.get("embedder"), dict):
        mistakes += _folder(("embedder", "path"), embedder.get("path"))
    for name, model in section_entries(raw, "models").items():
        mistakes += _folder(("models", name, "path"), model.get("path"))
        mistakes += _file(("models", name, "make"), model.get("make"))
        mistakes += _text(("models", name, "chat_template"), model.get("chat_template"))
    for name, rl in section_entries(raw, "rl").items():
        mistakes += _file(("rl", name, "recipe"), rl.get("recipe"))
        for key in PROMPTS:
            mistakes += _text(("rl", name, key), rl.get(key))
    for name, arm in section_entries(raw, "arms").items():
        for key in PROMPTS:
            mistakes += _text(("arms", name, key), arm.get(key))
        for at, file in _score_files(arm.get("scores")):
            mistakes += _file(("arms", name, "scores", *at), file)
    for name, endpoint in section_entries(raw, "endpoints").items():
        if endpoint.get("served_by") == "vllm":
            mistakes += _folder(("endpoints", name, "path"), endpoint.get("path"))
    for name, bench in section_entries(raw, "benchmarks").items():
        mistakes += _file(("benchmarks", name, "labels"), bench.get("labels"))
        for key in OWN_FILES:
            check = _folder if key == "data" else _rows
            mistakes += check(("benchmarks", name, key), bench.get(key))
    return mistakes


def _trainings(raw: Mapping) -> dict[KeyPath, Mapping]:
    """What may have a recipe or instruction data, by its place in the file."""
    sections: dict[KeyPath, Mapping] = {
        (name,): raw[name] for name in ("midtrain", "sft") if isinstance(raw.get(name), dict)
    }
    for section in ("sfts", "arms"):
        entries = section_entries(raw, section).items()
        sections |= {(section, name): value for name, value in entries}
    for name, arm in section_entries(raw, "arms").items():
        steps = enumerate(as_list(arm.get("train")))
        sections |= {
            ("arms", name, "train", n): step for n, step in steps if isinstance(step, dict)
        }
    return sections


def _score_files(scores: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The files of an arm's scores, by benchmark, dose and number."""
    for bench, by_dose in scores.items() if isinstance(scores, dict) else ():
        for dose, files in by_dose.items() if isinstance(by_dose, dict) else ():
            yield from (((bench, dose, i), file) for i, file in enumerate(as_list(files)))


def _file(at: KeyPath, value: Any) -> Mistakes:
    if not isinstance(value, str) or (value and is_there(value)):
        return []
    return [Mistake(at, f"no such file: {value[:SHOWN]}", RELATIVE)]


def _text(at: KeyPath, value: Any) -> Mistakes:
    """A prompt or a chat template, which must not be blank."""
    if not isinstance(value, str) or not value or not is_there(value):
        return _file(at, value)
    try:
        is_blank = not read_text(resolve(value)).strip()
    except ValueError:
        return [Mistake(at, f"{value}: is no text in UTF-8", "save it as UTF-8")]
    return [Mistake(at, f"{value}: is blank", "write it, or remove the key")] if is_blank else []


def _folder(at: KeyPath, value: Any) -> Mistakes:
    """A folder; a file passes, and it is told later what the folder lacks."""
    if not isinstance(value, str) or (value and is_there(value, or_folder=True)):
        return []
    return [Mistake(at, f"no such file or folder: {value[:SHOWN]}", RELATIVE)]


def _rows(at: KeyPath, value: Any) -> Mistakes:
    """A file of rows, or a folder with one."""
    if not isinstance(value, str) or not value or not is_there(value, or_folder=True):
        return _file(at, value)
    try:
        data_file(resolve(value))
    except UserError as error:
        return [Mistake(at, f"{p.where}: {p.what}", p.fix) for p in error.problems]
    return []
