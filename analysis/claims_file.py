"""Files of claims: what a version of a paper prints."""

from pathlib import Path
from typing import Any

from core.yaml_text import from_yaml

CLAIMS = "analysis/claims/2604.13076v3.yaml"  # those that are read by default, in the checkout
LISTS = ("claims", "counts", "either", "without_row")


def read_claims(path: Path) -> dict[str, Any]:
    """A file of claims: `paper` and the LISTS, which may be empty. Numbers are as printed."""
    content: dict[str, Any] = from_yaml(path.read_text(encoding="utf-8"))
    return {name: [] for name in LISTS} | content
