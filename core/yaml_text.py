"""YAML that the program writes and reads back; `strict_yaml` reads what people write."""

from typing import Any

import yaml

# libyaml's are five to ten times as fast, and read and write the same values. They are in PyYAML's
# wheels.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TEXT = "tag:yaml.org,2002:str"


class _Dumper(_DUMPER):  # type: ignore[misc,valid-type]
    """Represents a text at once: most values of a settings file are texts, all keys are."""

    def represent_data(self, data: Any) -> yaml.Node:
        if type(data) is str:
            return yaml.ScalarNode(_TEXT, data)
        node: yaml.Node = super().represent_data(data)
        return node


def to_yaml(value: Any, width: int = 120) -> str:
    """A value of JSON's kinds as YAML text, which `from_yaml` reads as the same value."""
    text = _dump(value, width, allow_unicode=True)
    if "\x85" in text:
        # PyYAML folds a text at this line separator and reads it back as a line feed.
        text = _dump(value, width, allow_unicode=False)
    return text


def _dump(value: Any, width: int, allow_unicode: bool) -> str:
    settings: dict[str, Any] = {"allow_unicode": allow_unicode, "width": width}
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, **settings))


def from_yaml(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, _LOADER)
