"""YAML that the program writes and reads back; `strict_yaml` reads what people write."""

from typing import Any

import yaml

# libyaml's is ten times as fast, and reads the same. It is in PyYAML's wheels.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def to_yaml(value: Any, width: int = 120) -> str:
    """A value of JSON's kinds as YAML text, which `from_yaml` reads as the same value."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=width)
    if "\x85" in text:
        # PyYAML folds a text at this line separator and reads it back as a line feed.
        text = yaml.safe_dump(value, sort_keys=False, width=width)
    return text


def from_yaml(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, _LOADER)
