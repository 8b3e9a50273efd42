"""Paths: the checkout, and paths of study files relative to it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str) -> Path:
    """A path of a study file: relative to the checkout unless absolute."""
    return ROOT / path
