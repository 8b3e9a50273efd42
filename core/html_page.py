"""Pages as HTML: a template of jinja with the values that it shows."""

from pathlib import Path
from typing import Any


def render(template: Path, **values: Any) -> str:
    """The page. Values are escaped but for Markup; a value that the template lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**values)
