"""Whatever a study went through, its results are those of a fresh run, with the least work."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.study.edits import EDITS
from tests.study.sequences import EditedStudy, hash_stages

STEP = st.tuples(
    st.sampled_from(sorted(EDITS)),
    st.integers(0, 3),
    st.none() | st.integers(0, 12),  # killed after so many cells, then run again
)
SEQUENCE = st.lists(STEP, min_size=1, max_size=8)
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module", autouse=True)
def _stages() -> Iterator[None]:
    with hash_stages():
        yield


def follow(steps: list[tuple[str, int, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = EditedStudy(Path(folder))
        study.run()
        for name, n, kill_after in steps:
            EDITS[name](study, n)
            if kill_after is not None:
                study.run(kill_after)
            study.run()


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(SEQUENCE)
def test_any_sequence_of_edits_ends_as_a_fresh_run(
    steps: list[tuple[str, int, int | None]],
) -> None:
    follow(steps)


@pytest.mark.nightly
@settings(max_examples=2000, deadline=None, suppress_health_check=CHECKS)
@given(SEQUENCE)
def test_two_thousand_sequences(steps: list[tuple[str, int, int | None]]) -> None:
    """--hypothesis-seed chooses others; --hypothesis-show-statistics counts those with an edit."""
    for name, _, _ in steps:
        event(name)
    follow(steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EDITS))
def test_one_edit_alone_and_back(name: str) -> None:
    for n in range(2):
        follow([(name, n, None), ("back_to_the_first", 0, None)])
