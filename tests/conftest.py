"""Which tests share a process when pytest-xdist spreads them over several (`make test`), and what they may leave."""

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from xdist.scheduler import LoadScopeScheduling

# The longest first, so that neither process ends long before the other.
_FIRST = ("tests/slurm", "tests/test_study.py", "tests/recipes")


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """A file's tests leave no trace there: vLLM and the cells, whose process is their own, set what they need."""
    with mock.patch.dict(os.environ):
        yield


def _group(nodeid: str) -> str:
    """A file's tests stay together, and so do folders' that share something dear: the cluster, the trainings."""
    file = nodeid.split("::")[0]
    return next((folder for folder in ("tests/slurm", "tests/recipes") if file.startswith(f"{folder}/")), file)


class _Groups(LoadScopeScheduling):
    # Not by --dist loadgroup: this pytest does not see the names that pytest-xdist 3.8 gives to tests for it.
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Groups:
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {group: number for number, group in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(_group(item.nodeid), len(rank)))
